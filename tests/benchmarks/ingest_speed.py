"""Downloads per second of the stage `ingest` with all checks, compared with plain img2dataset.

    python -m tests.benchmarks.ingest_speed        # 3,000 pictures, three repetitions

Hardware and time: two idle cores; a few minutes. It needs no network.

Both fetch the same URLs from a loopback server (in its own process), in the same shards, with two processes of 16
threads each: the stage in two Ray tasks, img2dataset with its multiprocessing distributor. Both write img2dataset's
statistics for each shard. The benchmark reports two rates:

    overall       all pictures divided by the time from the start of the first shard to the end of the last one
    in a shard    the median of the shards' own rates. It leaves out the time that img2dataset needs to restart its
                  processes after every five shards, and favours img2dataset: while one of its processes restarts,
                  the other has the whole machine.

and two figures in CPU seconds, which hold on a busy machine too and exclude the server:

    all CPU           all processes during the call, including the start of img2dataset's processes
    CPU of a shard    shards fetched alternately in one process, by the stage's task and by img2dataset's own Downloader

Ratios are medians over the repetitions, whose order alternates.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.execution.environment import temporary_folder
from stages.data.loopback import serve_folder
from stages.data.schemas import REJECTED
from stages.ingest.config import IngestConfig
from stages.ingest.download import download_shards, fetch_shard, make_downloader
from stages.ingest.partitions import Partitions
from stages.ingest.url_list import UrlList
from stages.ray_tools.cluster import local_cluster
from tests.benchmarks.support.command_line import benchmark_parser
from tests.benchmarks.support.environment import set_benchmark_environment, silent_reporter
from tests.benchmarks.support.noise_pictures import jpeg, smooth_noise
from tests.benchmarks.support.process_tree import TreeMeter

SETTINGS = IngestConfig(image_size=256, samples_per_shard=250, allow_private_addresses=True)
_SIZE = (288, 384)  # height, width


def write_site(folder: Path, pictures: int) -> None:
    """Write JPEG files of smooth noise, about 30 kB each, like pictures on the web."""
    rng = np.random.default_rng(0)
    for number in range(pictures):
        (folder / f"{number}.jpg").write_bytes(jpeg(smooth_noise(rng, *_SIZE)))


def serve(folder: Path, pipe: Connection) -> None:
    """Send the base URL through `pipe`, and serve until an answer comes back."""
    with serve_folder(folder) as base:
        pipe.send(base)
        pipe.recv()


def write_list(file: Path, base: str, pictures: int) -> None:
    """Write the URL list in the stage's format, which img2dataset can read too."""
    numbers = [f"{number:06d}" for number in range(pictures)]
    urls = [f"{base}/{int(number)}.jpg" for number in numbers]
    table = pa.table({"sample_id": numbers, "url": urls, "caption": ["a picture"] * pictures})
    pq.write_table(table, file, row_group_size=SETTINGS.samples_per_shard)


def list_of(urls: Path) -> UrlList:
    """The stage's list in a file of `write_list`."""
    groups = pq.read_metadata(urls)
    sizes = [groups.row_group(number).num_rows for number in range(groups.num_row_groups)]
    rejected = Partitions(urls.with_suffix(".rejected"), REJECTED, 1)
    return UrlList(file=urls, shard_sizes=sizes, rejected_rows=rejected, rejected=Counter(), total=sum(sizes))


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Pictures per second of wall-clock time, and per CPU second of all processes (`all_cpu`)."""

    overall: float
    in_a_shard: float
    all_cpu: float


def rates_of(shards: Path, cpu_seconds: float) -> Rates:
    """Compute the rates from img2dataset's statistics."""
    found = [json.loads(file.read_text()) for file in shards.glob("*_stats.json")]
    seconds = max(shard["end_time"] for shard in found) - min(shard["start_time"] for shard in found)
    return Rates(
        overall=sum(shard["successes"] for shard in found) / seconds,
        in_a_shard=statistics.median(shard["successes"] / shard["duration"] for shard in found),
        all_cpu=sum(shard["successes"] for shard in found) / cpu_seconds,
    )


def run_stage(urls: Path, shards: Path) -> None:
    """Download with the stage."""
    download_shards(list_of(urls), shards, SETTINGS, silent_reporter())


def run_img2dataset(urls: Path, shards: Path) -> None:
    """Download with img2dataset."""
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
    """Run the stage and img2dataset, in alternating order."""
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
    """Fetch each shard in this process by the stage and by img2dataset, and print the CPU time of both."""
    stage, plain = [], []
    listed = list_of(urls)
    for number, size in enumerate(listed.shard_sizes):
        began = time.process_time()
        fetch_shard(listed.shard(number, columns=["sample_id", "url"]), number, folder, SETTINGS)
        if number:  # the first one includes the import of img2dataset
            stage.append((time.process_time() - began) / size)
        file = folder / "plain.arrow"
        rows = listed.shard(number, columns=["sample_id", "url"])
        downloader = make_downloader(folder, SETTINGS)
        downloader.resizer = downloader.resizer.resize  # img2dataset's own, without the checks around it
        downloader.retries = SETTINGS.retries
        began = time.process_time()
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
            writer.write_table(rows)
        downloader.download_shard((number, str(file)))
        plain.append((time.process_time() - began) / size)
    for ours, theirs in zip(stage, plain[1:], strict=True):
        print(f"CPU of a shard: stage {1e3 * ours:.2f} ms per picture, img2dataset {1e3 * theirs:.2f}", flush=True)
    ratio = statistics.median(plain[1:]) / statistics.median(stage)
    print(f"CPU of a shard: ratio of the medians {ratio:.2f}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--pictures", type=int, default=3000)
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args(arguments)
    set_benchmark_environment("micro")
    here, there = multiprocessing.Pipe()
    with tempfile.TemporaryDirectory() as name, temporary_folder(Path(name)), local_cluster():
        site, urls = Path(name) / "site", Path(name) / "urls.parquet"
        site.mkdir()
        write_site(site, options.pictures)
        server = multiprocessing.get_context("spawn").Process(target=serve, args=(site, there))
        server.start()
        write_list(urls, here.recv(), options.pictures)
        assert server.pid is not None
        found = measure(Path(name), urls, options.repetitions, server.pid)
        alternately = Path(name) / "alternately"
        alternately.mkdir()
        shards = multiprocessing.get_context("spawn").Process(target=measure_shards, args=(alternately, urls))
        shards.start()
        shards.join()
        here.send("end")
        server.join()
    print_rates(found)


def print_rates(found: Sequence[tuple[Rates, Rates]]) -> None:
    """Print the rates of the stage and of img2dataset, and their ratios."""
    for title, field, unit in (
        ("overall", "overall", "pictures/s"),
        ("in a shard", "in_a_shard", "pictures/s"),
        ("all CPU", "all_cpu", "pictures per CPU second"),
    ):
        pairs = [(getattr(stage, field), getattr(plain, field)) for stage, plain in found]
        for stage, plain in pairs:
            print(f"{title}: stage {stage:.0f} {unit}, img2dataset {plain:.0f}, ratio {stage / plain:.2f}")
        print(f"{title}: median ratio {statistics.median(stage / plain for stage, plain in pairs):.2f}")


if __name__ == "__main__":
    main()
