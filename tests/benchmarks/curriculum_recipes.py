"""The training recipes of RealCustom++'s Table X on the micro backbone, with equal budgets and three seeds.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.curriculum_recipes --run-folder runs/micro --output runs/recipes

Hardware and time: one core for each process; 21 runs of 5 to 8 minutes. It needs the stages `base` and `curriculum` of
a run of the default profile.

All recipes use the samples, view pairs, backbone and held-out subjects of the finished run. Each run makes a plan
(`stages/curriculum/stage.py`), trains (`stages/training/loop.py`, one worker without Ray), generates the same cases and
scores them (`stages/evaluate`). The recipes differ in the share of view pairs and in the crops of the references; the
seventh, which is not in the paper, is a control. A finished run is a JSON file in `--output`. After a kill, the same
command continues; processes that run the same command at the same time share the runs. The benchmark prints the tables
of all finished runs and draws `recipes.png`.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from model.microworld.captions import without_background
from model.training.adapter_examples import PlanRow
from model.training.adapter_task import AdapterTask
from pipelines.config.loading import with_values
from pipelines.errors import PipelineError
from pipelines.execution.environment import set_environment
from stages.config import Config
from stages.contract import Reporter, StageError
from stages.data.plan import PlanReader
from stages.evaluate.cases import load_subjects, make_cases
from stages.evaluate.models import ModelPaths, Models
from stages.evaluate.painter import Painter, case_table
from stages.evaluate.stage import ADAPTER_ARMS
from stages.inference import backbone_location
from stages.storage import StorePath
from stages.train_adapter.stage import adapter_task
from stages.training.job import TrainingJob
from stages.training.loop import run_worker
from stages.training.record import RecordReader
from stages.training.trainer import reporting
from tests.benchmarks.support.command_line import benchmark_parser
from tests.benchmarks.support.finished_run import FinishedRun, open_run
from tests.benchmarks.support.process_group import process_group
from tests.benchmarks.support.recipe_table import METRICS, RECIPES, TEXT_ONLY, Run, TableXRow, markdown, plot
from tests.benchmarks.support.results_folder import claimed, write_whole

_STAGES = ("microworld", "filter", "multiview", "base")
_ONE_PROCESS = {"train_adapter.trainer.workers": 1, "train_adapter.sample_every": None}
_SECONDS_BETWEEN_PRINTS = 30.0


@dataclass(frozen=True)
class Experiment:
    """The finished run with the budget in its configuration, and the folder of the results."""

    source: FinishedRun
    output: Path

    def result(self, row: TableXRow, seed: int) -> Path:
        """Path of the JSON file of one run's result."""
        return self.output / f"recipe-{row.number}-seed-{seed}.json"

    def results(self) -> list[Run]:
        """Read the results of all finished runs."""
        return [json.loads(file.read_text()) for file in sorted(self.output.glob("recipe-*-seed-*.json"))]

    def config_of(self, row: TableXRow, seed: int) -> Config:
        """The configuration of one run."""
        settings = {f"curriculum.{key}": value for key, value in row.settings.items()}
        return with_values(self.source.config, {**settings, "run.seed": seed})


def open_experiment(run_folder: Path, output: Path, budget: dict[str, Any]) -> Experiment:
    """Open the finished run; `budget` has values by dotted key.

    Raises:
        PipelineError: A stage has not run, or the results in `output` have another budget or run.
    """
    source = open_run(run_folder, _STAGES, {**budget, **_ONE_PROCESS})
    output.mkdir(parents=True, exist_ok=True)
    made_with = {**budget, **source.fingerprints}
    note = output / "budget.json"
    if note.exists() and json.loads(note.read_text()) != made_with:
        raise PipelineError(f"{output} holds results of another budget or run ({note}); choose another --output.")
    write_whole(note, made_with)
    return Experiment(source, output.resolve())


class RecipeTrainer:
    """Plans, trains and scores recipes; it keeps the frozen models and their cached outputs between them."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        subjects = experiment.source.inputs["microworld"] / "subjects"
        settings = experiment.source.config.evaluate
        self.cases = make_cases(load_subjects(subjects, settings.subjects), settings, 0)  # the same for all runs
        self._task: AdapterTask | None = None

    def run(self, row: TableXRow, seed: int, folder: Path) -> dict[str, Any]:
        """Run a recipe with a seed; `folder` keeps its checkpoints until it is finished."""
        config, began = self.experiment.config_of(row, seed), time.process_time()
        plan = self.experiment.source.write_plan(config, folder)
        task = self._task_for(config, plan, folder)
        task.rows = plan if row.captions_name_backgrounds else _WithoutBackgrounds(plan)
        job = TrainingJob(
            task=task,
            steps=plan.steps,
            config=config.train_adapter.trainer,
            seed=seed,
            cores=1,
            folder=folder,
            name="adapter",
        )
        with reporting(job, _printing_reporter()):
            run_worker(job, torch.device("cpu"))
        if job.ending.exists():
            raise StageError(job.ending.read_text())
        trained = time.process_time()
        pictures = self._paint(config, job.weights, with_text_only=row is RECIPES[0])
        last = list(RecordReader(job.metrics_file).read())[-1]
        seconds = {"training": trained - began, "painting": time.process_time() - trained}
        return {"recipe": row.number, "seed": seed, "loss": last["loss"], "cpu_seconds": seconds, "pictures": pictures}

    def _task_for(self, config: Config, plan: PlanReader, folder: Path) -> AdapterTask:
        if self._task is None:
            self._task = adapter_task(self.experiment.source.context(config, folder), plan)
        self._task.seed = config.run.seed
        return self._task

    def _paint(self, config: Config, adapter: StorePath, *, with_text_only: bool) -> list[dict[str, Any]]:
        """Generate and score all pictures. Those from text alone are the same in all runs."""
        arms = [arm for arm in ADAPTER_ARMS if with_text_only or arm != TEXT_ONLY]
        inputs = self.experiment.source.inputs
        backbone = backbone_location(config.backbone, inputs)
        paths = ModelPaths(backbone=backbone, adapter=adapter)
        painter = Painter(config, Models(config, paths))
        cases = case_table(self.cases, arms)
        size, rows = config.evaluate.batch_size, []
        for start in range(0, cases.num_rows, size):
            rows += painter(cases.slice(start, size)).to_pylist()
        kept = ("arm", "subject", "prompt", "seed", *METRICS)
        return [{key: row[key] for key in kept} for row in rows]


@dataclass(frozen=True)
class _WithoutBackgrounds:
    """The rows of a plan, with captions that do not name the background."""

    plan: PlanReader

    def __call__(self, step: int) -> list[PlanRow]:
        return [row._replace(caption=without_background(row.caption)) for row in self.plan(step)]


def _printing_reporter() -> Reporter:
    """A reporter that prints a training's progress every 30 seconds."""
    printed = time.monotonic()

    def emit(event: Mapping[str, Any]) -> None:
        nonlocal printed
        if event["event"] == "progress" and time.monotonic() - printed >= _SECONDS_BETWEEN_PRINTS:
            printed = time.monotonic()
            print(f"  step {event['done']} of {event['total']}, {event['note']}", flush=True)

    return Reporter(emit=emit)


def run_all(experiment: Experiment, rows: Sequence[TableXRow], seeds: Sequence[int]) -> None:
    """Run everything that is neither finished nor running in another process."""
    trainer = RecipeTrainer(experiment)
    for seed in seeds:
        for row in rows:
            result = experiment.result(row, seed)
            with claimed(result.with_suffix(".lock")) as mine:
                if not mine or result.exists():
                    continue
                folder = result.with_suffix(".partial")
                folder.mkdir(exist_ok=True)
                print(f"No. {row.number}, {row.name}, seed {seed}", flush=True)
                found = trainer.run(row, seed, folder)
                write_whole(result, found)
                shutil.rmtree(folder)
                spent = found["cpu_seconds"]
                print(f"  {spent['training']:.0f} s training, {spent['painting']:.0f} s painting (CPU)", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, and print the tables."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--run-folder", type=Path, required=True, help="a finished run of the default profile")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    numbers = [row.number for row in RECIPES]
    parser.add_argument("--recipes", type=int, nargs="+", choices=numbers, default=numbers, help="7: the control")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--subjects", type=int, default=64)
    parser.add_argument("--painting-steps", type=int, default=12)
    options = parser.parse_args(arguments)
    budget = {
        "curriculum.steps": options.steps,
        "curriculum.batch_size": options.batch_size,
        "train_adapter.noises_per_example": 1,
        "evaluate.subjects": options.subjects,
        "inference.steps": options.painting_steps,
        "inference.mask_steps": options.painting_steps // 2,
    }
    set_environment("micro")
    disable_progress_bar()
    torch.set_num_threads(1)
    try:
        experiment = open_experiment(options.run_folder, options.output, budget)
        with process_group():
            run_all(experiment, [row for row in RECIPES if row.number in options.recipes], options.seeds)
    except (PipelineError, StageError) as error:
        sys.exit(str(error))
    runs = experiment.results()
    print(f"\n{len(runs)} runs of {options.steps} steps of {options.batch_size} examples.\n\n{markdown(runs)}")
    plot(runs, experiment.output / "recipes.png")


if __name__ == "__main__":
    main()
