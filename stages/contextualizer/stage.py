"""Stage `contextualizer`: psi and the mask embedding on the prompt sets (Contextualizer, Algorithm 1).

Writes `contextualizer/`: the weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

import ray

from model.concepts.contextualizer import (
    Contextualizer,
    ContextualizerTask,
    FrozenText,
    MaskedAccuracy,
    masked_accuracy,
)
from prompts.english.nouns import without_placeholder
from prompts.evaluation_prompts import evaluation_prompt_in
from prompts.schema import replace_named
from stages.contract import StageContext, StageError, StageResult
from stages.data.datasets import read_dataset
from stages.data.schemas import CAPTIONS, PROMPTS
from stages.inference import backbone_location, backbone_setting, model_errors_as_stage_errors, on_this_machine
from stages.ray_tools.placement import node_selector
from stages.storage import StorePath, copy_folder, is_remote, local_folder
from stages.training.trainer import fit, plot_curves

#: One of this many sentence templates is held out, for the accuracy.
_HELD_OUT = 10
#: Held-out prompts of a pass: their logits over CLIP's vocabulary take 240 MB.
_BATCH = 16


def run(context: StageContext) -> StageResult:
    """Train psi and p_mask."""
    config, seed = context.config.contextualizer, context.config.run.seed
    backbone = backbone_location(context.config.backbone, context.inputs)
    rows = read_dataset(context.inputs["prompts"] / "prompts", PROMPTS, ["concept", "prompt"]).to_pylist()
    texts = training_texts(context.inputs["prompts"])
    _refuse_evaluation_prompts(texts, {row["concept"] for row in rows}, context.inputs["prompts"])
    train, held_out = split_prompts(texts)
    if not train:
        raise StageError("the prompt sets are empty: set prompts.concepts and prompts.prompts_per_concept to more.")
    task = ContextualizerTask(
        backbone=backbone,
        prompts=train,
        batch_size=config.batch_size,
        layers=config.layers,
        mask_rate=config.mask_rate,
        seed=seed,
        device="cuda" if config.trainer.use_gpu else "cpu",
    )
    weights, curves = fit(
        task,
        steps=config.steps,
        config=config.trainer,
        context=context,
        name="contextualizer",
        seed=seed,
        section="contextualizer.trainer",
        batch_size=config.batch_size,
        batch_setting="contextualizer.batch_size",
        backbone_setting=backbone_setting(context.config.backbone),
    )
    copy_folder(weights, context.output / "contextualizer")
    with local_folder(context.output) as folder:
        plot_curves(curves, ["loss", "accuracy"], "Masked language modelling", folder / "curves.png")
    context.report.picture("curves", context.output / "curves.png")
    context.report.progress(0, 0, f"measuring the accuracy on {len(held_out)} held-out prompts")
    found = _accuracy(task, context.output / "contextualizer", held_out, backbone_setting(context.config.backbone))
    return StageResult(
        metrics={
            "held_out_accuracy": found.contextualizer,
            "majority_accuracy": found.majority,
            "unigram_accuracy": found.unigram,
            "held_out_positions": float(found.positions),
        }
    )


def split_prompts(prompts: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Split prompts (concept, text) into training and held-out prompts, without their placeholder.

    Prompts with the same sentence around their concepts are on the same side: a held-out sentence is new.
    """
    train: list[str] = []
    held_out: list[str] = []
    for concept, prompt in prompts:
        template = " ".join(replace_named(prompt, concept, "{}").lower().split())
        digest = hashlib.sha256(template.encode()).digest()
        chosen = held_out if int.from_bytes(digest[:8]) % _HELD_OUT == 0 else train
        chosen.append(without_placeholder(prompt))
    return train, held_out


def training_texts(folder: StorePath) -> list[tuple[str, str]]:
    """The prompts (concept, text) of an output of the stage `prompts`; if there are captions, these with no concept."""
    rows = read_dataset(folder / "prompts", PROMPTS, ["concept", "prompt"]).to_pylist()
    texts = [(row["concept"], row["prompt"]) for row in rows]
    if (folder / "captions").is_dir():
        texts += [("", caption) for caption in read_dataset(folder / "captions", CAPTIONS)["caption"].to_pylist()]
    return texts


def _refuse_evaluation_prompts(texts: Sequence[tuple[str, str]], concepts: Collection[str], prompts: StorePath) -> None:
    found = evaluation_prompt_in([text for _, text in texts], concepts)
    if found is not None:
        prompt, benchmark = found
        raise StageError(
            f"the prompt {prompt!r} in {prompts} is one of {benchmark}'s, which serve evaluation only: make the set "
            "again without it (--force prompts)."
        )


def _accuracy(
    task: ContextualizerTask, folder: StorePath, held_out: Sequence[str], backbone_setting: str
) -> MaskedAccuracy:
    """The accuracy on held-out prompts; by a worker, if this machine has not the models or not the GPU."""
    gpus = int(task.device != "cpu")
    if not gpus and not is_remote(folder):
        return _measure(task, str(folder), held_out, backbone_setting)
    with model_errors_as_stage_errors():
        measure = ray.remote(num_cpus=1, num_gpus=gpus, label_selector=node_selector(gpus))(_measure)
        measured: MaskedAccuracy = ray.get(measure.remote(task, str(folder), held_out, backbone_setting))
    return measured


def _measure(task: ContextualizerTask, folder: str, held_out: Sequence[str], backbone_setting: str) -> MaskedAccuracy:
    contextualizer = Contextualizer.from_pretrained(on_this_machine(folder, "run.folder")).to(task.device).eval()
    text = FrozenText.load(on_this_machine(task.backbone, backbone_setting), task.device)
    return masked_accuracy(contextualizer, text, task.prompts, held_out, task.mask_rate, _BATCH)
