"""Memory and time of the URL list that the stage `ingest` makes on the driver.

    python -m tests.benchmarks.url_list_memory                 # 2 million rows
    python -m tests.benchmarks.url_list_memory --rows 500000   # a quarter of them needs nearly the same memory

Hardware and time: one core, 0.5 GB of memory; a minute.

The rows are synthetic and as large as LAION's: a URL of 80 characters, a caption of 60, scores. Every tenth row
repeats a URL.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.ingest.config import IngestConfig
from stages.ingest.metadata import metadata_files
from stages.ingest.url_list import write_url_list
from tests.benchmarks.support.command_line import benchmark_parser

_ROWS_PER_FILE = 500_000


def write_metadata(folder: Path, rows: int) -> None:
    """Write Parquet files of 500,000 rows each."""
    for start in range(0, rows, _ROWS_PER_FILE):
        numbers = np.arange(start, min(start + _ROWS_PER_FILE, rows))
        shown = np.where(numbers % 10 == 9, numbers // 2, numbers)
        score = np.random.default_rng(start).random(len(numbers), dtype=np.float32)
        columns = {
            "URL": [
                f"https://pictures{number % 1000:04d}.example.com/uploads/2021/07/{number:036d}.jpg" for number in shown
            ],
            "TEXT": [f"a photograph of the thing with the number {number:018d}" for number in numbers],
            **dict.fromkeys(("similarity", "punsafe", "pwatermark", "AESTHETIC_SCORE"), score),
        }
        pq.write_table(pa.table(columns), folder / f"{start:012d}.parquet")


def measure(metadata: str, folder: str) -> None:
    """Make the list, and print its costs. Runs in its own process, whose peak memory starts low."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    urls = write_url_list(metadata_files(metadata), IngestConfig(samples_per_shard=10_000), Path(folder))
    seconds = time.process_time() - began
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{urls.total} rows, {urls.wanted} wanted: at the peak {more:.0f} MB more, {seconds:.1f} seconds of CPU")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "metadata").mkdir()
        write_metadata(Path(name) / "metadata", options.rows)
        process = multiprocessing.get_context("spawn").Process(
            target=measure, args=(f"{name}/metadata", f"{name}/list")
        )
        process.start()
        process.join()


if __name__ == "__main__":
    main()
