"""What bounds the similarity of the adapter's pictures to their subjects: how much of the gap single changes close.

    python -m tests.benchmarks.adapter_ablations --output runs/ablations --device cuda
    python -m tests.benchmarks.adapter_ablations --output runs/small --examples-scale 0.1
    python -m tests.benchmarks.adapter_ablations --output runs/default --examples-scale 0.5 \
        --variants default_run no_tiles no_dropping default_subject_loss

Hardware and time: a GPU. An earlier form took half a minute a variant on an H200, and 2.5 minutes for ten times the
examples. This form has run on CPUs only, in small; an estimate for a variant of full size is a quarter of an hour on
two cores. It needs no finished run.

Each variant (`support/ablation_variants.py`) trains an adapter on the shipped micro Stable Diffusion with the product's
examples and loss, but without Ray and DeepSpeed; on CUDA a step is captured in a graph. Scenes and turntables are
rendered in memory. Then held-out subjects are painted with the mask at two visual scales, and scored as in the stage
`evaluate`. Gap closed is (adapter with mask - text only) / (real views - text only), also of the held-out categories
alone; intervals are over subjects, not over trainings: each variant is trained once. A finished variant is a JSON file
in `--output`, which the same command does not make again; processes that run the same command at the same time share
the variants. The benchmark prints a table of all finished variants and draws `ablations.png`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from model.micro_sd.weights import WEIGHTS_FOLDER
from model.training.adapter_examples import PlanRow
from model.training.adapter_loss import AdapterModule
from model.training.adapter_task import AdapterTask
from model.training.target_sizes import Phase
from pipelines.execution.environment import set_environment
from stages.config import Config
from stages.evaluate.models import Models
from stages.evaluate.summary import Row
from stages.inference import loading_options
from stages.training.engine import learning_rate
from stages.training.optimizer import new_optimizer
from tests.benchmarks.support.ablation_table import ARM, TEXT_ONLY, markdown, plot
from tests.benchmarks.support.ablation_variants import VARIANTS, Variant
from tests.benchmarks.support.command_line import benchmark_parser
from tests.benchmarks.support.graphed_step import GraphedStep
from tests.benchmarks.support.held_out_pictures import HeldOutPictures, picture_config
from tests.benchmarks.support.rendered_world import RenderedWorld, render_world
from tests.benchmarks.support.results_folder import claim, claimed, write_whole

VISUAL_SCALES = ("1", "2")
_PRINTS = 4  # of the loss in a training


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What all results in a folder have in common."""

    examples_scale: float
    subjects: int
    painting_steps: int
    seed: int

    def config(self, device: str) -> Config:
        """See `picture_config`."""
        return picture_config(self.subjects, self.painting_steps, self.seed, device)


def train(variant: Variant, config: Config, examples_scale: float) -> AdapterModule:
    """Train an adapter by the product's examples, loss, schedule of the learning rate and clipping."""
    recipe = variant.recipe(examples_scale)
    world = render_world(variant.world.scaled(examples_scale), config.run.seed)
    plan = world.plan(recipe, config.run.seed)
    task = _task(variant, config, world, plan)
    torch.manual_seed(config.run.seed)
    module = task.module().to(task.device).train()
    length = module.frozen.backbone.scheduler.config.num_train_timesteps

    def batch(step: int) -> dict[str, Tensor]:
        return variant.adjust(task.batch(step, 0, 1), world.masks(plan[step]), length)

    weights = list(module.parameters())
    backward = GraphedStep(lambda inputs: weighted_loss(module, inputs), weights, batch(0))
    trainer = dataclasses.replace(
        config.train_adapter.trainer, optimizer=variant.optimizer, learning_rate=variant.learning_rate
    )
    optimizer, _ = new_optimizer(dict(module.named_parameters()), trainer, {})
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe.steps, trainer)
        loss = backward(batch(step))
        torch.nn.utils.clip_grad_norm_(weights, trainer.gradient_clip)
        optimizer.step()
        if (step + 1) % max(1, recipe.steps // _PRINTS) == 0:
            print(f"  step {step + 1} of {recipe.steps}, loss {loss.item():.4f}", flush=True)
    return module


def _task(variant: Variant, config: Config, world: RenderedWorld, plan: Sequence[Sequence[PlanRow]]) -> AdapterTask:
    settings = config.train_adapter
    return AdapterTask(
        backbone=str(WEIGHTS_FOLDER),
        encoders=loading_options(config.backbone),
        rows=plan.__getitem__,
        picture=world.picture,
        phases=(Phase(0, config.backbone.resolution),),
        drop_text=settings.drop_text,
        drop_image=settings.drop_image if variant.drops_references else 0.0,
        drop_both=settings.drop_both if variant.drops_references else 0.0,
        cross_scale=variant.cross_scale,
        seed=config.run.seed,
        noises_per_example=variant.noises,
        device="cuda" if config.evaluate.use_gpu else "cpu",
    )


def weighted_loss(module: AdapterModule, batch: dict[str, Tensor]) -> Tensor:
    """The diffusion loss () with weights in the picture; with weights of 1 it is `AdapterModule`'s."""
    return (module.squared_errors(batch) * batch["weights"]).mean()


def run_missing(output: Path, variants: Sequence[Variant], config: Config, examples_scale: float) -> None:
    """Train and evaluate the variants that are neither finished nor running in another process, and text alone."""
    missing = [variant for variant in variants if not (output / f"{variant.name}.json").exists()]
    if not missing:
        return
    with tempfile.TemporaryDirectory() as scratch:
        pictures = HeldOutPictures(config, Path(scratch) / "subjects")
        for variant in missing:
            file = output / f"{variant.name}.json"
            with claimed(file.with_suffix(".lock")) as mine:
                if mine and not file.exists():
                    print(f"{variant.name}: {variant.change}", flush=True)
                    adapter, recipe = Path(scratch) / variant.name, variant.recipe(examples_scale)
                    train(variant, config, examples_scale).adapter.save_pretrained(adapter)
                    rows = _evaluate(pictures, pictures.models(adapter), output / f"{TEXT_ONLY}.json")
                    examples = recipe.steps * recipe.batch_size
                    write_whole(file, {"variant": variant.name, "examples": examples, "rows": rows})


def _evaluate(pictures: HeldOutPictures, models: Models, plain: Path) -> dict[str, list[Row]]:
    """The rows at each visual scale; those of text alone are written to `plain`, if no one has."""
    if not plain.exists():
        write_whole(plain, pictures.rows(models, TEXT_ONLY, {}))
    return {scale: pictures.rows(models, ARM, {"visual_scale": float(scale)}) for scale in VISUAL_SCALES}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, and print the table."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    help_text = "of the training examples, and of the scenes and objects that they are drawn from"
    parser.add_argument("--examples-scale", type=float, default=1.0, help=help_text)
    parser.add_argument("--subjects", type=int, default=64)
    parser.add_argument("--painting-steps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    budget = Budget(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Budget)})
    set_environment("micro")
    disable_progress_bar()
    if options.device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32
    claim(options.output, budget)
    config = budget.config(options.device)
    run_missing(options.output, [VARIANTS[name] for name in options.variants], config, budget.examples_scale)
    files = [options.output / f"{name}.json" for name in VARIANTS]
    results = [json.loads(file.read_text()) for file in files if file.exists()]
    if not results:
        sys.exit("no variant is finished yet: other processes are at work on them.")
    plain = json.loads((options.output / f"{TEXT_ONLY}.json").read_text())
    print(f"\n{markdown(results, plain)}")
    plot(results, plain, options.output / "ablations.png")


if __name__ == "__main__":
    main()
