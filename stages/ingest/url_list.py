"""The list of URLs to download: the rows of the metadata that pass the rules, each URL once, sorted by sample id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from model.checksums import file_checksum
from stages.contract import StageError
from stages.data.arrow_types import DAMAGED_TEXT
from stages.data.languages import language_pattern
from stages.data.schemas import LAION_SCORES, REJECTED, content_id
from stages.ingest.config import IngestConfig
from stages.ingest.metadata import MetadataFiles, count_rows, read_tables
from stages.ingest.partitions import Partitions, keys_of_ids, keys_of_texts
from stages.ingest.urls import url_error

#: The schema of the list that img2dataset downloads.
URLS = pa.schema(
    [("sample_id", pa.string()), ("url", pa.string()), ("caption", pa.string())]
    + [(name, pa.float32()) for name in LAION_SCORES.values()]
    + [("language", pa.string())]
)

_METADATA = pa.schema([field for field in URLS if field.name != "sample_id"])

#: Longer texts are not captions: crawls find whole pages in alt attributes.
MAX_CAPTION_LETTERS = 20_000
_KEPT_OF_A_LONG_CAPTION = 1_000


@dataclass(frozen=True, kw_only=True)
class UrlList:
    """The list of URLs on disk.

    Attributes:
        file: Parquet: a row for each URL to download (schema `URLS`), sorted by sample id, one row group a shard.
        shard_sizes: The number of rows of each shard.
        rejected_rows: All other rows (schema `REJECTED`) by sample id, each with the first reason that applies.
        rejected: The number of rejected rows by reason.
        total: The number of rows of the metadata, according to the files' footers.
    """

    file: Path
    shard_sizes: list[int]
    rejected_rows: Partitions
    rejected: Counter[str]
    total: int

    @property
    def wanted(self) -> int:
        """The number of rows to download."""
        return sum(self.shard_sizes)

    @cached_property
    def _opened(self) -> pq.ParquetFile:
        return pq.ParquetFile(self.file)

    def shard(self, number: int, columns: list[str] | None = None) -> pa.Table:
        """The rows of a shard; only some of their columns, if given."""
        return self._opened.read_row_group(number, columns=columns)

    @property
    def digest(self) -> str:
        """The SHA-256 of the list, by which a later call recognises it."""
        return file_checksum(self.file)


def write_url_list(files: MetadataFiles, settings: IngestConfig, folder: Path) -> UrlList:
    """Read the metadata and write the rows that are to be downloaded to `folder`; the others are rejected.

    Missing score columns become nulls. Of rows with the same URL the first is kept. Some 100,000 rows at a time are in
    memory: a hash of the URL distributes the rows to files, in which repeated URLs are found, and the ids distribute
    the rest to other files, which sorts them.

    Raises:
        StageError: A file is not Parquet or lacks a column, a column has a wrong type, or no row is left.
    """
    total = count_rows(files)
    if not total:
        raise StageError(f"ingest.metadata: {files.paths[0]} {_and_others(files)}holds no rows.")
    rejects = _Rejects(folder / "rejected_rows", total)
    by_url = _apply_rules(files, settings, rejects, Partitions(folder / "by_url", _METADATA, total))
    by_id = _sort_by_id(by_url, rejects, Partitions(folder / "by_id", URLS, total))
    ordered = (table.sort_by("sample_id") for table in by_id.tables())
    unique = (rejects.take(table, _SAME_ID, _is_first(table["sample_id"])) for table in ordered)
    file = folder / "urls.parquet"
    sizes = _write_shards(file, unique, settings.samples_per_shard)
    if not sizes:
        reasons = ", ".join(f"{reason} {count}" for reason, count in rejects.counts.most_common(3))
        raise StageError(
            f"ingest.metadata: of the {total} rows of {files.paths[0]} {_and_others(files)}none is wanted ({reasons})."
        )
    return UrlList(file=file, shard_sizes=sizes, rejected_rows=rejects.rows, rejected=rejects.counts, total=total)


class _Rejects:
    """The rejected rows on disk (schema `REJECTED`), and their number by reason."""

    def __init__(self, folder: Path, total: int) -> None:
        self.rows = Partitions(folder, REJECTED, total)
        self.counts = Counter[str]()

    def take(self, table: pa.Table, rule: MetadataRule, keep: pc.Expression | pa.Array) -> pa.Table:
        """Reject the rows for which `keep` is false; returns the others."""
        rejected = table.filter(~keep if isinstance(keep, pc.Expression) else pc.invert(keep))
        if rejected.num_rows:
            rows = _rejected(rejected, rule)
            self.rows.add(rows, keys_of_ids(rows["sample_id"].to_pylist()))
            self.counts[rule.reason] += rejected.num_rows
        return table.filter(keep)


def _apply_rules(files: MetadataFiles, settings: IngestConfig, rejects: _Rejects, by_url: Partitions) -> Partitions:
    """Add the rows that pass all rules to `by_url`."""
    rules = metadata_rules(settings)
    for table in read_tables(files, settings):
        table = table.append_column(_URL_ERROR, _url_errors(table["url"]))
        for rule in rules:
            table = rejects.take(table, rule, rule.keep)
        by_url.add(table, keys_of_texts(table["url"].to_pylist()))
    return by_url


def _sort_by_id(by_url: Partitions, rejects: _Rejects, by_id: Partitions) -> Partitions:
    """Add the first row of each URL to `by_id`, with its id."""
    for table in by_url.tables():
        table = rejects.take(table, _SAME_URL, _is_first(table["url"]))
        ids = _sample_ids(table)
        by_id.add(table.append_column("sample_id", ids), keys_of_ids(ids.to_pylist()))
    return by_id


def _write_shards(file: Path, tables: Iterable[pa.Table], rows_per_shard: int) -> list[int]:
    """Write tables (schema `URLS`) as one Parquet file with a row group for each shard; returns the groups' rows."""
    waiting, rows = URLS.empty_table(), 0
    with pq.ParquetWriter(file, URLS) as writer:
        for table in tables:
            waiting = pa.concat_tables([waiting, table]).combine_chunks()
            whole = waiting.num_rows // rows_per_shard * rows_per_shard
            if whole:
                writer.write_table(waiting.slice(0, whole), row_group_size=rows_per_shard)
            waiting, rows = waiting.slice(whole), rows + table.num_rows
        if waiting.num_rows:
            writer.write_table(waiting, row_group_size=rows_per_shard)
    return [min(rows_per_shard, rows - start) for start in range(0, rows, rows_per_shard)]


@dataclass(frozen=True, kw_only=True)
class MetadataRule:
    """One reason to reject a row.

    Attributes:
        reason: Stored with the rejected row.
        keep: False for the rows to reject; never null.
        columns: Their values are stored as the detail,
        text: followed by this text, if there is one.
    """

    reason: str
    keep: pc.Expression
    columns: tuple[str, ...] = ()
    text: str = ""


#: A column beside those of the metadata: why no browser could open the URL; null: one could.
_URL_ERROR = pa.field("url_error", pa.string())

_SAME_URL = MetadataRule(reason="duplicate_url", keep=pc.scalar(True), text="an earlier row has this URL")
#: Ids are hashes of the URL, a line break and the caption, and a URL may contain a line break.
_SAME_ID = MetadataRule(reason="duplicate_id", keep=pc.scalar(True), text="another row has this id")


def metadata_rules(settings: IngestConfig) -> list[MetadataRule]:
    """The rules in the order in which they are applied. A value that the metadata lacks is no reason to reject."""
    caption = pc.field("caption")
    is_sound = ~pc.match_substring_regex(caption, pattern=DAMAGED_TEXT)
    rules = [
        MetadataRule(reason="no_url", keep=_filled("url"), text="the metadata row has none"),
        MetadataRule(reason="no_caption", keep=_filled("caption"), text="the metadata row has none"),
        MetadataRule(reason="caption_encoding", keep=is_sound, text="not UTF-8, or damaged before (NUL or U+FFFD)"),
        MetadataRule(
            reason="long_caption",
            keep=pc.utf8_length(caption) <= MAX_CAPTION_LETTERS,
            text=f"> {MAX_CAPTION_LETTERS}",
        ),
        MetadataRule(reason="bad_url", keep=pc.is_null(pc.field(_URL_ERROR.name)), columns=(_URL_ERROR.name,)),
        *_size_rules(settings),
        *_score_rules(settings),
    ]
    if settings.languages is not None:
        pattern = language_pattern(settings.languages)
        is_known = pc.match_substring_regex(pc.field("language"), pattern=pattern, ignore_case=True)
        keep = pc.is_null(pc.field("language")) | is_known
        rules.append(MetadataRule(reason="language", keep=keep, columns=("language",), text="is not asked for"))
    return rules


def _size_rules(settings: IngestConfig) -> Iterator[MetadataRule]:
    width, height, ratio = pc.field("width"), pc.field("height"), settings.max_aspect_ratio
    unknown = ~(pc.is_valid(width) & pc.is_valid(height)) | (width < 1) | (height < 1)
    large = (width >= settings.min_image_size) & (height >= settings.min_image_size)
    fair = (width <= height * ratio) & (height <= width * ratio)
    columns, text = ("width", "height"), "in the metadata"
    yield MetadataRule(reason="too_small", keep=unknown | large, columns=columns, text=text)
    yield MetadataRule(reason="aspect_ratio", keep=unknown | fair, columns=columns, text=text)


def _score_rules(settings: IngestConfig) -> Iterator[MetadataRule]:
    for score in LAION_SCORES.values():
        value = pc.field(score)
        low, high = getattr(settings, f"min_{score}", None), getattr(settings, f"max_{score}", None)
        if low is not None:
            keep = pc.is_null(value) | (value >= low)
            yield MetadataRule(reason=score, keep=keep, columns=(score,), text=f"< {low:g}")
        if high is not None:
            keep = pc.is_null(value) | (value <= high)
            yield MetadataRule(reason=score, keep=keep, columns=(score,), text=f"> {high:g}")


def _filled(column: str) -> pc.Expression:
    text = pc.field(column)
    return pc.is_valid(text) & (pc.utf8_length(pc.utf8_trim_whitespace(text)) > 0)


def _url_errors(urls: pa.ChunkedArray) -> pa.Array:
    return pa.array([None if url is None else url_error(url) for url in urls.to_pylist()], _URL_ERROR.type)


def _sample_ids(table: pa.Table) -> pa.Array:
    pairs = zip(table["url"].to_pylist(), table["caption"].to_pylist(), strict=True)
    return pa.array([content_id(url or "", caption or "") for url, caption in pairs], pa.string())


def _is_first(texts: pa.ChunkedArray) -> pa.Array:
    """Whether each text occurs in no row above."""
    first: dict[str, int] = {}
    for position, text in enumerate(texts.to_pylist()):
        first.setdefault(text, position)
    mask = np.zeros(len(texts), bool)
    mask[list(first.values())] = True
    return pa.array(mask)


def _rejected(table: pa.Table, rule: MetadataRule) -> pa.Table:
    detail: Any = pa.repeat(rule.text, table.num_rows)
    if rule.columns:
        values = (table[name].cast(pa.string()) for name in rule.columns)
        detail = pc.utf8_rtrim_whitespace(
            pc.binary_join_element_wise(pc.binary_join_element_wise(*values, " x "), detail, " ")
        )
    columns = {
        "sample_id": _sample_ids(table),
        "url": pc.fill_null(table["url"], ""),
        "caption": pc.utf8_slice_codeunits(table["caption"], 0, _KEPT_OF_A_LONG_CAPTION),
        "reason": pa.repeat(rule.reason, table.num_rows),
        "detail": detail,
    }
    return pa.table(columns).cast(REJECTED)


def _and_others(files: MetadataFiles) -> str:
    return f"and {len(files.paths) - 1} other files " if len(files.paths) > 1 else ""
