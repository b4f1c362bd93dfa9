"""Speed of the trainer, compared with a bare PyTorch loop: adapter training on the micro backbone.

    python -m tests.benchmarks.trainer_speed --run-folder runs/micro        # three repetitions

Hardware and time: two idle cores; some minutes. It needs a finished run of the default profile.

Four ways to train on the same plan, one thread per process, alternately:

    bare      the same task and module with AdamW, clipping and the learning rate's schedule; no Ray, no DeepSpeed
    trainer   the stage's own `fit` with one worker: Ray Train, DeepSpeed's ZeRO as in the run folder's configuration
    bare x 2  two bare loops at once, each with half of every batch, without communication: the machine's limit
    two       `fit` with two workers

Samples per second are measured from the end of the first step to the end of the last one; the start-up is reported
separately. CPU seconds are those of the first worker's process; on a busy machine, compare those.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.synchronize import Barrier
from pathlib import Path

import torch
from torch import nn

from model.training.adapter_task import AdapterTask
from pipelines.config.loading import with_values
from pipelines.errors import PipelineError
from pipelines.execution.environment import temporary_folder
from stages.config import Config
from stages.contract import StageError
from stages.data.plan import PlanReader
from stages.ray_tools.cluster import local_cluster
from stages.train_adapter.stage import adapter_task
from stages.training.config import TrainerConfig
from stages.training.engine import learning_rate
from stages.training.optimizer import new_optimizer
from stages.training.trainer import fit
from tests.benchmarks.support.command_line import benchmark_parser
from tests.benchmarks.support.environment import set_benchmark_environment
from tests.benchmarks.support.finished_run import FinishedRun, open_run

_STAGES = ("filter", "multiview", "base")


@dataclass(kw_only=True)
class TimedTask(AdapterTask):
    """The stage's task; rank 0 records the time and its process's CPU seconds at the end of each step."""

    stamps_file: Path = field(compare=False)
    _stamps: list[tuple[float, float]] = field(default_factory=list, init=False, repr=False)

    def after_step(self, module: nn.Module, step: int) -> None:
        """Record the end of a step."""
        self._stamps.append((time.time(), time.process_time()))

    def export(self, module: nn.Module, folder: Path) -> None:
        """Write the adapter, and the recorded times."""
        super().export(module, folder)
        self.write_stamps()

    def write_stamps(self) -> None:
        """Write the recorded times as a list of pairs."""
        self.stamps_file.write_text(json.dumps(self._stamps))


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Speed of a way to train.

    Attributes:
        rate: Samples per second.
        cpu: CPU seconds per step; with two workers, those of the first one.
        startup: Seconds from the call to the end of the first step.
        end: Seconds from the end of the last step to the end of the call.
    """

    rate: float
    cpu: float
    startup: float
    end: float

    @classmethod
    def of(cls, stamps: list[tuple[float, float]], began: float, ended: float, batch: float) -> Speed:
        """Compute the speed from the ends of the steps."""
        (first, first_cpu), (last, last_cpu) = stamps[0], stamps[-1]
        steps = len(stamps) - 1
        return cls(
            rate=steps * batch / (last - first),
            cpu=(last_cpu - first_cpu) / steps,
            startup=first - began,
            end=ended - last,
        )


def bare_loop(task: AdapterTask, config: TrainerConfig, steps: int, seed: int, share: tuple[int, int]) -> None:
    """Train in a plain PyTorch loop; `share` is (rank, world) of the batch."""
    torch.manual_seed(seed)
    module = task.module()
    parameters = list(module.parameters())
    optimizer, _ = new_optimizer(dict(module.named_parameters()), config, {})
    for step in range(steps):
        batch = task.batch(step, *share)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, config)
        optimizer.zero_grad()
        module(batch)["loss"].backward()
        nn.utils.clip_grad_norm_(parameters, config.gradient_clip)
        optimizer.step()
        task.after_step(module, step)


def bare_process(task: TimedTask, config: Config, share: tuple[int, int], together: Barrier) -> None:
    """Run a bare loop in a new process, like the trainer's workers."""
    torch.set_num_threads(1)
    task.load()
    together.wait()
    bare_loop(task, config.train_adapter.trainer, config.curriculum.steps, config.run.seed, share)
    task.write_stamps()


@dataclass(frozen=True)
class Measurement:
    """A plan to train on, and a folder for temporary files."""

    source: FinishedRun
    plan: PlanReader
    folder: Path

    def bare(self, processes: int) -> Speed:
        """Run bare loops at the same time, each with its share of every batch."""
        config, folder = self.source.config, self._new_folder("bare")
        spawning = multiprocessing.get_context("spawn")
        together, began = spawning.Barrier(processes), time.time()
        tasks = [self._task(config, folder / f"{rank}.json", folder) for rank in range(processes)]
        started = [
            spawning.Process(target=bare_process, args=(task, config, (rank, processes), together))
            for rank, task in enumerate(tasks)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join()
        ended = time.time()
        return combined_speed([self._speed(task, began, ended, processes) for task in tasks])

    def trainer(self, workers: int) -> Speed:
        """Run the stage's `fit`."""
        values = {"train_adapter.trainer.workers": workers, "run.cpus": workers}  # a thread each
        config, folder = with_values(self.source.config, values), self._new_folder("trainer")
        task, began = self._task(config, folder / "stamps.json", folder), time.time()
        fit(
            task,
            steps=config.curriculum.steps,
            config=config.train_adapter.trainer,
            context=self.source.context(config, folder),
            name="adapter",
            seed=config.run.seed,
            section="train_adapter.trainer",
            batch_size=config.curriculum.batch_size,
            batch_setting="--batch-size",
        )
        return self._speed(task, began, time.time(), 1)

    def _new_folder(self, name: str) -> Path:
        return Path(tempfile.mkdtemp(prefix=name, dir=self.folder))

    def _task(self, config: Config, stamps: Path, folder: Path) -> TimedTask:
        task = adapter_task(self.source.context(config, folder), self.plan)
        settings = {entry.name: getattr(task, entry.name) for entry in dataclasses.fields(task) if entry.init}
        return TimedTask(**settings, stamps_file=stamps)

    def _speed(self, task: TimedTask, began: float, ended: float, processes: int) -> Speed:
        stamps = json.loads(task.stamps_file.read_text())
        return Speed.of(stamps, began, ended, self.source.config.curriculum.batch_size / processes)


def combined_speed(speeds: Sequence[Speed]) -> Speed:
    """Speed of processes that train at the same time."""
    return Speed(
        rate=sum(speed.rate for speed in speeds),
        cpu=sum(speed.cpu for speed in speeds),
        startup=max(speed.startup for speed in speeds),
        end=max(speed.end for speed in speeds),
    )


def markdown(found: Mapping[str, Sequence[Speed]]) -> str:
    """The tables of medians over the repetitions, and of the ratios of each repetition."""
    lines = [
        "| way | samples/s | CPU s per step | start-up, s | after the last step, s |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, speeds in found.items():
        rate, cpu, startup, end = (
            statistics.median(getattr(speed, key) for speed in speeds) for key in ("rate", "cpu", "startup", "end")
        )
        lines.append(f"| {name} | {rate:.2f} | {cpu:.3f} | {startup:.1f} | {end:.1f} |")
    lines += ["", "| ratio | each repetition | median |", "| --- | --- | --- |"]
    for title, first, second, key in RATIOS:
        pairs = zip(found[first], found[second], strict=True)
        ratios = [getattr(one, key) / getattr(other, key) for one, other in pairs]
        each = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        lines.append(f"| {title} | {each} | {statistics.median(ratios):.3f} |")
    return "\n".join(lines)


RATIOS = (
    ("samples/s, one worker over bare", "trainer", "bare", "rate"),
    ("CPU s per step, bare over one worker", "bare", "trainer", "cpu"),
    ("samples/s, two workers over one", "two", "trainer", "rate"),
    ("samples/s, two bare loops over one: the limit", "bare x 2", "bare", "rate"),
)


def measure(measurement: Measurement, repetitions: int) -> dict[str, list[Speed]]:
    """Train in each way, in alternating order."""
    ways: dict[str, Callable[[], Speed]] = {
        "bare": lambda: measurement.bare(1),
        "trainer": lambda: measurement.trainer(1),
        "bare x 2": lambda: measurement.bare(2),
        "two": lambda: measurement.trainer(2),
    }
    found: dict[str, list[Speed]] = {name: [] for name in ways}
    for repetition in range(repetitions):
        for name in list(ways) if repetition % 2 == 0 else reversed(ways):
            speed = ways[name]()
            found[name].append(speed)
            print(f"{name}: {speed.rate:.2f} samples/s, {speed.cpu:.3f} CPU s per step", flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--run-folder", type=Path, required=True, help="of a finished run of the default profile")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args(arguments)
    values = {
        "curriculum.steps": options.steps,
        "curriculum.batch_size": options.batch_size,
        "train_adapter.sample_every": None,
    }
    set_benchmark_environment("micro")
    with tempfile.TemporaryDirectory() as name, temporary_folder(Path(name)):
        folder = Path(name)
        try:
            source = open_run(options.run_folder, _STAGES, values)
            plan = source.write_plan(source.config, folder)
            with local_cluster():
                found = measure(Measurement(source, plan, folder), options.repetitions)
        except (PipelineError, StageError) as error:
            sys.exit(str(error))
    print(f"\n{markdown(found)}")


if __name__ == "__main__":
    main()
