"""Downloads per second of the stage `ingest`, all checks on, beside plain img2dataset's.

    python -m tests.benchmarks.ingest_speed            # 3,000 pictures, three repetitions, some minutes

Both fetch the same URLs of a loopback server in a process of its own, in the same shards, with two processes of 16
threads: the stage in two Ray tasks, img2dataset by its multiprocessing distributor. Both write img2dataset's statistics
a shard. Two rates: `overall`, all pictures over the time from the first shard's start to the last one's end; and
`in a shard`, the median of the shards' own rates, which leaves out what img2dataset loses between shards by starting
its processes anew after every five (it flatters img2dataset: while one of its processes starts, the other one has
the machine to itself). Ratios are medians over the repetitions, which alternate who comes first.

Two accounts of CPU seconds, which hold on a busy machine too; both are without the server's: `all CPU`, of all
processes from the call to its end, the start of img2dataset's included; and `CPU of a shard`: shards fetched by turns
in one process, once by the stage's task and once by img2dataset's Downloader as it is.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipelines.execution.cluster import local_cluster
from pipelines.execution.environment import temporary_folder
from stages.contract import Reporter
from stages.data.loopback import serve_folder
from stages.ingest.config import IngestConfig
from stages.ingest.download import download_shards, fetch_shard, make_downloader, shard_sizes
from tests.benchmarks.environment import set_benchmark_environment
from tests.benchmarks.process_tree import TreeMeter

SETTINGS = IngestConfig(image_size=256, samples_per_shard=250, allow_private_addresses=True)
_SIZE = (384, 288)


def write_site(folder: Path, pictures: int) -> None:
    """Smooth noise as JPEG: about 30 kB each, as on the web."""
    rng = np.random.default_rng(0)
    for number in range(pictures):
        small = Image.fromarray(rng.integers(0, 256, (36, 48, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        small.resize(_SIZE, Image.Resampling.BICUBIC).save(buffer, format="JPEG", quality=90)
        (folder / f"{number}.jpg").write_bytes(buffer.getvalue())


def serve(folder: Path, pipe: Connection) -> None:
    """Tell the base URL, and serve until somebody answers."""
    with serve_folder(folder, 0) as base:
        pipe.send(base)
        pipe.recv()


def write_list(file: Path, base: str, pictures: int) -> None:
    """The list of URLs as the stage writes it, which img2dataset reads too."""
    numbers = [f"{number:06d}" for number in range(pictures)]
    urls = [f"{base}/{int(number)}.jpg" for number in numbers]
    table = pa.table({"sample_id": numbers, "url": urls, "caption": ["a picture"] * pictures})
    pq.write_table(table, file, row_group_size=SETTINGS.samples_per_shard)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Pictures kept a second, of the clock and of all processes' CPU time."""

    overall: float
    in_a_shard: float
    all_cpu: float


def rates_of(shards: Path, cpu_seconds: float) -> Rates:
    """From img2dataset's statistics."""
    found = [json.loads(file.read_text()) for file in shards.glob("*_stats.json")]
    seconds = max(shard["end_time"] for shard in found) - min(shard["start_time"] for shard in found)
    return Rates(
        overall=sum(shard["successes"] for shard in found) / seconds,
        in_a_shard=statistics.median(shard["successes"] / shard["duration"] for shard in found),
        all_cpu=sum(shard["successes"] for shard in found) / cpu_seconds,
    )


def run_stage(urls: Path, shards: Path) -> None:
    """The stage's download."""
    download_shards(urls, shards, SETTINGS, None, Reporter(emit=lambda event: None))


def run_img2dataset(urls: Path, shards: Path) -> None:
    """img2dataset's own."""
    import img2dataset

    img2dataset.download(
        url_list=str(urls),
        input_format="parquet",
        url_col="url",
        save_additional_columns=["sample_id"],
        output_folder=str(shards),
        output_format="parquet",
        processes_count=SETTINGS.processes,
        thread_count=SETTINGS.threads,
        number_sample_per_shard=SETTINGS.samples_per_shard,
        image_size=SETTINGS.image_size,
        resize_mode="keep_ratio",
        resize_only_if_bigger=True,
        min_image_size=SETTINGS.min_image_size,
        max_aspect_ratio=SETTINGS.max_aspect_ratio,
        timeout=SETTINGS.timeout_seconds,
        retries=SETTINGS.retries,
        compute_hash=None,
    )


def measure(folder: Path, urls: Path, repetitions: int, server: int) -> list[tuple[Rates, Rates]]:
    """The rates of the stage and of img2dataset, in alternating order."""
    ways: dict[str, Callable[[Path, Path], None]] = {"stage": run_stage, "img2dataset": run_img2dataset}
    found = []
    for repetition in range(repetitions):
        rates = {}
        for name in sorted(ways, reverse=repetition % 2 == 0):
            shards = folder / f"{name}{repetition}"
            shards.mkdir()
            with TreeMeter(os.getpid(), without=server) as meter:
                ways[name](urls, shards)
            rates[name] = rates_of(shards, meter.cpu_seconds)
        found.append((rates["stage"], rates["img2dataset"]))
    return found


def measure_shards(folder: Path, urls: Path) -> None:
    """Fetch the shards by turns with all checks and without, in this process, and print what it took of CPU time."""
    ours, plain = [], []
    for number, size in enumerate(shard_sizes(urls)):
        began = time.process_time()
        fetch_shard(urls, number, folder, SETTINGS, None)
        if number:  # the first has imported img2dataset
            ours.append((time.process_time() - began) / size)
        file = folder / "plain.arrow"
        rows = pq.ParquetFile(urls).read_row_group(number, columns=["sample_id", "url"])
        downloader = make_downloader(folder, SETTINGS)
        downloader.resizer = downloader.resizer.resize  # img2dataset's own, without the checks around it
        downloader.retries = SETTINGS.retries
        began = time.process_time()
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
            writer.write_table(rows)
        downloader.download_shard((number, str(file)))
        plain.append((time.process_time() - began) / size)
    for mine, theirs in zip(ours, plain[1:], strict=True):
        print(f"CPU of a shard: stage {1e3 * mine:.2f} ms a picture, img2dataset {1e3 * theirs:.2f}", flush=True)
    ratio = statistics.median(plain[1:]) / statistics.median(ours)
    print(f"CPU of a shard: ratio of the medians {ratio:.2f}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pictures", type=int, default=3000)
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    set_benchmark_environment("micro")
    ours, theirs = multiprocessing.Pipe()
    with tempfile.TemporaryDirectory() as name, temporary_folder(Path(name)), local_cluster():
        site, urls = Path(name) / "site", Path(name) / "urls.parquet"
        site.mkdir()
        write_site(site, arguments.pictures)
        server = multiprocessing.get_context("spawn").Process(target=serve, args=(site, theirs))
        server.start()
        write_list(urls, ours.recv(), arguments.pictures)
        assert server.pid is not None
        found = measure(Path(name), urls, arguments.repetitions, server.pid)
        by_turns = Path(name) / "by_turns"
        by_turns.mkdir()
        shards = multiprocessing.get_context("spawn").Process(target=measure_shards, args=(by_turns, urls))
        shards.start()
        shards.join()
        ours.send("end")
        server.join()
    for title, field, unit in (
        ("overall", "overall", "pictures/s"),
        ("in a shard", "in_a_shard", "pictures/s"),
        ("all CPU", "all_cpu", "pictures a CPU second"),
    ):
        pairs = [(getattr(stage, field), getattr(plain, field)) for stage, plain in found]
        for stage, plain in pairs:
            print(f"{title}: stage {stage:.0f} {unit}, img2dataset {plain:.0f}, ratio {stage / plain:.2f}")
        print(f"{title}: median ratio {statistics.median(stage / plain for stage, plain in pairs):.2f}")


if __name__ == "__main__":
    main()
