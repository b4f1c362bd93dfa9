"""Stage `customize`: one concept from a few pictures, by Textual Inversion with the MLM loss (Contextualizer, Alg. 2).

Writes `concept/` (see `model.concepts.folder`), `samples.png` and `curves.png`. One Ray task
on one CPU learns the concept and yields its steps. It takes half a minute, so it is repeated, not resumed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from PIL import Image

from model.backbone import load_backbone
from model.concepts.concept import Concept
from model.concepts.contextualizer import Contextualizer
from model.concepts.folder import write_concept
from model.concepts.loading import load_concept
from model.concepts.textual_inversion import InversionSettings, InversionStep, TextualInversion, learn
from model.files import printable_name
from model.pictures.crops import square_crop
from model.pictures.decoding import PICTURE_SUFFIXES, PictureError, left_out_pictures, load_picture, picture_files
from model.pictures.tensors import to_tensor
from model.pipeline import RealCustomPipeline
from model.training.precision import halve_products
from stages.contract import Reporter, StageContext, StageError, StageResult
from stages.customize.config import CustomizeConfig
from stages.inference import backbone_location, model_errors_as_stage_errors
from stages.training.trainer import Curves, plot_curves

_SAMPLES = 4
_MAX_PICTURES = 6
#: Steps at the end that are averaged for the metrics.
_LAST = 50


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The subject of the concept."""

    name: str
    word: str
    pictures: Sequence[Path]


def run(context: StageContext) -> StageResult:
    """Learn the concept, and generate pictures with and without it."""
    config = context.config.customize
    subject = find_subject(config, context.inputs, context.report)
    job = _learning_job(subject, context)
    concept, curves = _learn_on_ray(job, context)
    write_concept(context.output / "concept", concept)
    title = f"Learning {config.placeholder} {subject.word}"
    plot_curves(curves, ["diffusion", "mlm"], title, context.output / "curves.png")
    context.report.picture("curves", context.output / "curves.png")
    with model_errors_as_stage_errors():
        _generate_samples(job, context.output / "concept", context)
    metrics = {key: sum(v for _, v in points[-_LAST:]) / len(points[-_LAST:]) for key, points in curves.items()}
    return StageResult(metrics=metrics, notes={"subject": subject.name, "word": subject.word})


def _learning_job(subject: Subject, context: StageContext) -> LearningJob:
    config = context.config.customize
    return LearningJob(
        backbone=backbone_location(context.config.backbone, context.inputs),
        contextualizer=str((context.inputs["contextualizer"] / "contextualizer").resolve()),
        subject=subject.name,
        pictures=read_pictures(subject, context.config.backbone.resolution, context.report),
        rich_prompts=rich_prompts(context.inputs["contextualizer"] / "contextualizer" / "prompts.json", config),
        settings=InversionSettings(
            placeholder=config.placeholder,
            word=subject.word,
            steps=config.steps,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            mlm_weight=config.mlm_weight,
            mask_rate=config.mask_rate,
            seed=context.config.run.seed,
        ),
    )


def find_subject(config: CustomizeConfig, inputs: Mapping[str, Path], report: Reporter) -> Subject:
    """The configured folder of pictures, or the microworld's first held-out subject with the configured word.

    Names the pictures in the folder that are left out for their names.

    Raises:
        StageError: There is no such folder or subject, or no picture in it.
    """
    if config.subject is not None:
        folder = Path(config.subject)
        if not os.path.isdir(folder):
            raise StageError(
                f"{printable_name(folder)} is not a folder: set customize.subject to a folder of pictures of one "
                "subject."
            )
        pictures = picture_files(folder)
        if left_out := left_out_pictures(folder):
            report.warning(left_out)
        if not pictures:
            raise StageError(
                f"{printable_name(folder)} has no picture ({', '.join(PICTURE_SUFFIXES)}): put 3 to 6 pictures of one "
                'subject there, with names that do not start with "." or "_".'
            )
        return Subject(name=printable_name(folder.name), word=config.word, pictures=pictures)
    folder = inputs["microworld"] / "subjects"
    listed = json.loads((folder / "subjects.json").read_text())
    for entry in listed:
        if entry["word"] == config.word:
            names = entry["pictures"] if config.pictures == "views" else entry["album"]
            return Subject(name=entry["subject"], word=config.word, pictures=[folder / name for name in names])
    words = ", ".join(sorted({entry["word"] for entry in listed}))
    raise StageError(f"the microworld has no held-out {config.word!r}: set customize.word to one of {words}.")


def rich_prompts(file: Path, config: CustomizeConfig) -> list[str]:
    """The context-rich prompts with the configured word; if there are none, those of other words with it inserted."""
    listed = json.loads(file.read_text())
    own = [entry["prompt"] for entry in listed if entry["concept"] == config.word]
    chosen = own or [entry["prompt"].replace(f"[v] {entry['concept']}", f"[v] {config.word}") for entry in listed]
    return [prompt.replace("[v]", config.placeholder) for prompt in chosen]


def read_pictures(subject: Subject, size: int, report: Reporter) -> list[Image.Image]:
    """The first pictures of a subject, square, upright, at most `_MAX_PICTURES`; broken ones are left out and named.

    Raises:
        StageError: None can be read.
    """
    pictures: list[Image.Image] = []
    reasons: list[str] = []
    for path in subject.pictures:
        if len(pictures) == _MAX_PICTURES:
            break
        try:
            pictures.append(square_crop(load_picture(path), 0.5, 0.5, size))
        except PictureError as error:
            reasons.append(str(error))
            report.warning(f"left out of the subject {subject.name}: {error}")
    if not pictures:
        raise StageError(f"no picture of customize.subject can be read, for example: {reasons[0]}")
    if len(pictures) == 1:
        report.warning(
            f"the subject {subject.name} has one picture: its background and pose are learned with it; 3 to 6 pictures "
            "are better"
        )
    return pictures


# --- learning, in a Ray task ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LearningJob:
    """The input of the Ray task."""

    backbone: str
    contextualizer: str
    subject: str
    pictures: Sequence[Image.Image]
    rich_prompts: Sequence[str]
    settings: InversionSettings


def learn_concept(job: LearningJob) -> Iterator[InversionStep | Concept]:
    """Yield every step, and at the end the learned concept."""
    device = "cuda" if torch.cuda.is_available() and ray.get_gpu_ids() else "cpu"
    backbone = load_backbone(job.backbone, device=device)
    latents = backbone.encode_pictures(to_tensor(list(job.pictures)) * 2 - 1).float()
    if device != "cpu":
        halve_products(backbone.unet)
    contextualizer = Contextualizer.from_pretrained(job.contextualizer).to(device)
    inversion = TextualInversion(backbone, contextualizer, latents, job.rich_prompts, job.settings).to(device)
    yield from learn(inversion)
    is_folder = Path(job.backbone).is_dir()  # its path is this machine's matter
    yield inversion.concept(job.subject, Path(job.backbone).name if is_folder else job.backbone)


def _learn_on_ray(job: LearningJob, context: StageContext) -> tuple[Concept, Curves]:
    """The learned concept and the curves; reports every step."""
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    task: Any = ray.remote(num_cpus=1, num_gpus=gpus, num_returns="streaming")(learn_concept)
    curves: Curves = {"diffusion": [], "mlm": []}
    context.report.progress(0, job.settings.steps, "customize: loading the models")
    with model_errors_as_stage_errors():
        for reference in task.remote(job):
            result = ray.get(reference)
            if isinstance(result, Concept):
                return result, curves
            _report_step(result, job.settings.steps, curves, context)
    raise RuntimeError("the learning task ended without a result")


def _report_step(step: InversionStep, steps: int, curves: Curves, context: StageContext) -> None:
    for key, value in (("diffusion", step.diffusion), ("mlm", step.mlm)):
        curves[key].append((step.step, value))
        context.report.metric(f"concept/{key}", value, step.step)
    context.report.progress(step.step, steps, f"customize: loss {step.diffusion:.4f}")


# --- samples -------------------------------------------------------------------------------------------------------


def _generate_samples(job: LearningJob, concept: Path, context: StageContext) -> None:
    """`samples.png`: the subject's pictures; below them pictures with and without the concept, from the same noise."""
    backbone = load_backbone(job.backbone)
    load_concept(backbone, concept)
    pipeline = RealCustomPipeline(backbone)
    word = job.settings.word
    rows = [list(job.pictures[:_SAMPLES])]
    for number, name in enumerate((f"{job.settings.placeholder} {word}", word)):
        context.report.progress(number, 2, f"customize: generating {name}")
        prompts = [f"a photo of a {name}"] * _SAMPLES
        output = pipeline(prompts, settings=context.config.inference, seeds=context.config.run.seed)
        rows.append(output.images)
    picture = context.output / "samples.png"
    _grid(rows, context.config.backbone.resolution).save(picture)
    context.report.picture("samples", picture)


def _grid(rows: Sequence[Sequence[Image.Image]], side: int) -> Image.Image:
    sheet = Image.new("RGB", (_SAMPLES * side, len(rows) * side), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture, (x * side, y * side))
    return sheet
