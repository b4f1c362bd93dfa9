"""Memory that the stage `filter` takes at its peak, on 10,000 and on 50,000 pictures.

    python -m tests.benchmarks.filter_memory           # some minutes
    python -m tests.benchmarks.filter_memory 10000 100000

Each size runs in a process of its own, the driver, with a Ray of its own; the peaks are those of the driver and of it
and all Ray's processes together, as PSS (see `process_tree.py`), five samples a second.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from pathlib import Path

from pipelines.execution.environment import set_environment, temporary_folder
from stages.ray_tools.cluster import local_cluster
from tests.benchmarks.filter_samples import run_filter, write_samples
from tests.benchmarks.process_tree import TreeMeter


def drive(folder: Path, pictures: int) -> None:
    """In a process of its own, whose memory nothing else has touched."""
    with temporary_folder(folder), local_cluster():
        run_filter(folder, folder / "stage", pictures)


def measure(pictures: int) -> TreeMeter:
    """The peaks on so many pictures."""
    with tempfile.TemporaryDirectory() as name:
        write_samples(Path(name), pictures)
        process = multiprocessing.get_context("spawn").Process(target=drive, args=(Path(name), pictures))
        process.start()
        assert process.pid is not None
        with TreeMeter(process.pid, memory=True) as meter:
            process.join()
        if process.exitcode:
            raise SystemExit(f"the filter has failed on {pictures} pictures")
    return meter


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("pictures", type=int, nargs="*", default=[10_000, 50_000])
    arguments = parser.parse_args()
    set_environment("sd15")
    found = []
    for pictures in arguments.pictures:
        meter = measure(pictures)
        found.append(meter)
        print(
            f"{pictures} pictures: driver {meter.peak_root / 1e6:.0f} MB, all {meter.peak_all / 1e6:.0f} MB", flush=True
        )
    growth = found[-1].peak_all / found[0].peak_all - 1
    print(f"from the first to the last: driver {found[-1].peak_root / found[0].peak_root - 1:+.1%}, all {growth:+.1%}")


if __name__ == "__main__":
    main()
