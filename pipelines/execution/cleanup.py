"""A run's last process: `python -m pipelines.execution.cleanup FOLDER`, started by `environment.temporary_folder`.

Its standard input stays open as long as the run lives. When the run ends, in whatever way, the warden ends every
process that works in FOLDER, and removes FOLDER. Ray's own processes do follow a runner that is killed, but some of
them only after a minute, and they leave their files.
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
    """Wait for the end of the run, and clean up."""
    folder = Path(sys.argv[1])
    sys.stdin.read()
    while found := processes_of(folder):
        for process in found:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # the folders of other runs are beside it
        folder.parent.rmdir()


def processes_of(folder: Path) -> list[int]:
    """The processes of this user that were started with `folder` as RAY_TMPDIR or have a file in it open.

    Nobody else uses a run's own folder. The environment alone does not tell: Ray writes its processes' titles over it.
    The run itself is left alone, for in an orderly end it is waiting for this process.
    """
    spared = (os.getpid(), os.getppid())
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in spared:
            with suppress(OSError):  # gone, or another user's
                if _was_started_with(entry, folder) or _has_open(entry, folder):
                    found.append(int(entry.name))
    return found


def _was_started_with(process: Path, folder: Path) -> bool:
    return f"RAY_TMPDIR={folder}".encode() in (process / "environ").read_bytes().split(b"\0")


def _has_open(process: Path, folder: Path) -> bool:
    return any(os.readlink(file).startswith(f"{folder}/") for file in (process / "fd").iterdir())


if __name__ == "__main__":
    main()
