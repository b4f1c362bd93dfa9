"""The folder of a benchmark's results: JSON files that are whole or not there, all made with one budget."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def write_whole(file: Path, content: Any) -> None:
    """Write a JSON file in one move."""
    scratch = file.with_name(f"{file.name}.{os.getpid()}")
    scratch.write_text(json.dumps(content))
    scratch.rename(file)


def claim(output: Path, budget: DataclassInstance) -> None:
    """Write the budget into the folder of the results.

    Raises:
        SystemExit: The folder holds results of another budget, or is a file.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        sys.exit(f"{output} is no folder; choose another --output.")
    note = output / "budget.json"
    if note.exists() and json.loads(note.read_text()) != asdict(budget):
        sys.exit(f"{output} holds results of another budget ({note}); choose another --output.")
    write_whole(note, asdict(budget))


@contextmanager
def claimed(file: Path) -> Iterator[bool]:
    """Try to lock `file`: whether this process holds the lock. The lock of a process that dies is released."""
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
