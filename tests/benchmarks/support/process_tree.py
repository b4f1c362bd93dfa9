"""CPU time and memory of a process and its descendants, sampled from the kernel's counters (Linux)."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

_SECONDS_BETWEEN_SAMPLES = 0.2


class TreeMeter:
    """A context manager; inside it, a thread samples the process `root` and its descendants.

    Memory is PSS: a page that processes share, such as those of Ray's object store, counts once, divided among them;
    mapped files that a process has read count too. Usage between a process's last sample and its end is missed.

    Args:
        root: Process id.
        without: Process id of a descendant to leave out.
        memory: Whether to sample memory too.

    Attributes:
        cpu_seconds: User and system time of all processes since the start of the block.
        peak_root: Peak memory of `root` alone, bytes.
        peak_all: Peak memory of all processes together, bytes.
    """

    def __init__(self, root: int, without: int | None = None, memory: bool = False) -> None:
        self.peak_root = self.peak_all = 0
        self._root, self._without, self._memory = psutil.Process(root), without, memory
        self._before: dict[psutil.Process, float] = {}
        self._now: dict[psutil.Process, float] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def cpu_seconds(self) -> float:
        """User and system time of all processes since the start of the block."""
        return sum(seconds - self._before.get(process, 0.0) for process, seconds in self._now.items())

    def __enter__(self) -> Self:
        self._sample()
        self._before = dict(self._now)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        self._sample()

    def _run(self) -> None:
        while not self._end.wait(_SECONDS_BETWEEN_SAMPLES):
            self._sample()

    def _sample(self) -> None:
        memory: dict[psutil.Process, int] = {}
        for process in self._tree():
            with suppress(psutil.Error, OSError):  # it has ended
                times = process.cpu_times()
                self._now[process] = times.user + times.system
                if self._memory:
                    memory[process] = _proportional_bytes(process.pid)
        self.peak_root = max(self.peak_root, memory.get(self._root, 0))
        self.peak_all = max(self.peak_all, sum(memory.values()))

    def _tree(self) -> list[psutil.Process]:
        try:
            found = [self._root, *self._root.children(recursive=True)]
        except psutil.Error:
            return []
        return [process for process in found if process.pid != self._without]


def _proportional_bytes(process: int) -> int:
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0
