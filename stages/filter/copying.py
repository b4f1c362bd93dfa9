"""The last pass over the samples: each goes to `samples` or, with its reason, to `rejected`."""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from stages.data.datasets import PartWriter
from stages.data.pictures import UndecodableError, decode
from stages.data.schemas import REJECTED, SAMPLES
from stages.filter.config import FilterConfig
from stages.filter.rules import COMPUTABLE, computed_scores
from stages.filter.verdicts import FileGroup, read_batches

EXAMPLES = 5  # of every reason are shown
_EXAMPLE_SIDE = 96


@dataclass(frozen=True, kw_only=True)
class Example:
    """A rejected sample, small enough to be shown."""

    sample_id: str
    detail: str
    picture: bytes | None  # PNG; None when there is nothing to see


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a group's samples."""

    kept: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: Mapping[str, list[Example]] = field(default_factory=dict)


def copy_group(group: FileGroup, verdicts: Path, duplicates: pa.Table, output: Path, settings: FilterConfig) -> Outcome:
    """Write the parts of `samples/` and `rejected/` that belong to the group's files.

    Args:
        group: Whose files are copied.
        verdicts: The folder of verdicts.
        duplicates: Columns row (place in the group), reason, detail: what else is rejected in this group.
        output: The stage's output folder.
        settings: Tells which scores were computed where the metadata had none.
    """
    judged = _final_verdicts(group.verdicts(verdicts), duplicates)
    kept, reasons, examples = 0, Counter[str](), defaultdict[str, list[Example]](list)
    start = 0
    for number, file in enumerate(group.files, start=group.first):
        with (
            PartWriter(output / "samples", number, SAMPLES) as samples_part,
            PartWriter(output / "rejected", number, REJECTED) as rejected_part,
        ):
            for batch in read_batches(file):
                mine = judged.slice(start, batch.num_rows)
                start += batch.num_rows
                samples, rejected = _divide(pa.Table.from_batches([batch]), mine, computed_scores(settings))
                samples_part.write(samples)
                rejected_part.write(rejected)
                kept += samples.num_rows
                reasons.update(rejected["reason"].to_pylist())
                _collect(examples, rejected)
    return Outcome(kept=kept, reasons=reasons, examples=dict(examples))


def _final_verdicts(file: Path, duplicates: pa.Table) -> pa.Table:
    """Reason, detail and computed scores of the group's samples, with what was found about duplicates."""
    columns = ["reason", "detail", *COMPUTABLE]
    judged = pq.read_table(file, columns=columns).select(columns)
    late = {row["row"]: row for row in duplicates.to_pylist()}
    for place, name in enumerate(("reason", "detail")):
        words = [late[row][name] if row in late else word for row, word in enumerate(judged[name].to_pylist())]
        judged = judged.set_column(place, name, pa.array(words, pa.string()))
    return judged


def _divide(rows: pa.Table, verdicts: pa.Table, scores: set[str]) -> tuple[pa.Table, pa.Table]:
    """The rows that are kept, and those that are rejected, with reason and detail."""
    reason, detail = verdicts["reason"], verdicts["detail"]
    rejected = rows.append_column("reason", reason).append_column("detail", detail)
    return _with_scores(rows, verdicts, scores).filter(reason.is_null()), rejected.filter(reason.is_valid())


def _with_scores(rows: pa.Table, verdicts: pa.Table, scores: set[str]) -> pa.Table:
    """The samples with the computed scores where they had none (null or NaN)."""
    for name in sorted(scores):
        place = rows.column_names.index(name)
        known = pc.if_else(pc.is_nan(rows[name]), None, rows[name])
        rows = rows.set_column(place, rows.schema.field(name), pc.coalesce(known, verdicts[name]))
    return rows


def _collect(examples: dict[str, list[Example]], rejected: pa.Table) -> None:
    """Add the first of every reason, while there is room."""
    reasons = np.array(rejected["reason"].to_pylist(), dtype=object)
    for reason in sorted(set(reasons)):
        for row in np.flatnonzero(reasons == reason)[: EXAMPLES - len(examples[reason])]:
            found = rejected.slice(int(row), 1).select(["sample_id", "detail", "picture"]).to_pylist()[0]
            examples[reason].append(_example(found))


def _example(row: Mapping[str, Any]) -> Example:
    try:
        picture = decode(row["picture"])
    except UndecodableError:
        return Example(sample_id=row["sample_id"], detail=row["detail"], picture=None)
    picture.thumbnail((_EXAMPLE_SIDE, _EXAMPLE_SIDE), Image.Resampling.BOX)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return Example(sample_id=row["sample_id"], detail=row["detail"], picture=buffer.getvalue())


def join_outcomes(outcomes: list[Outcome]) -> Outcome:
    """All groups' together; of every reason the first examples."""
    examples: dict[str, list[Example]] = defaultdict(list)
    for outcome in outcomes:
        for reason, found in outcome.examples.items():
            examples[reason] += found[: EXAMPLES - len(examples[reason])]
    return Outcome(
        kept=sum(outcome.kept for outcome in outcomes),
        reasons=sum((outcome.reasons for outcome in outcomes), Counter[str]()),
        examples=dict(examples),
    )
