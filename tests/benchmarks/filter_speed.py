"""Pictures per second of the stage `filter` with all rules, compared with a loop that only decodes the pictures.

    python -m tests.benchmarks.filter_speed        # 48,000 pictures of 256 x 256, three repetitions

Hardware and time: all cores, idle, some GB of disk; minutes on two cores.

The loop runs in one process per core, started beforehand: each process reads files of the dataset and decodes their
pictures to RGB with Pillow. The stage starts its own workers, so it runs on two datasets, one a tenth of the other.
`steady` is the difference in pictures divided by the difference in time (or CPU seconds); `with start-up` is the large
dataset's pictures divided by its whole time. CPU seconds are those of all processes and hold on a busy machine too. The
order alternates between repetitions; the first run of the stage only warms up Ray's workers.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.pool import Pool
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

from pipelines.execution.environment import temporary_folder
from stages.data.datasets import dataset_files
from stages.filter.verdicts import ROWS_PER_BATCH
from stages.ray_tools.cluster import local_cluster
from stages.storage import StorePath, parquet_source
from tests.benchmarks.support.command_line import benchmark_parser
from tests.benchmarks.support.environment import set_benchmark_environment
from tests.benchmarks.support.filter_samples import run_filter, write_samples
from tests.benchmarks.support.process_tree import TreeMeter


def decode_file(file: StorePath) -> int:
    """Decode all pictures of a file, and count them."""
    count = 0
    for batch in pq.ParquetFile(parquet_source(file), pre_buffer=False).iter_batches(
        ROWS_PER_BATCH, columns=["picture"]
    ):
        for data in batch["picture"].to_pylist():
            Image.open(io.BytesIO(data)).convert("RGB")
            count += 1
    return count


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Time to process a number of pictures."""

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
    """Do the work, and meter this process and its descendants."""
    with TreeMeter(os.getpid()) as meter:
        began = time.monotonic()
        work()
        seconds = time.monotonic() - began
    return Cost(pictures=pictures, seconds=seconds, cpu_seconds=meter.cpu_seconds)


def measure(folder: Path, pictures: int, pool: Pool, loop_first: bool) -> dict[str, Cost]:
    """Cost of the loop on the large dataset ("loop"), and of the stage on the small ("few") and the large ("all")."""
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--pictures", type=int, default=48_000)
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args(arguments)
    set_benchmark_environment("sd15")
    ratios: dict[str, list[float]] = {"steady": [], "steady, CPU": [], "with start-up": []}
    with tempfile.TemporaryDirectory() as name, temporary_folder(Path(name)):
        folder, pictures = Path(name), options.pictures
        write_samples(folder / "all", pictures)
        write_samples(folder / "few", pictures // 10)
        with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool, local_cluster():
            pool.map(decode_file, dataset_files(folder / "few" / "samples"))
            first = cost_of(lambda: run_filter(folder / "few", folder / "stage", pictures // 10), pictures // 10)
            print(f"the stage's first run, {first.pictures} pictures: {first.seconds:.1f} s", flush=True)
            for repetition in range(options.repetitions):
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
