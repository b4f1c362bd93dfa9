"""The list of pictures to fetch, from metadata that somebody else has written."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from stages.contract import StageError
from stages.data.schemas import LAION_SCORES, REJECTED, SPELLINGS, content_id
from stages.ingest.config import IngestConfig
from stages.ingest.partitions import Partitions, keys_of_ids, keys_of_texts

#: The list that img2dataset works on.
URLS = pa.schema(
    [("sample_id", pa.string()), ("url", pa.string()), ("caption", pa.string())]
    + [(name, pa.float32()) for name in LAION_SCORES.values()]
    + [("language", pa.string())]
)

_METADATA = pa.schema([field for field in URLS if field.name != "sample_id"])
_ROWS_AT_ONCE = 65_536
#: Of our columns that hold no score.
_TYPES = {"url": pa.string(), "caption": pa.string(), "language": pa.string(), "width": pa.float64()}
_TYPES["height"] = pa.float64()

#: A longer text is no caption; a crawl has pages in its alt attributes.
MAX_CAPTION_LETTERS = 20_000
_KEPT_OF_A_LONG_CAPTION = 1_000


@dataclass(frozen=True, kw_only=True)
class UrlList:
    """What the metadata asks for; it lies on disk.

    Attributes:
        file: Parquet: a row for each URL that is wanted (schema `URLS`), sorted by sample id, a row group a shard.
        wanted: Rows of `file`.
        rejected_rows: All other rows (schema `REJECTED`) by sample id, each with the first reason that is true of it.
        rejected: How many rows are rejected for what.
        total: Rows of the metadata, as the files' footers count them.
    """

    file: Path
    wanted: int
    rejected_rows: Partitions
    rejected: Counter[str]
    total: int


@dataclass(frozen=True, kw_only=True)
class MetadataFiles:
    """Parquet files on a file system that pyarrow or fsspec knows."""

    system: pafs.FileSystem
    paths: list[str]


def metadata_files(source: str) -> MetadataFiles:
    """The Parquet files of a file or folder, and of the folders in it; a path, or a URI such as s3://bucket/folder.

    Raises:
        StageError: There is nothing there, or no such file system.
    """
    try:
        system, path = _file_system(source)
        found = system.get_file_info(path)
        if found.type == pafs.FileType.File:
            return MetadataFiles(system=system, paths=[path])
        if found.type == pafs.FileType.NotFound:
            raise StageError(f"ingest.metadata: there is no file or folder {source}.")
        entries = system.get_file_info(pafs.FileSelector(path, recursive=True))
    except (OSError, ImportError, ValueError) as error:
        raise StageError(f"ingest.metadata: {source} cannot be listed ({' '.join(str(error).split())}).") from error
    files = sorted(
        entry.path for entry in entries if entry.base_name.endswith(".parquet") and entry.base_name[0] not in "._"
    )
    if not files:
        raise StageError(f"ingest.metadata: the folder {source} holds no *.parquet file.")
    return MetadataFiles(system=system, paths=files)


def _file_system(source: str) -> tuple[pafs.FileSystem, str]:
    if "://" not in source:
        return pafs.LocalFileSystem(), str(Path(source).expanduser().resolve())
    try:
        return pafs.FileSystem.from_uri(source)
    except pa.ArrowInvalid:  # not one of Arrow's own: hf://, http://, memory://
        import fsspec

        system, path = fsspec.core.url_to_fs(source)
        return pafs.PyFileSystem(pafs.FSSpecHandler(system)), path


def write_url_list(files: MetadataFiles, settings: IngestConfig, folder: Path) -> UrlList:
    """Read the metadata, reject the rows that nobody should ask the web for, and write the others to `folder`.

    Score columns that the metadata does not have become nulls. Of rows with the same URL the first counts. Rows are
    held in memory some 100,000 at a time: they are shared out to files by a hash of their URL, in which repeated URLs
    are found, and from there by their ids, which sorts them.

    Raises:
        StageError: A file is not Parquet or lacks a column; a column has a wrong type; no row is of use.
    """
    total = sum(_rows(files.system, path) for path in files.paths)
    if not total:
        raise StageError(f"ingest.metadata: {files.paths[0]} {_and_others(files)}holds no rows.")
    rejected_rows = Partitions(folder / "rejected_rows", REJECTED, total)
    by_url, by_id = Partitions(folder / "by_url", _METADATA, total), Partitions(folder / "by_id", URLS, total)
    rejected = Counter[str]()

    def drop(table: pa.Table, rule: MetadataRule, keep: pc.Expression | pa.Array) -> pa.Table:
        dropped = table.filter(~keep if isinstance(keep, pc.Expression) else pc.invert(keep))
        if dropped.num_rows:
            rows = _rejected(dropped, rule)
            rejected_rows.add(rows, keys_of_ids(rows["sample_id"].to_pylist()))
            rejected[rule.reason] += dropped.num_rows
        return table.filter(keep)

    rules = metadata_rules(settings)
    for table in itertools.chain.from_iterable(_read_file(files.system, path, settings) for path in files.paths):
        for rule in rules:
            table = drop(table, rule, rule.keep)
        by_url.add(table, keys_of_texts(table["url"].to_pylist()))
    for table in by_url.tables():
        table = drop(table, _SAME_URL, _is_first(table["url"]))
        ids = _sample_ids(table)
        by_id.add(table.append_column("sample_id", ids), keys_of_ids(ids.to_pylist()))
    ordered = (table.sort_by("sample_id") for table in by_id.tables())
    unique = (drop(table, _SAME_ID, _is_first(table["sample_id"])) for table in ordered)
    wanted = _write_shards(folder / "urls.parquet", unique, settings.samples_per_shard)
    if not wanted:
        reasons = ", ".join(f"{reason} {count}" for reason, count in rejected.most_common(3))
        raise StageError(
            f"ingest.metadata: of the {total} rows of {files.paths[0]} {_and_others(files)}none is wanted ({reasons})."
        )
    return UrlList(
        file=folder / "urls.parquet", wanted=wanted, rejected_rows=rejected_rows, rejected=rejected, total=total
    )


def _write_shards(file: Path, tables: Iterable[pa.Table], rows_per_shard: int) -> int:
    """Write tables of schema URLS as one Parquet file, a row group a shard; returns the number of rows."""
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
    return rows


@dataclass(frozen=True, kw_only=True)
class MetadataRule:
    """Rows for which `keep`, which is never null, is false are rejected with `reason`; `columns` show why."""

    reason: str
    keep: pc.Expression
    columns: tuple[str, ...] = ()
    text: str = ""


_SAME_URL = MetadataRule(reason="duplicate_url", keep=pc.scalar(True), text="an earlier row has this URL")
#: URL and caption are hashed with a line break between them, which a URL may have in it.
_SAME_ID = MetadataRule(reason="duplicate_id", keep=pc.scalar(True), text="another row has this id")


def metadata_rules(settings: IngestConfig) -> list[MetadataRule]:
    """The rules in the order in which they are asked. What the metadata does not tell is no reason to reject."""
    field = pc.field
    letters = pc.utf8_length(field("caption"))
    is_web = pc.match_substring_regex(field("url"), pattern=r"^\s*https?://[^\s/]", ignore_case=True)
    width, height, ratio = field("width"), field("height"), settings.max_aspect_ratio
    unknown = ~(pc.is_valid(width) & pc.is_valid(height)) | (width < 1) | (height < 1)
    large = (width >= settings.min_image_size) & (height >= settings.min_image_size)
    fair = (width <= height * ratio) & (height <= width * ratio)
    rules = [
        MetadataRule(reason="no_url", keep=_filled("url"), text="the metadata row has none"),
        MetadataRule(reason="no_caption", keep=_filled("caption"), text="the metadata row has none"),
        MetadataRule(reason="long_caption", keep=letters <= MAX_CAPTION_LETTERS, text=f"> {MAX_CAPTION_LETTERS}"),
        MetadataRule(reason="bad_url", keep=is_web, text="neither http:// nor https://"),
        MetadataRule(reason="too_small", keep=unknown | large, columns=("width", "height"), text="in the metadata"),
        MetadataRule(reason="aspect_ratio", keep=unknown | fair, columns=("width", "height"), text="in the metadata"),
    ]
    for score in LAION_SCORES.values():
        low, high = getattr(settings, f"min_{score}", None), getattr(settings, f"max_{score}", None)
        if low is not None:
            keep = pc.is_null(field(score)) | (field(score) >= low)
            rules.append(MetadataRule(reason=score, keep=keep, columns=(score,), text=f"< {low:g}"))
        if high is not None:
            keep = pc.is_null(field(score)) | (field(score) <= high)
            rules.append(MetadataRule(reason=score, keep=keep, columns=(score,), text=f"> {high:g}"))
    if settings.languages is not None:
        known = [language.lower() for language in settings.languages]
        keep = pc.is_null(field("language")) | pc.utf8_lower(field("language")).isin(known)
        rules.append(MetadataRule(reason="language", keep=keep, columns=("language",), text="is not asked for"))
    return rules


def _filled(column: str) -> pc.Expression:
    text = pc.field(column)
    return pc.is_valid(text) & (pc.utf8_length(pc.utf8_trim_whitespace(text)) > 0)


@contextmanager
def _opened(system: pafs.FileSystem, path: str) -> Iterator[pq.ParquetFile]:
    try:
        with system.open_input_file(path) as source:
            yield pq.ParquetFile(source, pre_buffer=False)  # which would keep what has been read
    except (pa.ArrowInvalid, OSError) as error:
        raise StageError(f"ingest.metadata: {path} is not a Parquet file ({str(error).splitlines()[0]})") from error


def _rows(system: pafs.FileSystem, path: str) -> int:
    with _opened(system, path) as file:
        return int(file.metadata.num_rows)


def _read_file(system: pafs.FileSystem, path: str, settings: IngestConfig) -> Iterator[pa.Table]:
    """The columns that matter, under our names and types, some rows at a time; those that are not there are null."""
    with _opened(system, path) as file:
        columns = _columns(path, file.schema_arrow.names, settings)
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=list(columns.values())):
            table = pa.Table.from_batches([batch])
            read = {ours: _cast(table[theirs], ours, path, theirs) for ours, theirs in columns.items()}
            for ours in SPELLINGS:
                read.setdefault(ours, pa.nulls(table.num_rows, _TYPES.get(ours, pa.float32())))
            yield pa.table(read)


def _columns(path: str, names: list[str], settings: IngestConfig) -> dict[str, str]:
    """Their names of our columns, for those that are there."""
    lower = {name.lower(): name for name in reversed(names)}
    found = {ours: lower[name] for ours, usual in SPELLINGS.items() for name in reversed(usual) if name in lower}
    for ours in ("url", "caption"):
        given = getattr(settings, f"{ours}_column")
        if given is not None:
            found[ours] = given
        if found.get(ours) not in names:
            lacking = f"the column {given!r}" if given else f"a column {' or '.join(SPELLINGS[ours])}"
            raise StageError(
                f"ingest.metadata: {path} lacks {lacking}; its columns are {', '.join(names)}: "
                f"name the right one with --set ingest.{ours}_column=..."
            )
    return found


def _cast(column: pa.ChunkedArray, ours: str, path: str, theirs: str) -> pa.ChunkedArray:
    wanted = _TYPES.get(ours, pa.float32())
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    kind = "text" if pa.types.is_string(wanted) else "numbers"
    sentence = f"ingest.metadata: the column {theirs!r} of {path} must hold {kind}, not {column.type}."
    if is_text != pa.types.is_string(wanted) and not pa.types.is_null(column.type):
        raise StageError(sentence)
    try:
        return _unicode(column).cast(wanted, safe=False) if is_text else column.cast(wanted, safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise StageError(sentence) from error


def _unicode(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A text column whose bytes are UTF-8; Parquet does not check what a writer has put there."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        raw = column.cast(pa.large_binary()).to_pylist()
        return pa.chunked_array(
            [pa.array([None if text is None else text.decode("utf-8", "replace") for text in raw], pa.large_string())]
        )
    return column


def _sample_ids(table: pa.Table) -> pa.Array:
    pairs = zip(table["url"].to_pylist(), table["caption"].to_pylist(), strict=True)
    return pa.array([content_id(url or "", caption or "") for url, caption in pairs], pa.string())


def _is_first(texts: pa.ChunkedArray) -> pa.Array:
    """Whether no row above has the same."""
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
        detail = pc.binary_join_element_wise(pc.binary_join_element_wise(*values, " x "), detail, " ")
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
