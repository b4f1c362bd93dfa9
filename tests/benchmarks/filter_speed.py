"""Pictures per second of the stage `filter`, all rules and duplicates on, beside a loop that only decodes them.

    python -m tests.benchmarks.filter_speed            # 48,000 pictures of 256 x 256, three repetitions, minutes

The loop runs in a process a core, which have been started before: each reads files of the dataset and decodes their
pictures to RGB with Pillow. The stage starts its own workers, so it is run on two datasets, one a tenth of the other:
`steady` are the pictures that the large one has more over the time, or the CPU seconds, that it takes longer;
`with start-up` are the large one's pictures over its whole time. CPU seconds are those of all processes; they hold on
a busy machine too. Repetitions alternate who comes first; the first run of the stage warms Ray's workers up.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.pool import Pool
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

from pipelines.execution.environment import temporary_folder
from stages.data.datasets import dataset_files
from stages.filter.verdicts import ROWS_PER_BATCH
from stages.ray_tools.cluster import local_cluster
from tests.benchmarks.environment import set_benchmark_environment
from tests.benchmarks.filter_samples import run_filter, write_samples
from tests.benchmarks.process_tree import TreeMeter


def decode_file(file: Path) -> int:
    """Decode all pictures of a file; returns how many there are."""
    count = 0
    for batch in pq.ParquetFile(file, pre_buffer=False).iter_batches(ROWS_PER_BATCH, columns=["picture"]):
        for data in batch["picture"].to_pylist():
            Image.open(io.BytesIO(data)).convert("RGB")
            count += 1
    return count


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What some pictures took."""

    pictures: int
    seconds: float
    cpu_seconds: float

    def __sub__(self, other: Cost) -> Cost:
        return Cost(
            pictures=self.pictures - other.pictures,
            seconds=self.seconds - other.seconds,
            cpu_seconds=self.cpu_seconds - other.cpu_seconds,
        )

    def __str__(self) -> str:
        return (
            f"{self.pictures / self.seconds:.0f} pictures/s, {1e3 * self.cpu_seconds / self.pictures:.2f} CPU ms each"
        )


def cost_of(work: Callable[[], None], pictures: int) -> Cost:
    """Do it."""
    with TreeMeter(os.getpid()) as meter:
        began = time.monotonic()
        work()
        seconds = time.monotonic() - began
    return Cost(pictures=pictures, seconds=seconds, cpu_seconds=meter.cpu_seconds)


def measure(folder: Path, pictures: int, pool: Pool, loop_first: bool) -> dict[str, Cost]:
    """The costs of the loop and of the stage, on both datasets."""
    few = pictures // 10

    def loop() -> None:
        decoded = sum(pool.imap_unordered(decode_file, dataset_files(folder / "all" / "samples")))
        assert decoded == pictures

    def stage(samples: str, count: int) -> None:
        run_filter(folder / samples, folder / "stage", count)

    costs = {"loop": cost_of(loop, pictures)} if loop_first else {}
    costs |= {
        "few": cost_of(lambda: stage("few", few), few),
        "all": cost_of(lambda: stage("all", pictures), pictures),
    }
    return costs if loop_first else costs | {"loop": cost_of(loop, pictures)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pictures", type=int, default=48_000)
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    set_benchmark_environment("sd15")
    ratios: dict[str, list[float]] = {"steady": [], "steady, CPU": [], "with start-up": []}
    with tempfile.TemporaryDirectory() as name, temporary_folder(Path(name)):
        folder, pictures = Path(name), arguments.pictures
        write_samples(folder / "all", pictures)
        write_samples(folder / "few", pictures // 10)
        with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool, local_cluster():
            pool.map(decode_file, dataset_files(folder / "few" / "samples"))
            first = cost_of(lambda: run_filter(folder / "few", folder / "stage", pictures // 10), pictures // 10)
            print(f"the stage's first run, {first.pictures} pictures: {first.seconds:.1f} s", flush=True)
            for repetition in range(arguments.repetitions):
                costs = measure(folder, pictures, pool, loop_first=repetition % 2 == 0)
                loop, whole = costs["loop"], costs["all"]
                steady = whole - costs["few"]
                ratios["steady"].append(steady.pictures / steady.seconds / (pictures / loop.seconds))
                ratios["steady, CPU"].append(loop.cpu_seconds / pictures / (steady.cpu_seconds / steady.pictures))
                ratios["with start-up"].append(loop.seconds / whole.seconds)
                print(f"loop {loop}; stage: steady {steady}, with start-up {whole}", flush=True)
    for title, found in ratios.items():
        print(f"{title}: ratios {', '.join(f'{r:.2f}' for r in found)}, median {statistics.median(found):.2f}")


if __name__ == "__main__":
    main()
