"""Conversion of a shard that img2dataset wrote to samples, rejected rows and failed rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from stages.data.bulk_files import fetched, read_each
from stages.data.datasets import dataset_files, write_part
from stages.data.schemas import REJECTED, SAMPLES
from stages.ingest.outcomes import FAILED, REJECTED_AFTER_DOWNLOAD, reason_of
from stages.storage import StorePath, parquet_source

#: The columns that are read from a shard.
_FETCHED = ["sample_id", "status", "error_message", "width", "height", "original_width", "original_height", "jpg"]
_SIZES = ("width", "height", "original_width", "original_height")
_ROWS_AT_ONCE = 256  # pictures together may be more than the 2 GB that an Arrow array of bytes holds


@dataclass(frozen=True, kw_only=True)
class ConvertedShard:
    """What has become of a shard's rows.

    Attributes:
        samples: How many were kept; they are in the dataset already.
        rejected: The rejected rows (schema `REJECTED`), sorted by id.
        failed: The failed rows (schema `REJECTED`), sorted by id.
    """

    samples: int
    rejected: pa.Table
    failed: pa.Table


def convert_shard(
    listed: pa.Table, number: int, shards: StorePath, samples_folder: StorePath, earlier: EarlierOutput | None = None
) -> ConvertedShard:
    """Write part `number` of the samples from the downloaded shard, and return the other rows.

    Each row of the list is in one of the three, also a row that img2dataset has lost. Rows that an `earlier` output has
    settled are copied from there.
    """
    with fetched(shards / f"{number:05d}.parquet") as file:
        downloaded = pq.read_table(file, columns=_FETCHED)
    samples, rest = _split(listed, downloaded)
    if earlier is not None:
        old_samples, old_rejected = earlier.settled_rows(listed["sample_id"])
        samples = pa.concat_tables([samples, old_samples]).sort_by("sample_id")
        is_old = pc.is_in(rest["sample_id"], value_set=_ids_of(old_samples, old_rejected))
        rest = pa.concat_tables([rest.filter(pc.invert(is_old)), old_rejected]).sort_by("sample_id")
    write_part(samples_folder, number, samples, SAMPLES)
    is_failed = pc.is_in(rest["reason"], value_set=pa.array(FAILED))
    return ConvertedShard(
        samples=samples.num_rows, rejected=rest.filter(pc.invert(is_failed)), failed=rest.filter(is_failed)
    )


@dataclass(frozen=True)
class _Range:
    """A file of a dataset that is sorted by sample id, and its first and last id."""

    file: StorePath
    first: str
    last: str

    @classmethod
    def of(cls, file: StorePath) -> _Range | None:
        """The file's range, from its footer; None when it has no rows."""
        metadata = pq.read_metadata(parquet_source(file))
        column = metadata.schema.names.index("sample_id")
        groups = [metadata.row_group(number).column(column).statistics for number in range(metadata.num_row_groups)]
        return cls(file, groups[0].min, groups[-1].max) if groups else None


@dataclass(frozen=True, kw_only=True)
class EarlierOutput:
    """The files of an output of this stage whose failed rows are downloaded again."""

    samples: tuple[_Range, ...]
    rejected: tuple[_Range, ...]

    @classmethod
    def at(cls, folder: StorePath) -> EarlierOutput:
        """The output in a folder."""
        found = (read_each(_Range.of, dataset_files(folder / name), folder) for name in ("samples", "rejected"))
        samples, rejected = (tuple(filter(None, ranges)) for ranges in found)
        return cls(samples=samples, rejected=rejected)

    def part(self, rows: pa.Table) -> EarlierOutput:
        """The files that may hold some of these rows, for a task that needs no others."""
        ids = pc.min_max(rows["sample_id"]).as_py()

        def near(ranges: tuple[_Range, ...]) -> tuple[_Range, ...]:
            return tuple(one for one in ranges if one.first <= ids["max"] and ids["min"] <= one.last)

        return EarlierOutput(samples=near(self.samples), rejected=near(self.rejected))

    def settled_ids(self, ids: pa.ChunkedArray) -> pa.Array:
        """Those of the sample ids that were kept, or rejected after the download."""
        return _ids_of(*self.settled_rows(ids, columns=["sample_id"]))

    def settled_rows(self, ids: pa.ChunkedArray, columns: list[str] | None = None) -> tuple[pa.Table, pa.Table]:
        """The samples and the rejected rows with these sample ids.

        Rows that were rejected by their metadata are left out: a repeated row has the id of the row that was kept.
        """
        wanted = pads.field("sample_id").isin(ids.combine_chunks())
        if len(ids):  # the files are sorted: their statistics say which row groups to read
            bounds = pc.min_max(ids).as_py()
            wanted &= (pads.field("sample_id") >= bounds["min"]) & (pads.field("sample_id") <= bounds["max"])
        is_settled = pads.field("reason").isin(REJECTED_AFTER_DOWNLOAD)
        samples = _rows_with(self.samples, SAMPLES, wanted, columns)
        rejected = _rows_with(self.rejected, REJECTED, wanted & is_settled, columns)
        is_kept = pc.is_in(rejected["sample_id"], value_set=samples["sample_id"])
        return samples, rejected.filter(pc.invert(is_kept))


def _rows_with(
    ranges: tuple[_Range, ...], schema: pa.Schema, wanted: pads.Expression, columns: list[str] | None
) -> pa.Table:
    tables = [schema.empty_table().select(columns or schema.names)]
    for one in ranges:
        with fetched(one.file) as file:
            tables.append(pads.dataset(file, schema=schema).to_table(filter=wanted, columns=columns))
    return pa.concat_tables(tables)


def _ids_of(samples: pa.Table, rejected: pa.Table) -> pa.Array:
    return pa.concat_arrays([*samples["sample_id"].chunks, *rejected["sample_id"].chunks, pa.array([], pa.string())])


def _split(listed: pa.Table, fetched: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The samples (schema SAMPLES) and the other rows (schema REJECTED), both in the order of `listed`."""
    fetched = fetched.set_column(_FETCHED.index("jpg"), "jpg", fetched["jpg"].cast(pa.large_binary()))
    samples, rest = [SAMPLES.empty_table()], [REJECTED.empty_table()]
    for start in range(0, listed.num_rows, _ROWS_AT_ONCE):
        rows = listed.slice(start, _ROWS_AT_ONCE)
        found = fetched.take(pc.index_in(rows["sample_id"], value_set=fetched["sample_id"]))
        is_kept = pc.fill_null(pc.equal(found["status"], "success"), False)
        samples.append(_samples(rows.filter(is_kept), found.filter(is_kept)))
        rest.append(_others(rows.filter(pc.invert(is_kept)), found.filter(pc.invert(is_kept))))
    return pa.concat_tables(samples), pa.concat_tables(rest)


def _samples(rows: pa.Table, found: pa.Table) -> pa.Table:
    columns: dict[str, Any] = {name: rows[name] for name in SAMPLES.names if name in rows.column_names}
    columns |= {name: found[name] for name in _SIZES}
    columns["picture"] = found["jpg"]
    return pa.table(columns).select(SAMPLES.names).cast(SAMPLES)


def _others(rows: pa.Table, found: pa.Table) -> pa.Table:
    errors = zip(found["status"].to_pylist(), found["error_message"].to_pylist(), strict=True)
    reasons = [reason_of(status, " ".join((message or "unknown").split())) for status, message in errors]
    columns: dict[str, Any] = {name: rows[name] for name in ("sample_id", "url", "caption")}
    columns["reason"] = pa.array([reason for reason, _ in reasons], pa.string())
    columns["detail"] = pa.array([detail[:200] for _, detail in reasons], pa.string())
    return pa.table(columns).cast(REJECTED)
