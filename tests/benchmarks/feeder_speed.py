"""Batches per second of the feeder, compared with a bare `torch.utils.data.DataLoader` that does the same work.

    python -m tests.benchmarks.feeder_speed                      # pictures of 512 pixels, a batch of 8
    python -m tests.benchmarks.feeder_speed --pictures micro     # pictures of 64 pixels, a batch of 16

Hardware and time: two idle cores; a few minutes.

Both read the same plan and the same JPEG pictures from datasets on disk and run the same `ExamplePictures.prepare` in
the same number of worker processes; a loop that copies each batch takes the role of the training. The timed steps lie
in the middle of a longer stream, so that neither the start of processes nor the batches prepared by then count. CPU
seconds are those of this process and all its descendants, including Ray's own. Ratios are medians over the
repetitions, whose order alternates.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch.utils.data import DataLoader, Dataset

from model.training.adapter_examples import ExamplePictures
from model.training.task import Prepared
from pipelines.execution.environment import temporary_folder
from stages.data.datasets import PictureStore, write_dataset
from stages.data.plan import PlanPictures, PlanReader
from stages.data.schemas import FRAMES, PLAN, SAMPLES
from stages.ray_tools.cluster import local_cluster
from stages.training.feeder import stream
from tests.benchmarks.support.command_line import benchmark_parser
from tests.benchmarks.support.environment import set_benchmark_environment
from tests.benchmarks.support.noise_pictures import jpeg, smooth_noise
from tests.benchmarks.support.process_tree import TreeMeter


@dataclass(frozen=True, kw_only=True)
class Work:
    """The pictures of a step, and the number of steps."""

    side: int  # of the pictures and the targets, pixels
    reference_size: int
    batch: int
    skipped: int  # steps before the timed ones
    timed: int


WORKS = {
    "512": Work(side=512, reference_size=384, batch=8, skipped=24, timed=96),
    "micro": Work(side=64, reference_size=64, batch=16, skipped=96, timed=960),
}
_LEFT = 128  # steps after the timed ones
_PICTURES = 256


def write_inputs(folder: Path, work: Work) -> ExamplePictures:
    """Write a plan whose examples are pairs of different pictures, cropped to at least a tenth; half are not square."""
    rng = np.random.default_rng(0)
    pictures = [jpeg(smooth_noise(rng, work.side, work.side * (4 + number % 2) // 4)) for number in range(_PICTURES)]
    samples = [{"sample_id": f"sample-{number}", "picture": picture} for number, picture in enumerate(pictures)]
    write_dataset(folder / "samples", _filled(SAMPLES, samples), SAMPLES)
    write_dataset(folder / "frames", FRAMES.empty_table(), FRAMES)
    steps = work.skipped + work.timed + _LEFT
    plan = [
        {
            "step": step,
            "slot": slot,
            "source": "image_text",
            "reference_id": f"sample-{rng.integers(_PICTURES)}",
            "target_id": f"sample-{rng.integers(_PICTURES)}",
            "crop_ratio": float(rng.uniform(1, 10**0.5)),
            **{name: float(rng.random()) for name in ("crop_x", "crop_y", "target_crop_x", "target_crop_y")},
            **dict.fromkeys(("height", "width", "original_height", "original_width"), work.side),
        }
        for step in range(steps)
        for slot in range(work.batch)
    ]
    write_dataset(folder / "plan", _filled(PLAN, plan), PLAN, order=("step", "slot"))
    stores = PictureStore(folder / "samples", "sample_id"), PictureStore(folder / "frames", "frame_id")
    return ExamplePictures(
        rows=PlanReader(folder / "plan"),
        picture=PlanPictures(*stores),
        reference_size=work.reference_size,
        tiles=2,
    )


def _filled(schema: pa.Schema, rows: list[dict[str, Any]]) -> pa.Table:
    defaults = {pa.string(): "x", pa.int32(): 0, pa.binary(): b""}
    return pa.Table.from_pylist(
        [{field.name: defaults.get(field.type) for field in schema} | row for row in rows], schema=schema
    )


class _Steps(Dataset[Prepared]):
    """The steps of a feed as a dataset for the DataLoader."""

    def __init__(self, feed: ExamplePictures, steps: int) -> None:
        self.feed, self.steps = feed, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Prepared:
        return self.feed.prepare(step, 0, 1)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Speed of one run."""

    steps_per_second: float
    cpu_seconds_per_step: float


def measure(batches: Iterator[Any], work: Work) -> Speed:
    """Skip `work.skipped` steps, then time `work.timed` steps."""
    for _ in range(work.skipped):
        _copy(next(batches))
    with TreeMeter(os.getpid()) as meter:
        began = time.perf_counter()
        for _ in range(work.timed):
            _copy(next(batches))
        seconds = time.perf_counter() - began
    return Speed(steps_per_second=work.timed / seconds, cpu_seconds_per_step=meter.cpu_seconds / work.timed)


def _copy(batch: Any) -> None:
    for array in batch.values():
        np.array(np.asarray(array))


def run_feeder(feed: ExamplePictures, work: Work, workers: int) -> Speed:
    """Measure the project's feeder."""
    steps = range(work.skipped + work.timed + _LEFT)
    with closing(stream(feed, steps, 0, 1, workers=workers)) as batches:
        return measure(batches, work)


def run_loader(feed: ExamplePictures, work: Work, workers: int) -> Speed:
    """Measure torch's DataLoader."""
    dataset = _Steps(feed, work.skipped + work.timed + _LEFT)
    loader = DataLoader(dataset, batch_size=None, num_workers=workers, multiprocessing_context="spawn")
    return measure(iter(loader), work)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--pictures", choices=WORKS, default="512")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args(arguments)
    work = WORKS[options.pictures]
    set_benchmark_environment("micro")
    ways: dict[str, Callable[[ExamplePictures, Work, int], Speed]] = {"feeder": run_feeder, "loader": run_loader}
    ratios: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as name, temporary_folder(Path(name)), local_cluster():
        feed = write_inputs(Path(name), work)
        for repetition in range(options.repetitions):
            order = sorted(ways, reverse=repetition % 2 == 1)
            found = {way: ways[way](feed, work, options.workers) for way in order}
            ratios.append(_compare(found["feeder"], found["loader"]))
    speed, cpu = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"median ratios: batches per second {speed:.2f}, CPU seconds {cpu:.2f}")


def _compare(feeder: Speed, loader: Speed) -> tuple[float, float]:
    """Print both speeds; returns the ratios of batches per second and of CPU seconds."""
    speed = feeder.steps_per_second / loader.steps_per_second
    cpu = feeder.cpu_seconds_per_step / loader.cpu_seconds_per_step
    print(
        f"feeder {feeder.steps_per_second:.1f} batches/s, {1000 * feeder.cpu_seconds_per_step:.1f} ms of CPU each; "
        f"DataLoader {loader.steps_per_second:.1f}, {1000 * loader.cpu_seconds_per_step:.1f} ms; "
        f"ratios {speed:.2f}, {cpu:.2f}",
        flush=True,
    )
    return speed, cpu


if __name__ == "__main__":
    main()
