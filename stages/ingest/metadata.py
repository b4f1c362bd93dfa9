"""The list of pictures to fetch, from metadata that somebody else has written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.config import IngestConfig
from stages.schemas import LAION_SCORES, REJECTED, content_id
from stages.stage import StageError

#: The list that img2dataset is given.
URLS = pa.schema(
    [("sample_id", pa.string()), ("url", pa.string()), ("caption", pa.string())]
    + [(name, pa.float32()) for name in LAION_SCORES.values()]
)


@dataclass(frozen=True, kw_only=True)
class UrlList:
    """What the metadata asks for.

    Attributes:
        rows: Distinct pairs of URL and caption (schema `URLS`), sorted by sample id.
        unusable: Rows without a URL or a caption (schema `REJECTED`).
        repeated: How many rows said again what an earlier one had said.
    """

    rows: pa.Table
    unusable: pa.Table
    repeated: int

    def unusable_by_reason(self) -> Counter[str]:
        """How many unusable rows there are of each kind."""
        return Counter(self.unusable.column("reason").to_pylist())


def metadata_files(source: Path) -> list[Path]:
    """The Parquet files of a metadata file or folder.

    Raises:
        StageError: There is nothing there.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise StageError(f"ingest.metadata: there is no file or folder {source}.")
    files = sorted(source.glob("*.parquet"))
    if not files:
        raise StageError(f"ingest.metadata: the folder {source} holds no *.parquet file.")
    return files


def read_url_list(files: Sequence[Path], settings: IngestConfig) -> UrlList:
    """Read, check and deduplicate the metadata.

    Score columns that the metadata does not have become nulls. Of rows with the same URL and caption the first counts.

    Raises:
        StageError: A file is not Parquet or lacks a column; a column has a wrong type; no row is of use.
    """
    table = pa.concat_tables([_read_file(file, settings) for file in files])
    if not table.num_rows:
        raise StageError(f"ingest.metadata: {files[0].parent if len(files) > 1 else files[0]} holds no rows.")
    table = table.append_column("sample_id", _sample_ids(table))
    usable = pc.and_(_filled(table["url"]), _filled(table["caption"]))
    unusable = _unusable(table.filter(pc.invert(usable)))
    rows = table.filter(usable)
    if not rows.num_rows:
        raise StageError(
            f"ingest.metadata: no row of {files[0]} has both a URL ({settings.url_column}) and a caption "
            f"({settings.caption_column})."
        )
    first = _first_of_each(rows["sample_id"])
    distinct = rows.take(first).select(URLS.names).cast(URLS).sort_by("sample_id")
    return UrlList(rows=distinct, unusable=unusable, repeated=rows.num_rows - len(first))


def _read_file(file: Path, settings: IngestConfig) -> pa.Table:
    """The columns that matter, under our names and types."""
    try:
        names = pq.read_schema(file).names
    except pa.ArrowInvalid as error:
        raise StageError(f"ingest.metadata: {file} is not a Parquet file ({str(error).splitlines()[0]})") from error
    required = {"url": settings.url_column, "caption": settings.caption_column}
    for ours, theirs in required.items():
        if theirs not in names:
            raise StageError(
                f"ingest.metadata: {file} lacks the column {theirs!r}; its columns are {', '.join(names)}: "
                f"name the right one with --set ingest.{ours}_column=..."
            )
    scores = {ours: theirs for theirs, ours in LAION_SCORES.items() if theirs in names}
    table = pq.read_table(file, columns=[*required.values(), *scores.values()])
    columns = {
        ours: _cast(table[theirs], URLS.field(ours).type, file, theirs) for ours, theirs in (required | scores).items()
    }
    for ours in LAION_SCORES.values():
        columns.setdefault(ours, pa.nulls(table.num_rows, pa.float32()))
    return pa.table(columns).select([name for name in URLS.names if name != "sample_id"])


def _cast(column: pa.ChunkedArray, wanted: pa.DataType, file: Path, name: str) -> pa.ChunkedArray:
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if is_text == pa.types.is_string(wanted) or pa.types.is_null(column.type):
        try:
            return column.cast(wanted, safe=False)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            pass  # told below
    kind = "text" if pa.types.is_string(wanted) else "numbers"
    raise StageError(f"ingest.metadata: the column {name!r} of {file} must hold {kind}, not {column.type}.")


def _filled(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.fill_null(pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(column)), 0), False)


def _sample_ids(table: pa.Table) -> pa.Array:
    pairs = zip(table["url"].to_pylist(), table["caption"].to_pylist(), strict=True)
    return pa.array([content_id(url or "", caption or "") for url, caption in pairs], pa.string())


def _first_of_each(ids: pa.ChunkedArray) -> list[int]:
    """The position of the first row with each id."""
    positions: dict[str, int] = {}
    for position, sample_id in enumerate(ids.to_pylist()):
        positions.setdefault(sample_id, position)
    return list(positions.values())


def _unusable(table: pa.Table) -> pa.Table:
    rows = [
        {
            "sample_id": row["sample_id"],
            "url": row["url"] or "",
            "caption": row["caption"],
            "reason": "no_caption" if (row["url"] or "").strip() else "no_url",
            "detail": "the metadata row has none",
        }
        for row in table.to_pylist()
    ]
    return pa.Table.from_pylist(rows, schema=REJECTED)
