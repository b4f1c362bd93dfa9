"""Tables larger than the memory: rows are distributed to files by a hash, and read back a file at a time."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

ROWS_PER_PARTITION = 250_000  # of metadata: some 60 MB
MAX_PARTITIONS = 250  # each is an open file

#: Numbers below 2^32 that distribute the rows: partition n of p holds the keys from n / p to (n + 1) / p of 2^32.
Keys = NDArray[np.uint64]


class Partitions:
    """Tables on disk. Rows with the same key come back together, in the order in which they were added.

    Args:
        folder: Where the files are written. Earlier content is removed.
        schema: The schema of the rows.
        rows: The largest number of rows expected, which determines the number of files.
    """

    def __init__(self, folder: Path, schema: pa.Schema, rows: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folder, self.schema = folder, schema
        self.count = min(MAX_PARTITIONS, max(1, -(-rows // ROWS_PER_PARTITION)))
        self._writers: dict[int, tuple[pa.NativeFile, pa.ipc.RecordBatchStreamWriter]] = {}

    def add(self, table: pa.Table, keys: Keys) -> None:
        """Append rows, each with its key."""
        if not table.num_rows:
            return
        numbers = (keys * np.uint64(self.count)) >> np.uint64(32)
        order = np.argsort(numbers, kind="stable")
        table = table.select(self.schema.names).cast(self.schema).take(pa.array(order))
        found, starts = np.unique(numbers[order], return_index=True)
        for number, start, end in zip(found.tolist(), starts, [*starts[1:], len(order)], strict=True):
            self._writer(number).write_table(table.slice(start, end - start))

    def _writer(self, number: int) -> pa.ipc.RecordBatchStreamWriter:
        if number not in self._writers:
            sink = pa.OSFile(str(self._file(number)), "wb")
            self._writers[number] = (sink, pa.ipc.new_stream(sink, self.schema))
        return self._writers[number][1]

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:03d}.arrow"

    def tables(self) -> Iterator[pa.Table]:
        """All rows, in ascending ranges of their keys. Ends the writing; each file is removed when it has been read."""
        for sink, writer in self._writers.values():
            writer.close()
            sink.close()
        for number in sorted(self._writers):
            with pa.OSFile(str(self._file(number))) as source:
                yield pa.ipc.open_stream(source).read_all()
            self._file(number).unlink()


def keys_of_texts(texts: Iterable[str]) -> Keys:
    """Keys of texts: their CRC-32."""
    return np.fromiter((zlib.crc32(text.encode()) for text in texts), np.uint64)


def keys_of_ids(ids: Iterable[str]) -> Keys:
    """Keys of sample ids: their first hexadecimal digits, so that partitions are ascending ranges of ids."""
    return np.fromiter((int(name[:8], 16) for name in ids), np.uint64)
