"""Memory and time that the stage `ingest` takes on the driver to make its list of URLs.

    python -m tests.benchmarks.url_list_memory                 # 2 million rows, a minute
    python -m tests.benchmarks.url_list_memory --rows 500000   # a quarter: the memory must be nearly the same

The rows are synthetic, of LAION's size: a URL of 80 letters, a caption of 60, scores; every tenth repeats a URL.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.ingest.config import IngestConfig
from stages.ingest.metadata import metadata_files, write_url_list

_ROWS_PER_FILE = 500_000


def write_metadata(folder: Path, rows: int) -> None:
    """As many files as it takes."""
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
    """In a process of its own, whose memory nothing else has touched."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    urls = write_url_list(metadata_files(metadata), IngestConfig(samples_per_shard=10_000), Path(folder))
    seconds = time.process_time() - began
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{urls.total} rows, {urls.wanted} wanted: at the peak {more:.0f} MB more, {seconds:.1f} seconds of CPU")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=2_000_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "metadata").mkdir()
        write_metadata(Path(name) / "metadata", arguments.rows)
        process = multiprocessing.get_context("spawn").Process(
            target=measure, args=(f"{name}/metadata", f"{name}/list")
        )
        process.start()
        process.join()


if __name__ == "__main__":
    main()
