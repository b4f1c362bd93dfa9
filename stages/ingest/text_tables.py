"""Metadata in text: tables with commas or tabs, with a head or, as CC12M's, without one; and a JSON object a line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv

from model.files import decode_with_losses

SUFFIXES = (".tsv", ".csv", ".jsonl")
_START_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 23


class TextTable:
    """A table in text. Each call of a method reads the file from its start.

    Raises:
        pa.ArrowInvalid: It is no such table.
    """

    def __init__(self, source: Any, path: str) -> None:
        self._source = source
        self._suffix = PurePosixPath(path).suffix.lower()
        first = self._lines()
        start = next(first, b"")
        if b"\0" in start:
            raise pa.ArrowInvalid("it is no text")
        if self._suffix == ".jsonl":
            self._names, self._has_head = list(_object(start)), True
        else:
            self._names, self._has_head = self._head(start)

    @property
    def schema_arrow(self) -> pa.Schema:
        """All columns; their values are bytes, because nobody has checked them."""
        return pa.schema([(name, pa.large_binary()) for name in self._names])

    @property
    def num_rows(self) -> int:
        """Counted by reading the whole table."""
        return sum(batch.num_rows for batch in self.iter_batches(1, columns=self._names[:1]))

    def iter_batches(self, rows: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Some columns, some rows at a time; of a CSV file as many as are in 8 MB."""
        if self._suffix == ".jsonl":
            yield from self._objects(rows, columns)
            return
        self._source.seek(0)
        reader = pacsv.open_csv(
            pa.PythonFile(_Kept(self._source), mode="r"),
            read_options=pacsv.ReadOptions(
                column_names=self._names, skip_rows=int(self._has_head), block_size=_BLOCK_BYTES
            ),
            parse_options=pacsv.ParseOptions(
                delimiter=self._delimiter, quote_char=False if self._suffix == ".tsv" else '"', newlines_in_values=True
            ),
            convert_options=pacsv.ConvertOptions(
                column_types=self.schema_arrow, include_columns=list(columns), check_utf8=False
            ),
        )
        yield from reader

    @property
    def _delimiter(self) -> str:
        return "\t" if self._suffix == ".tsv" else ","

    def _head(self, start: bytes) -> tuple[list[str], bool]:
        """The names of the columns. Where the first row has a URL, there is no head."""
        text = decode_with_losses(start).rstrip("\r\n")
        cells = text.split("\t") if self._suffix == ".tsv" else next(csv.reader(io.StringIO(text)), [])
        urls = [number for number, cell in enumerate(cells) if cell.strip().lower().startswith(("http://", "https://"))]
        if not urls:
            return cells, True
        names = [f"column_{number}" for number in range(len(cells))]
        names[urls[0]] = "url"
        if len(cells) == 2:
            names[1 - urls[0]] = "caption"
        return names, False

    def _lines(self) -> Iterator[bytes]:
        self._source.seek(0)
        waiting = b""
        while data := self._source.read(_START_BYTES):
            *lines, waiting = (waiting + bytes(data)).split(b"\n")
            yield from lines
        if waiting:
            yield waiting

    def _objects(self, rows: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        waiting: list[list[bytes | None]] = []
        for line in self._lines():
            if line.strip():
                found = _object(line)
                waiting.append([_as_bytes(found.get(name)) for name in columns])
            if len(waiting) == rows:
                yield self._batch(waiting, columns)
                waiting = []
        if waiting:
            yield self._batch(waiting, columns)

    @staticmethod
    def _batch(rows: list[list[bytes | None]], columns: Sequence[str]) -> pa.RecordBatch:
        arrays = [pa.array(values, pa.large_binary()) for values in zip(*rows, strict=True)]
        return pa.RecordBatch.from_arrays(arrays, names=list(columns))


class _Kept:
    """A file that its reader does not close."""

    closed = False

    def __init__(self, source: Any) -> None:
        self.read = source.read

    def close(self) -> None:
        """See `io.IOBase.close`."""


def _object(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise pa.ArrowInvalid(f"a line is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise pa.ArrowInvalid("a line is no JSON object")
    return found


def _as_bytes(value: Any) -> bytes | None:
    if value is None:
        return None
    return (value if isinstance(value, str) else json.dumps(value)).encode("utf-8", "surrogatepass")
