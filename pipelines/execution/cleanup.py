"""Cleans up after a run: `python -m pipelines.execution.cleanup FOLDER`, started by `environment.temporary_folder`.

The run holds this process's standard input open. When the run ends, even by SIGKILL, this process kills every process
that uses FOLDER, and removes FOLDER. Ray's processes also end after a killed runner, but some of them only after a
minute, and they leave their files behind.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path


def main() -> None:
    """Wait for the end of the run, then clean up."""
    folder = Path(sys.argv[1])
    # `ray job stop` and batch systems send it to every process of the run; the run itself ends this one.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stdin.read()
    while found := processes_of(folder):
        for process in found:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # it holds the folders of other runs
        folder.parent.rmdir()


def processes_of(folder: Path) -> list[int]:
    """The processes of this user that were started with `folder` as RAY_TMPDIR or have opened a file in it.

    The environment alone is not enough, because Ray overwrites it with the titles of its processes. This process is
    not included, nor is the run itself, which waits for this process when it ends normally.
    """
    excluded = (os.getpid(), os.getppid())
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in excluded:
            with suppress(OSError):  # ended, or another user's
                if _was_started_with(entry, folder) or _has_open(entry, folder):
                    found.append(int(entry.name))
    return found


def _was_started_with(process: Path, folder: Path) -> bool:
    return f"RAY_TMPDIR={folder}".encode() in (process / "environ").read_bytes().split(b"\0")


def _has_open(process: Path, folder: Path) -> bool:
    return any(os.readlink(file).startswith(f"{folder}/") for file in (process / "fd").iterdir())


if __name__ == "__main__":
    main()
