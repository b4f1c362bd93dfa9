"""Conversion of a shard that img2dataset wrote to a part of each of the datasets `samples`, `rejected` and `failed`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from stages.data.datasets import write_part
from stages.data.schemas import REJECTED, SAMPLES
from stages.ingest.outcomes import FAILED, REJECTED_AFTER_DOWNLOAD, reason_of

#: The columns that are read from a shard.
_FETCHED = ["sample_id", "status", "error_message", "width", "height", "original_width", "original_height", "jpg"]
_SIZES = ("width", "height", "original_width", "original_height")
_ROWS_AT_ONCE = 256  # pictures together may be more than the 2 GB that an Arrow array of bytes holds


@dataclass(frozen=True, kw_only=True)
class ShardSummary:
    """How many rows of a shard were kept, rejected and failed, the last two by reason."""

    samples: int
    rejected: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)


def convert_shard(scratch: Path, number: int, samples_folder: Path, earlier: Path | None) -> ShardSummary:
    """Write part `number` of the samples, of `scratch/rejected` and of `scratch/failed`.

    Each row of the list is in one of the three, also a row that img2dataset has lost. Rows that an `earlier` output has
    settled are copied from there.
    """
    listed = pq.ParquetFile(scratch / "urls.parquet").read_row_group(number)
    fetched = pq.read_table(scratch / "shards" / f"{number:05d}.parquet", columns=_FETCHED)
    samples, rest = _split(listed, fetched)
    if earlier is not None:
        old_samples, old_rejected = settled_rows(earlier, listed["sample_id"])
        samples = pa.concat_tables([samples, old_samples]).sort_by("sample_id")
        is_old = pc.is_in(rest["sample_id"], value_set=_settled(old_samples, old_rejected))
        rest = pa.concat_tables([rest.filter(pc.invert(is_old)), old_rejected]).sort_by("sample_id")
    is_failed = pc.is_in(rest["reason"], value_set=pa.array(FAILED))
    write_part(samples_folder, number, samples, SAMPLES)
    write_part(scratch / "rejected", number, rest.filter(pc.invert(is_failed)), REJECTED)
    write_part(scratch / "failed", number, rest.filter(is_failed), REJECTED)
    reasons = Counter(rest["reason"].to_pylist())
    return ShardSummary(
        samples=samples.num_rows,
        rejected=Counter({reason: count for reason, count in reasons.items() if reason not in FAILED}),
        failed=Counter({reason: count for reason, count in reasons.items() if reason in FAILED}),
    )


def settled_ids(earlier: Path, ids: pa.ChunkedArray) -> pa.Array:
    """The sample ids that an earlier output has kept, or rejected after the download."""
    return _settled(*settled_rows(earlier, ids, columns=["sample_id"]))


def settled_rows(earlier: Path, ids: pa.ChunkedArray, columns: list[str] | None = None) -> tuple[pa.Table, pa.Table]:
    """The samples and the rejected rows of an earlier output with these sample ids.

    Rows that were rejected by their metadata are left out: a repeated row has the id of the row that was kept.
    """
    wanted = pads.field("sample_id").isin(ids.combine_chunks())
    if len(ids):  # the files are sorted: their statistics say which row groups to read
        bounds = pc.min_max(ids).as_py()
        wanted &= (pads.field("sample_id") >= bounds["min"]) & (pads.field("sample_id") <= bounds["max"])
    is_settled = pads.field("reason").isin(REJECTED_AFTER_DOWNLOAD)
    samples = pads.dataset(earlier / "samples", schema=SAMPLES).to_table(filter=wanted, columns=columns)
    rejected = pads.dataset(earlier / "rejected", schema=REJECTED).to_table(filter=wanted & is_settled, columns=columns)
    is_kept = pc.is_in(rejected["sample_id"], value_set=samples["sample_id"])
    return samples, rejected.filter(pc.invert(is_kept))


def _settled(samples: pa.Table, rejected: pa.Table) -> pa.Array:
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
