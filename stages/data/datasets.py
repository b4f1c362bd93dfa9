"""Datasets: folders of Parquet files with the schemas of `stages/data/schemas.py`, in a fixed order.

The same rows always give the same bytes, because rows are sorted and files are cut at fixed sizes. Row groups with
pictures are small, so that one picture can be read without reading a whole file.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.contract import StageError
from stages.data.bulk_files import read_each
from stages.data.row_groups import RowGroups, open_row_groups, read_row_groups
from stages.storage import StorePath, open_output, parquet_source

ROWS_PER_FILE = 20_000
ROWS_PER_GROUP = 128  # of datasets with pictures, at most
#: A picture is read with its whole row group.
_BYTES_PER_GROUP = 8_000_000
_WAITING_BYTES = 64_000_000


def write_dataset(folder: StorePath, table: pa.Table, schema: pa.Schema, order: Sequence[str] = ()) -> int:
    """Write `table` as `folder/part-00000.parquet`, ...; returns the number of rows.

    Rows are sorted by the columns `order` (default: the schema's first column, the id); equal keys keep their order.
    Columns that are not in the schema are left out.

    Raises:
        ValueError: A column is missing, cannot be cast, or holds a null that the schema forbids.
    """
    ordered = table.sort_by([(name, "ascending") for name in (order or schema.names[:1])])
    return write_in_order(folder, [ordered], schema)


def write_in_order(folder: StorePath, tables: Iterable[pa.Table], schema: pa.Schema) -> int:
    """Write tables whose rows are already in the dataset's order; returns the number of rows.

    Holds the rows of one file in memory.
    """
    waiting, number, rows = None, 0, 0
    for table in tables:
        waiting, rows = table if waiting is None else pa.concat_tables([waiting, table]), rows + table.num_rows
        while waiting.num_rows >= ROWS_PER_FILE:
            write_part(folder, number, waiting.slice(0, ROWS_PER_FILE), schema)
            waiting, number = waiting.slice(ROWS_PER_FILE), number + 1
    if waiting is None or waiting.num_rows or not number:
        write_part(folder, number, schema.empty_table() if waiting is None else waiting, schema)
    return rows


def write_part(folder: StorePath, number: int, table: pa.Table, schema: pa.Schema) -> None:
    """Write one file of a dataset that is produced in parts. Rows and parts must be in order.

    Raises:
        ValueError: As `write_dataset`.
    """
    with part_writer(folder, number, schema) as part:
        part.write(table)


@contextmanager
def part_writer(folder: StorePath, number: int, schema: pa.Schema) -> Iterator[PartWriter]:
    """Write one file of a dataset, some rows at a time. It is there, whole, at the end of the block."""
    # Pictures are compressed already.
    compression = {_leaf(field): "NONE" if pa.types.is_binary(field.type) else "ZSTD" for field in schema}
    with (
        open_output(folder / f"part-{number:05d}.parquet") as sink,
        pq.ParquetWriter(sink, schema, compression=compression, use_dictionary=False) as file,
    ):
        has_pictures = "NONE" in compression.values()
        part = PartWriter(name=folder.name, schema=schema, file=file, has_pictures=has_pictures)
        yield part
        part.flush()


class PartWriter:
    """Writes rows into one file of a dataset. Rows are buffered until they fill a row group, or 64 MB."""

    def __init__(self, name: str, schema: pa.Schema, file: pq.ParquetWriter, has_pictures: bool) -> None:
        self.name, self.schema = name, schema
        self._file, self._has_pictures = file, has_pictures
        self._waiting = schema.empty_table()

    def write(self, table: pa.Table) -> None:
        """Append the rows of a table. Columns that are not in the schema are left out.

        Raises:
            ValueError: As `write_dataset`.
        """
        missing = [name for name in self.schema.names if name not in table.column_names]
        if missing:
            raise ValueError(f"dataset {self.name}: no column {', '.join(missing)}; columns are {table.column_names}")
        for field in self.schema:
            if not field.nullable and table.column(field.name).null_count:
                raise ValueError(f"dataset {self.name}: column {field.name} must not hold nulls")
        self._waiting = pa.concat_tables([self._waiting, table.select(self.schema.names).cast(self.schema)])
        whole = self._waiting.num_rows // self._group * self._group
        self._flush(self._waiting.num_rows if self._waiting.nbytes > _WAITING_BYTES else whole)

    @property
    def _group(self) -> int:
        """Rows of a group, by the size of those that are waiting."""
        if not self._has_pictures:
            return ROWS_PER_FILE
        fitting = _BYTES_PER_GROUP * self._waiting.num_rows // max(self._waiting.nbytes, 1)
        return min(max(fitting, 1), ROWS_PER_GROUP)

    def flush(self) -> None:
        """Write the rows that are waiting."""
        self._flush(self._waiting.num_rows)

    def _flush(self, rows: int) -> None:
        if rows:
            self._file.write_table(self._waiting.slice(0, rows), row_group_size=self._group)
            self._waiting = self._waiting.slice(rows)


def dataset_rows(folder: StorePath) -> int:
    """The number of rows, from the files' footers; raises StageError when there is no such dataset."""
    return sum(row_counts(dataset_files(folder)))


def row_counts(files: Sequence[StorePath]) -> list[int]:
    """The number of rows of each Parquet file, from its footer."""
    if not files:
        return []
    return list(read_each(lambda file: int(pq.read_metadata(parquet_source(file)).num_rows), files, files[0].parent))


def _leaf(field: pa.Field) -> str:
    """The name under which Parquet stores a column's values."""
    return f"{field.name}.list.element" if pa.types.is_nested(field.type) else str(field.name)


def dataset_files(folder: StorePath) -> list[StorePath]:
    """The Parquet files of a dataset, in order.

    Raises:
        StageError: There is no such dataset.
    """
    files: list[StorePath] = sorted(folder.glob("part-*.parquet"), key=str)
    if not files:
        raise StageError(f"{folder} is not a dataset: it holds no part-*.parquet; run the stage that writes it again.")
    return files


def read_dataset(folder: StorePath, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a dataset in its order; only `columns`, if given.

    Raises:
        StageError: There is no such dataset, a column is missing, or one has another type than `schema` says.
    """
    return pa.concat_tables(read_parts(folder, schema, columns))


def read_parts(folder: StorePath, schema: pa.Schema, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Read a dataset file by file; only `columns`, if given. Raises StageError as `read_dataset`."""
    wanted = list(columns) if columns is not None else schema.names

    def read(file: StorePath) -> pa.Table:
        check_columns(file, pq.read_schema(parquet_source(file)), schema, wanted)
        return _read_table(file, wanted)

    return read_each(read, dataset_files(folder), folder)


def _read_table(file: StorePath, columns: Sequence[str]) -> pa.Table:
    if isinstance(file, Path):
        return pq.read_table(file, columns=list(columns), memory_map=True)
    return read_row_groups(file, pq.read_metadata(parquet_source(file)), None, columns)


def check_columns(file: StorePath, found: pa.Schema, schema: pa.Schema, wanted: Sequence[str]) -> None:
    """Check that a file has the columns `wanted` with the types of `schema`; raises StageError."""
    for name in wanted:
        if name not in found.names:
            raise StageError(f"{file} lacks the column {name!r}; its columns are {', '.join(found.names)}.")
        if found.field(name).type != schema.field(name).type:
            raise StageError(
                f"{file}: column {name!r} is {found.field(name).type}, expected {schema.field(name).type}; "
                "run the stage that writes it again."
            )


class ColumnStore:
    """Random access by id to a column of bytes of a dataset.

    An instance is cheap to create and to send to a worker, because only its path is pickled and the files are opened at
    the first access (see `stages.data.row_groups`). In memory are an index of the ids' hashes, 16 bytes a row, and the
    last `cached_groups` row groups of the column.
    """

    def __init__(self, folder: StorePath, id_column: str, column: str, cached_groups: int = 64) -> None:
        self.folder = folder
        self.id_column = id_column
        self.column = column
        self.cached_groups = cached_groups
        self._clear()

    def _clear(self) -> None:
        self._source: RowGroups | None = None
        self._starts: NDArray[np.int64] = np.empty(0, np.int64)  # row group of the dataset -> its first row
        self._hashes: NDArray[np.uint64] = np.empty(0, np.uint64)  # of the ids, ascending
        self._rows: NDArray[np.int64] = np.empty(0, np.int64)  # the rows of these ids
        self._groups: OrderedDict[int, pa.Table] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        names = ("folder", "id_column", "column", "cached_groups")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._clear()

    def _open(self) -> RowGroups:
        if self._source is None:
            source = open_row_groups(dataset_files(self.folder), self.id_column, self.column)
            hashes = np.concatenate([_hashes_of(ids) for ids in source.ids()])
            self._starts = np.cumsum([0, *source.sizes])[:-1]
            self._rows = np.argsort(hashes, kind="stable")
            self._hashes = hashes[self._rows]
            self._source = source
        return self._source

    def __len__(self) -> int:
        self._open()
        return len(self._rows)

    def __iter__(self) -> Iterator[str]:
        """The ids, in the order of the dataset."""
        return (key for ids in self._open().ids() for key in ids)

    def __contains__(self, key: str) -> bool:
        """Whether some id has the hash of `key`. With 10^8 rows, one in 10^11 missing ids is found by mistake."""
        return len(self._candidates(key)) > 0

    def __getitem__(self, key: str) -> bytes:
        """The bytes of the row with this id; raises KeyError when there is none."""
        for row in self._candidates(key):
            group = int(np.searchsorted(self._starts, row, side="right")) - 1
            table, index = self._read(group), int(row - self._starts[group])
            if table.column(self.id_column)[index].as_py() == key:
                return bytes(table.column(self.column)[index].as_py())
        raise KeyError(f"{self.folder} has no {self.column} {key!r}")

    def _candidates(self, key: str) -> NDArray[np.int64]:
        """The rows whose ids have the hash of `key`, usually one."""
        self._open()
        wanted = _hashes_of([key])[0]
        first, end = (np.searchsorted(self._hashes, wanted, side) for side in ("left", "right"))
        return self._rows[first:end]

    def _read(self, group: int) -> pa.Table:
        if group not in self._groups:
            self._groups[group] = self._open().read(group)
            if len(self._groups) > self.cached_groups:
                self._groups.popitem(last=False)
        self._groups.move_to_end(group)
        return self._groups[group]


def _open_parquet(file: StorePath) -> pq.ParquetFile:
    return pq.ParquetFile(parquet_source(file), memory_map=True, page_checksum_verification=True)


def _hashes_of(ids: Sequence[str]) -> NDArray[np.uint64]:
    digests = [hashlib.blake2b(key.encode(), digest_size=8).digest() for key in ids]
    return np.frombuffer(b"".join(digests), np.uint64)


class PictureStore(ColumnStore):
    """Random access by id to the encoded pictures of a dataset, in its column `picture`."""

    def __init__(self, folder: StorePath, id_column: str, cached_groups: int = 64) -> None:
        super().__init__(folder, id_column, "picture", cached_groups)
