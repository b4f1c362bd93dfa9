"""Many or large files of a run folder, for one process: read ahead, and through a disk of its own.

A file in an object store costs a request for each piece that is read, and each takes some 30 ms. So what is read from
end to end is fetched whole, and many files are read at the same time. On a disk nothing is copied.
"""

from __future__ import annotations

import socket
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from model.files import printable_name
from stages.storage import REQUESTS, StorePath, copy_file, copy_folder

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@contextmanager
def working_folder(scratch: StorePath) -> Iterator[Path]:
    """A folder on this machine's disk for what only this process reads: on a disk `scratch`, else a temporary one."""
    if isinstance(scratch, Path):
        scratch.mkdir(parents=True, exist_ok=True)
        yield scratch
        return
    with tempfile.TemporaryDirectory(prefix="realword-") as folder:
        yield Path(folder)


@contextmanager
def fetched(file: StorePath) -> Iterator[Path]:
    """A file on this machine's disk while the block runs: itself, or a copy.

    For files that are read whole: the copy takes one request, however its reader jumps about.
    """
    if isinstance(file, Path):
        yield file
        return
    with tempfile.TemporaryDirectory(prefix="realword-") as folder:
        copy_file(file, Path(folder) / file.name)
        yield Path(folder) / file.name


@contextmanager
def fetched_folder(folder: StorePath, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[Path]:
    """A folder on this machine's disk while the block runs: itself, or a copy.

    Args:
        folder: The folder.
        wanted: Returns whether a file is copied, given its path relative to the folder.
    """
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="realword-") as place:
        copy_folder(folder, Path(place), wanted)
        yield Path(place)


@contextmanager
def fetched_files(folder: StorePath, names: Iterable[str]) -> Iterator[Path]:
    """A folder that has the named files on this machine's disk while the block runs: itself, or a copy of them.

    Names of which there is no file do no harm.
    """
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="realword-") as place:

        def fetch(name: str) -> None:
            with suppress(FileNotFoundError):
                copy_file(folder / name, Path(place) / name)

        with ThreadPoolExecutor(REQUESTS) as pool:
            list(pool.map(fetch, names))
        yield Path(place)


def read_each(function: Callable[[_Item], _Result], items: Iterable[_Item], folder: StorePath) -> Iterator[_Result]:
    """What `function` returns for each item, in order. If `folder` is in a store, threads read some items ahead.

    Args:
        folder: Where what the function reads lies.
    """
    if isinstance(folder, Path):
        yield from map(function, items)
        return
    waiting: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(REQUESTS) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > REQUESTS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def unseen(setting: str, place: StorePath) -> str:
    """What to do when a worker does not find what the driver has found there."""
    return (
        f"{setting}: the machine {socket.gethostname()} has no {printable_name(str(place))}: put the data where all "
        "nodes of the cluster see it, such as an object store, and give its URI."
    )
