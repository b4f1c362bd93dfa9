"""Verdicts on the samples: for each file group one file, with a row for each sample.

Tasks write these files and return only numbers, so that the driver's memory does not depend on the dataset's size.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from stages.data.bulk_files import fetched, read_each
from stages.filter.candidate import Candidate
from stages.filter.config import FilterConfig
from stages.filter.duplicates import COLOUR_BYTES, DIGEST_BYTES, signatures
from stages.filter.rules import COMPUTABLE, active_rules, computed_scores, rejection, score_of
from stages.storage import StorePath, absolute, open_whole, store_path

ROWS_PER_BATCH = 256
Row = TypeVar("Row")

VERDICTS = pa.schema(
    [
        ("sample_id", pa.string()),
        ("reason", pa.string()),  # null: the sample passes
        ("detail", pa.string()),
        ("is_pending", pa.bool_()),  # it passes once a missing score has been computed
        *((score, pa.float32()) for score in COMPUTABLE),  # a computed score; null: not computed
        ("digest", pa.binary(DIGEST_BYTES)),  # the picture's signature; null: the sample is rejected
        ("bits", pa.uint64()),
        ("colours", pa.binary(COLOUR_BYTES)),
    ]
)


@dataclass(frozen=True, kw_only=True)
class FileGroup:
    """Consecutive files of the samples that one task processes, and the number of the first.

    Once the missing scores of a group are computed, it `is_scored`, and its verdicts are another file: a machine that
    was cut off may still write the earlier one.
    """

    number: int
    first: int
    files: tuple[str, ...]
    rows: int
    is_scored: bool = False

    def verdicts(self, folder: StorePath) -> StorePath:
        """The group's file in the folder of verdicts."""
        return folder / f"{'scored' if self.is_scored else 'verdicts'}-{self.number:06d}.parquet"


def group_files(files: Sequence[StorePath], counts: Sequence[int], rows: int) -> list[FileGroup]:
    """Group consecutive files, at least `rows` rows a group, because the start of a task is expensive.

    Args:
        files: The files of the samples.
        counts: The number of rows of each.
        rows: The smallest size of a group but the last.
    """
    groups: list[FileGroup] = []
    taken: list[str] = []
    counted, first = 0, 0
    for number, (file, count) in enumerate(zip(files, counts, strict=True)):
        taken.append(str(absolute(file)))
        counted += count
        if counted >= rows or number == len(files) - 1:
            groups.append(FileGroup(number=len(groups), first=first, files=tuple(taken), rows=counted))
            taken, counted, first = [], 0, number + 1
    return groups


def read_batches(file: str) -> Iterator[pa.RecordBatch]:
    """Read a file of samples in batches."""
    with fetched(store_path(file)) as local:
        # A pre-buffer would keep all bytes read.
        yield from pq.ParquetFile(local, pre_buffer=False).iter_batches(ROWS_PER_BATCH)


def read_rows(files: Iterable[str]) -> Iterator[list[dict[str, Any]]]:
    """Read files of samples in batches of rows."""
    return (batch.to_pylist() for file in files for batch in read_batches(file))


def inspect(batch: pa.Table, folder: StorePath, settings: FilterConfig) -> Iterator[pa.Table]:
    """Write the verdicts of the file groups in the column `group`; yields a `tally` of each."""
    for group in batch["group"].to_pylist():
        inspected = pending = 0
        with open_whole(FileGroup(**group).verdicts(folder)) as sink, pq.ParquetWriter(sink, VERDICTS) as writer:
            for rows in read_rows(group["files"]):
                verdicts = inspect_rows(rows, settings)
                writer.write_table(pa.Table.from_pylist(verdicts, schema=VERDICTS))
                inspected += len(verdicts)
                pending += sum(verdict["is_pending"] for verdict in verdicts)
        yield tally(group["number"], inspected, pending)


def inspect_rows(rows: Sequence[Mapping[str, Any]], settings: FilterConfig) -> list[dict[str, Any]]:
    """Apply the rules to some samples, and compute the signatures of the pictures that pass."""
    rules, computed = active_rules(settings), computed_scores(settings)
    verdicts: list[dict[str, Any]] = []
    passing: list[dict[str, Any]] = []

    def passing_pictures() -> Iterator[tuple[Image.Image, NDArray[np.uint8]]]:
        for row in rows:
            candidate = Candidate(row)
            verdict: dict[str, Any] = {"sample_id": row["sample_id"], "is_pending": False}
            verdicts.append(verdict)
            rejected = rejection(candidate, rules)
            if rejected is not None:
                verdict["reason"], verdict["detail"] = rejected
                continue
            verdict["is_pending"] = any(score_of(candidate, score) is None for score in computed)
            passing.append(verdict)
            yield candidate.picture, candidate.grid

    for signature, verdict in zip(signatures(passing_pictures()), passing, strict=True):
        verdict |= vars(signature)
    return verdicts


def tally(group: int, rows: int, pending: int) -> pa.Table:
    """One row: the number of verdicts of the group, and how many of them wait for a score."""
    return pa.table({"group": [group], "rows": [rows], "pending": [pending]})


def read_verdicts(groups: Sequence[FileGroup], folder: StorePath, columns: list[str]) -> Iterator[pa.Table]:
    """Some columns of the verdicts on the samples that pass, group by group; `row` is the row within the group."""

    def read(group: FileGroup) -> pa.Table:
        with fetched(group.verdicts(folder)) as file:
            table = pq.read_table(file, columns=[*columns, "reason"], memory_map=True)
        table = table.append_column("row", pa.array(range(table.num_rows), pa.int32()))
        return table.filter(table["reason"].is_null()).select([*columns, "row"])

    return read_each(read, groups, folder)


def in_batches(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Cut rows into lists of `size`; the last may be shorter."""
    iterator = iter(rows)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
