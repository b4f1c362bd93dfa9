"""What the driver and the workers of a training say to each other: through files in the training's folder.

Driver and workers share no disk when the folder is in an object store. There is no append there and each request takes
some milliseconds, so what rank 0 writes and asks goes beside the training, every second or two. The files outlive the
driver: another one, on another machine, goes on with them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from upath import UPath

from stages.storage import StorePath, write_whole

#: Between two requests to a store for the same thing.
STORE_SECONDS = 2.0


class Record(Protocol):
    """A file of lines that grows."""

    def write(self, text: str) -> object:
        """Append whole lines; a reader may see them somewhat later."""

    def flush(self) -> None:
        """Return when all lines can be read."""


@contextmanager
def open_record(file: StorePath) -> Iterator[Record]:
    """A record that goes on where an earlier training has stopped. At the end of the block all lines can be read."""
    if isinstance(file, Path):
        with file.open("a", buffering=1) as stream:
            stream.write("\n")  # ends a line that a killed training left incomplete
            yield stream
        return
    record = _StoredRecord(file)
    stop = threading.Event()
    thread = threading.Thread(target=_every, args=(STORE_SECONDS, stop, record.flush), daemon=True)
    thread.start()
    try:
        yield record
    except BaseException:
        stop.set()
        with suppress(Exception):  # the training's own error counts
            record.flush()
        raise
    stop.set()
    thread.join()
    record.flush()


class _StoredRecord:
    """A record in an object store: its lines are kept in memory, and the object is written again with more of them."""

    def __init__(self, file: UPath) -> None:
        self._file = file
        self._text = file.read_text() if file.exists() else ""
        self._written = len(self._text)
        self._writing = threading.Lock()

    def write(self, text: str) -> None:
        self._text += text

    def flush(self) -> None:
        with self._writing:
            if len(text := self._text) > self._written:
                write_whole(self._file, text)
                self._written = len(text)


@contextmanager
def watch(file: StorePath) -> Iterator[Callable[[], bool]]:
    """A function that says whether a file is there; quick enough for each step of a training."""
    if isinstance(file, Path):
        yield file.exists
        return
    found, stop = threading.Event(), threading.Event()

    def look() -> None:
        if file.exists():
            found.set()

    threading.Thread(target=_every, args=(STORE_SECONDS, stop, look), daemon=True).start()
    try:
        yield found.is_set
    finally:
        stop.set()


def _every(seconds: float, stop: threading.Event, action: Callable[[], None]) -> None:
    while not stop.wait(seconds):
        with suppress(Exception):  # the store is away: the next time, or the training itself notices
            action()


class RecordReader:
    """Reads what is new in a file of lines of JSON with "step", without steps that a resumed training repeated."""

    def __init__(self, file: StorePath) -> None:
        self._file = file
        self._position = 0
        self._last = 0

    def read(self) -> Iterator[dict[str, Any]]:
        """The lines since the last call; a line that is incomplete now comes later."""
        data = self._rest()
        for text in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
            self._position += len(text)
            if not text.endswith(b"}\n"):  # blank, or left incomplete by a kill
                continue
            try:
                line = json.loads(text)
            except ValueError:  # a worker that was cut off has written an earlier state of the file
                continue
            if line["step"] > self._last:
                self._last = line["step"]
                yield line

    def _rest(self) -> bytes:
        file, start = self._file, self._position
        if isinstance(file, Path):
            if not file.is_file():
                return b""
            with file.open("rb") as stream:
                stream.seek(start)
                return stream.read()
        try:
            size = int(file.fs.info(file.path)["size"])
            return bytes(file.fs.cat_file(file.path, start=start, end=size)) if size > start else b""
        except FileNotFoundError:
            return b""
