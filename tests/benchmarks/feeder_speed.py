"""Batches per second of the feeder beside a bare `torch.utils.data.DataLoader` with the same work.

    python -m tests.benchmarks.feeder_speed                      # pictures of 512 pixels, a batch of 8
    python -m tests.benchmarks.feeder_speed --pictures micro     # pictures of 64 pixels, a batch of 16

Both read the same plan and the same JPEG pictures from datasets on disk, and run the same `ExamplePictures.prepare`, in
as many worker processes; the training's place is taken by a loop that copies each batch. What is timed lies between two
steps in the middle of a longer stream, so neither the start of processes nor what was made ahead by then counts. CPU
seconds are those of this process and of all below it, Ray's own among them. Ratios are medians over the repetitions,
which alternate who comes first.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from model.training.adapter_examples import ExamplePictures
from model.training.task import Prepared
from pipelines.execution.environment import temporary_folder
from stages.data.datasets import PictureStore, write_dataset
from stages.data.plan import PlanPictures, PlanReader
from stages.data.schemas import FRAMES, PLAN, SAMPLES
from stages.ray_tools.cluster import local_cluster
from stages.training.feeder import stream
from tests.benchmarks.environment import set_benchmark_environment
from tests.benchmarks.process_tree import TreeMeter


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a step is made of, and how many steps are timed."""

    side: int  # of the pictures, pixels; the targets' too
    reference_size: int
    batch: int
    skipped: int  # steps before the clock starts
    timed: int


WORKS = {
    "512": Work(side=512, reference_size=384, batch=8, skipped=24, timed=96),
    "micro": Work(side=64, reference_size=64, batch=16, skipped=96, timed=960),
}
#: Steps that are left when the clock stops.
_LEFT = 128
_PICTURES = 256


def write_inputs(folder: Path, work: Work) -> ExamplePictures:
    """A plan whose examples are pairs of different pictures, cut to up to a tenth; half of the pictures are not square.

    The pictures are smooth noise.
    """
    rng = np.random.default_rng(0)
    pictures = [_jpeg(rng, work.side, work.side * (4 + number % 2) // 4) for number in range(_PICTURES)]
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
        }
        for step in range(steps)
        for slot in range(work.batch)
    ]
    write_dataset(folder / "plan", _filled(PLAN, plan), PLAN, order=("step", "slot"))
    stores = PictureStore(folder / "samples", "sample_id"), PictureStore(folder / "frames", "frame_id")
    return ExamplePictures(
        rows=PlanReader(folder / "plan"),
        picture=PlanPictures(*stores),
        method="realcustom++",
        resolution=work.side,
        reference_size=work.reference_size,
        tiles=2,
    )


def _jpeg(rng: np.random.Generator, height: int, width: int) -> bytes:
    small = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize((width, height), Image.Resampling.BICUBIC).save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def _filled(schema: pa.Schema, rows: list[dict[str, Any]]) -> pa.Table:
    defaults = {pa.string(): "x", pa.int32(): 0, pa.binary(): b""}
    return pa.Table.from_pylist(
        [{field.name: defaults.get(field.type) for field in schema} | row for row in rows], schema=schema
    )


class _Steps(Dataset[Prepared]):
    """The steps of a feed, as the DataLoader's worker processes ask for them."""

    def __init__(self, feed: ExamplePictures, steps: int) -> None:
        self.feed, self.steps = feed, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Prepared:
        return self.feed.prepare(step, 0, 1)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Of one run."""

    steps_per_second: float
    cpu_seconds_per_step: float


def measure(batches: Iterator[Any], work: Work) -> Speed:
    """Consume `work.timed` steps after `work.skipped`."""
    for _ in range(work.skipped):
        _copy(next(batches))
    with TreeMeter(os.getpid()) as meter:
        begun = time.perf_counter()
        for _ in range(work.timed):
            _copy(next(batches))
        seconds = time.perf_counter() - begun
    return Speed(steps_per_second=work.timed / seconds, cpu_seconds_per_step=meter.cpu_seconds / work.timed)


def _copy(batch: Any) -> None:
    for array in batch.values():
        np.array(np.asarray(array))


def run_feeder(feed: ExamplePictures, work: Work, workers: int) -> Speed:
    """Ours."""
    steps = range(work.skipped + work.timed + _LEFT)
    with closing(stream(feed, steps, 0, 1, workers=workers)) as batches:
        return measure(batches, work)


def run_loader(feed: ExamplePictures, work: Work, workers: int) -> Speed:
    """torch's."""
    dataset = _Steps(feed, work.skipped + work.timed + _LEFT)
    loader = DataLoader(dataset, batch_size=None, num_workers=workers, multiprocessing_context="spawn")
    return measure(iter(loader), work)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pictures", choices=WORKS, default="512")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    work = WORKS[arguments.pictures]
    set_benchmark_environment("micro")
    ways: dict[str, Callable[[ExamplePictures, Work, int], Speed]] = {"feeder": run_feeder, "loader": run_loader}
    ratios: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as name, temporary_folder(Path(name)), local_cluster():
        feed = write_inputs(Path(name), work)
        for repetition in range(arguments.repetitions):
            found = {way: ways[way](feed, work, arguments.workers) for way in sorted(ways, reverse=repetition % 2 == 1)}
            ours, theirs = found["feeder"], found["loader"]
            ratios.append(
                (
                    ours.steps_per_second / theirs.steps_per_second,
                    ours.cpu_seconds_per_step / theirs.cpu_seconds_per_step,
                )
            )
            print(
                f"feeder {ours.steps_per_second:.1f} batches/s, {1000 * ours.cpu_seconds_per_step:.1f} ms of CPU each; "
                f"DataLoader {theirs.steps_per_second:.1f}, {1000 * theirs.cpu_seconds_per_step:.1f} ms; "
                f"ratios {ratios[-1][0]:.2f}, {ratios[-1][1]:.2f}",
                flush=True,
            )
    speed, cpu = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"median ratios: batches a second {speed:.2f}, CPU seconds {cpu:.2f}")


if __name__ == "__main__":
    main()
