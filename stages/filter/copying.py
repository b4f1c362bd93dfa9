"""The last pass over the samples: each is written to `samples` or, with its reason, to `rejected`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from model.pictures.decoding import PictureError, load_picture, to_png
from stages.data.bulk_files import fetched
from stages.data.datasets import part_writer
from stages.data.schemas import REJECTED, SAMPLES
from stages.filter.config import FilterConfig
from stages.filter.rules import COMPUTABLE, computed_scores
from stages.filter.verdicts import FileGroup, read_batches
from stages.storage import StorePath

EXAMPLES = 5  # shown for each reason
_EXAMPLE_SIDE = 96


@dataclass(frozen=True, kw_only=True)
class Example:
    """A thumbnail of a rejected sample."""

    sample_id: str
    detail: str
    picture: bytes | None  # PNG; None when the picture cannot be decoded


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How many samples were kept, why the others were rejected, and examples of these."""

    kept: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: Mapping[str, list[Example]] = field(default_factory=dict)


def copy_group(
    group: FileGroup, verdicts: StorePath, duplicates: pa.Table, output: StorePath, settings: FilterConfig
) -> Outcome:
    """Write the parts of `samples/` and `rejected/` that belong to the group's files.

    Args:
        group: The files to copy.
        verdicts: The folder of verdicts.
        duplicates: The duplicates in this group: columns row (in the group), reason, detail.
        output: The stage's output folder.
        settings: They determine which scores were computed where the metadata had none.
    """
    final = _final_verdicts(group.verdicts(verdicts), duplicates)
    kept, reasons, examples = 0, Counter[str](), defaultdict[str, list[Example]](list)
    start = 0
    for number, file in enumerate(group.files, start=group.first):
        with (
            part_writer(output / "samples", number, SAMPLES) as samples_part,
            part_writer(output / "rejected", number, REJECTED) as rejected_part,
        ):
            for rows in read_batches(file):
                samples, rejected = _divide(rows, final.slice(start, rows.num_rows), computed_scores(settings))
                start += rows.num_rows
                samples_part.write(samples)
                rejected_part.write(rejected)
                kept += samples.num_rows
                reasons.update(rejected["reason"].to_pylist())
                _collect(examples, rejected)
    return Outcome(kept=kept, reasons=reasons, examples=dict(examples))


def _final_verdicts(file: StorePath, duplicates: pa.Table) -> pa.Table:
    """Reason, detail and computed scores of the group's samples, duplicates included."""
    columns = ["reason", "detail", *COMPUTABLE]
    with fetched(file) as local:
        verdicts = pq.read_table(local, columns=columns).select(columns)
    late = {row["row"]: row for row in duplicates.to_pylist()}
    for column, name in enumerate(("reason", "detail")):
        texts = [late[row][name] if row in late else text for row, text in enumerate(verdicts[name].to_pylist())]
        verdicts = verdicts.set_column(column, name, pa.array(texts, pa.string()))
    return verdicts


def _divide(batch: pa.RecordBatch, verdicts: pa.Table, scores: set[str]) -> tuple[pa.Table, pa.Table]:
    """The rows that are kept, and the rejected rows with reason and detail."""
    rows = pa.Table.from_batches([batch])
    reason, detail = verdicts["reason"], verdicts["detail"]
    rejected = rows.append_column("reason", reason).append_column("detail", detail)
    return _with_scores(rows, verdicts, scores).filter(reason.is_null()), rejected.filter(reason.is_valid())


def _with_scores(rows: pa.Table, verdicts: pa.Table, scores: set[str]) -> pa.Table:
    """The samples with computed scores in place of missing ones (null or NaN)."""
    for name in sorted(scores):
        column = rows.column_names.index(name)
        known = pc.if_else(pc.is_nan(rows[name]), None, rows[name])
        rows = rows.set_column(column, rows.schema.field(name), pc.coalesce(known, verdicts[name]))
    return rows


def _collect(examples: dict[str, list[Example]], rejected: pa.Table) -> None:
    """Add the first rows of each reason, at most `EXAMPLES` in all."""
    reasons = np.array(rejected["reason"].to_pylist(), dtype=object)
    for reason in sorted(set(reasons)):
        for row in np.flatnonzero(reasons == reason)[: EXAMPLES - len(examples[reason])]:
            found = rejected.slice(int(row), 1).select(["sample_id", "detail", "picture"]).to_pylist()[0]
            examples[reason].append(_example(found))


def _example(row: Mapping[str, Any]) -> Example:
    try:
        picture = load_picture(row["picture"])
    except PictureError:
        return Example(sample_id=row["sample_id"], detail=row["detail"], picture=None)
    picture.thumbnail((_EXAMPLE_SIDE, _EXAMPLE_SIDE), Image.Resampling.BOX)
    return Example(sample_id=row["sample_id"], detail=row["detail"], picture=to_png(picture))


def join_outcomes(outcomes: list[Outcome]) -> Outcome:
    """The outcomes of all groups together, with the first examples of each reason."""
    examples: dict[str, list[Example]] = defaultdict(list)
    for outcome in outcomes:
        for reason, found in outcome.examples.items():
            examples[reason] += found[: EXAMPLES - len(examples[reason])]
    return Outcome(
        kept=sum(outcome.kept for outcome in outcomes),
        reasons=sum((outcome.reasons for outcome in outcomes), Counter[str]()),
        examples=dict(examples),
    )
