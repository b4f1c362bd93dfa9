"""Peak memory of the stage `filter` on 10,000 and on 50,000 pictures.

    python -m tests.benchmarks.filter_memory
    python -m tests.benchmarks.filter_memory 10000 100000

Hardware and time: two cores, 2 GB of memory; a few minutes by default.

Each size runs in its own process, the driver, with its own Ray. The peaks are those of the driver alone and of the
driver with all of Ray's processes, as PSS (`support/process_tree.py`), five samples a second.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipelines.execution.environment import set_environment, temporary_folder
from stages.ray_tools.cluster import local_cluster
from tests.benchmarks.support.command_line import benchmark_parser
from tests.benchmarks.support.filter_samples import run_filter, write_samples
from tests.benchmarks.support.process_tree import TreeMeter


def drive(folder: Path, pictures: int) -> None:
    """Run the stage. Runs in its own process, whose memory starts low."""
    with temporary_folder(folder), local_cluster():
        run_filter(folder, folder / "stage", pictures)


def measure(pictures: int) -> TreeMeter:
    """Run the stage on `pictures` pictures in a new process, and meter it."""
    with tempfile.TemporaryDirectory() as name:
        write_samples(Path(name), pictures)
        process = multiprocessing.get_context("spawn").Process(target=drive, args=(Path(name), pictures))
        process.start()
        assert process.pid is not None
        with TreeMeter(process.pid, memory=True) as meter:
            process.join()
        if process.exitcode:
            raise SystemExit(f"the filter failed on {pictures} pictures")
    return meter


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("pictures", type=int, nargs="*", default=[10_000, 50_000])
    options = parser.parse_args(arguments)
    set_environment("sd15")
    found = []
    for pictures in options.pictures:
        meter = measure(pictures)
        found.append(meter)
        print(
            f"{pictures} pictures: driver {meter.peak_root / 1e6:.0f} MB, all {meter.peak_all / 1e6:.0f} MB", flush=True
        )
    growth = found[-1].peak_all / found[0].peak_all - 1
    print(f"from the first to the last: driver {found[-1].peak_root / found[0].peak_root - 1:+.1%}, all {growth:+.1%}")


if __name__ == "__main__":
    main()
