"""What `generate` is doing, on standard error: its standard output is paths, which other programs read."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pipelines.cli.progress import SECONDS_BETWEEN_LINES


class PaintingProgress(Protocol):
    """Shows what is being done."""

    def show(self, text: str, done: int = 0, total: int = 0) -> None:
        """A part of the work, and how much of it is done, if that is known."""


class _Lines:
    """A line for each part, and for its progress from time to time."""

    def __init__(self) -> None:
        self._text, self._printed = "", 0.0

    def show(self, text: str, done: int = 0, total: int = 0) -> None:
        now = time.monotonic()
        if text != self._text or now - self._printed >= SECONDS_BETWEEN_LINES:
            print(f"{text}: {done} of {total}" if total else text, file=sys.stderr, flush=True)
            self._text, self._printed = text, now


class _Bar:
    """One line that is redrawn, and gone at the end."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._task = progress, progress.add_task("", total=None, share="")

    def show(self, text: str, done: int = 0, total: int = 0) -> None:
        share = f"{done}/{total}" if total else ""
        self._progress.update(self._task, description=text, completed=done, total=total or None, share=share)


@contextmanager
def painting_progress(console: Console | None = None) -> Iterator[PaintingProgress]:
    """The progress that suits the console, by default standard error, for the block."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _Lines()
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[share]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as progress:
        yield _Bar(progress)
