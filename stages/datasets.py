"""Datasets on disk: folders of Parquet files with the schemas of `stages/schemas.py`, in a fixed order.

The same rows always give the same bytes: rows are sorted, files are cut at fixed sizes. Row groups with pictures are
small, so that one picture can be fetched without reading a whole file.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from stages.stage import StageError

ROWS_PER_FILE = 20_000
ROWS_PER_GROUP = 128  # where there are pictures
_WAITING_BYTES = 64_000_000


def write_dataset(folder: Path, table: pa.Table, schema: pa.Schema, order: Sequence[str] = ()) -> int:
    """Write `table` as `folder/part-00000.parquet`, ... and return the number of rows.

    Rows are sorted by the columns `order` (default: the schema's first column, the id); equal keys keep their order.
    Columns that the schema does not have are left out.

    Raises:
        ValueError: A column is missing, cannot be cast, or holds a null that the schema forbids.
    """
    ordered = table.sort_by([(name, "ascending") for name in (order or schema.names[:1])])
    return write_in_order(folder, [ordered], schema)


def write_in_order(folder: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> int:
    """Write tables, whose rows come in the dataset's order, as `write_dataset` does one; returns the number of rows.

    Of these, the rows of a file are held in memory.
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


def write_part(folder: Path, number: int, table: pa.Table, schema: pa.Schema) -> None:
    """Write one file of a dataset, for those who produce it in pieces: rows and parts must come in order.

    Raises:
        ValueError: As `write_dataset`.
    """
    with PartWriter(folder, number, schema) as part:
        part.write(table)


class PartWriter:
    """One file of a dataset, written some rows at a time. They wait in memory until they fill a row group, or 64 MB."""

    def __init__(self, folder: Path, number: int, schema: pa.Schema) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # Pictures are compressed already.
        compression = {_leaf(field): "NONE" if pa.types.is_binary(field.type) else "ZSTD" for field in schema}
        self.name, self.schema = folder.name, schema
        self._group = ROWS_PER_GROUP if "NONE" in compression.values() else ROWS_PER_FILE
        self._waiting = schema.empty_table()
        self._file = pq.ParquetWriter(
            folder / f"part-{number:05d}.parquet", schema, compression=compression, use_dictionary=False
        )

    def write(self, table: pa.Table) -> None:
        """Append the rows of a table; columns that the schema does not have are left out.

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

    def _flush(self, rows: int) -> None:
        if rows:
            self._file.write_table(self._waiting.slice(0, rows), row_group_size=self._group)
            self._waiting = self._waiting.slice(rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush(self._waiting.num_rows)
        self._file.close()


def dataset_rows(folder: Path) -> int:
    """Rows of a dataset, from its files' footers; raises StageError when there is no such dataset."""
    return sum(row_counts(dataset_files(folder)))


def row_counts(files: Sequence[Path]) -> list[int]:
    """Rows of each Parquet file, from its footer."""
    return [int(pq.read_metadata(file).num_rows) for file in files]


def _leaf(field: pa.Field) -> str:
    """The name under which Parquet stores a column's values."""
    return f"{field.name}.list.element" if pa.types.is_nested(field.type) else str(field.name)


def dataset_files(folder: Path) -> list[Path]:
    """The Parquet files of a dataset, in order.

    Raises:
        StageError: There is no such dataset.
    """
    files = sorted(folder.glob("part-*.parquet"))
    if not files:
        raise StageError(f"{folder} is not a dataset: it holds no part-*.parquet; run the stage that writes it again.")
    return files


def read_dataset(folder: Path, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a dataset, in the order in which they were written; only `columns`, when given.

    Raises:
        StageError: There is no such dataset, a column is missing, or one has another type than `schema` says.
    """
    wanted = list(columns) if columns is not None else schema.names
    tables = []
    for file in dataset_files(folder):
        check_columns(file, pq.read_schema(file), schema, wanted)
        tables.append(pq.read_table(file, columns=wanted, memory_map=True))
    return pa.concat_tables(tables)


def check_columns(file: Path, found: pa.Schema, schema: pa.Schema, wanted: Sequence[str]) -> None:
    """Refuse a file that lacks one of the columns `wanted` or has it with another type than `schema`."""
    for name in wanted:
        if name not in found.names:
            raise StageError(f"{file} lacks the column {name!r}; its columns are {', '.join(found.names)}.")
        if found.field(name).type != schema.field(name).type:
            raise StageError(
                f"{file}: column {name!r} is {found.field(name).type}, expected {schema.field(name).type}; "
                "run the stage that writes it again."
            )


class ColumnStore:
    """Random access, by id, to a column of bytes of a dataset.

    Cheap to make and to send to a worker: only the path travels, files are mapped on first use. The index of ids is
    held in memory (about 150 bytes a row), and so are the last `cached_groups` row groups of the column.
    """

    def __init__(self, folder: Path, id_column: str, column: str, cached_groups: int = 64) -> None:
        self.folder = Path(folder)
        self.id_column = id_column
        self.column = column
        self.cached_groups = cached_groups
        self._clear()

    def _clear(self) -> None:
        self._files: list[pq.ParquetFile] = []
        self._places: dict[str, tuple[int, int, int]] = {}  # id -> file, row group, row
        self._groups: OrderedDict[tuple[int, int], pa.ChunkedArray] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        names = ("folder", "id_column", "column", "cached_groups")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._clear()

    def _open(self) -> None:
        if self._files:
            return
        files = [
            pq.ParquetFile(file, memory_map=True, page_checksum_verification=True)
            for file in dataset_files(self.folder)
        ]
        for number, file in enumerate(files):
            ids = iter(file.read(columns=[self.id_column]).column(0).to_pylist())
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                self._places.update({key: (number, group, row) for row, key in enumerate(islice(ids, rows))})
        self._files = files

    def __len__(self) -> int:
        self._open()
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        self._open()
        return iter(self._places)

    def __contains__(self, key: str) -> bool:
        self._open()
        return key in self._places

    def __getitem__(self, key: str) -> bytes:
        """The bytes with this id; KeyError when the dataset has no such row."""
        self._open()
        if key not in self._places:
            raise KeyError(f"{self.folder} has no {self.column} {key!r}")
        file, group, row = self._places[key]
        return bytes(self._values(file, group)[row].as_py())

    def _values(self, file: int, group: int) -> pa.ChunkedArray:
        place = (file, group)
        if place not in self._groups:
            self._groups[place] = self._files[file].read_row_group(group, columns=[self.column]).column(0)
            if len(self._groups) > self.cached_groups:
                self._groups.popitem(last=False)
        self._groups.move_to_end(place)
        return self._groups[place]


class PictureStore(ColumnStore):
    """Random access, by id, to encoded pictures (JPEG or PNG): the column `picture` of a dataset."""

    def __init__(self, folder: Path, id_column: str, cached_groups: int = 64) -> None:
        super().__init__(folder, id_column, "picture", cached_groups)
