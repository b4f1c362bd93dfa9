"""Folders with captioned pictures that other tools write. Nothing is unpickled or executed.

- webdataset: tar files with `key.jpg` (or png, webp, gif), `key.txt` and `key.json`, as img2dataset writes them;
- Arrow streams: from `datasets.Dataset.save_to_disk`, with one or more splits;
- Parquet: from img2dataset, or from a Hugging Face dataset with an image column {bytes, path};
- lists of picture files: `metadata.jsonl`, `.csv` or `.parquet` of Hugging Face's image folders, COCO's captions;
- picture files with their captions in text files of the same names.

The first of these that a folder holds determines its layout: img2dataset also writes Parquet files without pictures
beside its tar files.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from model.files import TextError, is_hidden, printable_name, visible_files
from model.pictures.decoding import PICTURE_SUFFIXES
from stages.contract import StageError
from stages.data.arrow_types import column_key
from stages.data.bulk_files import fetched, unseen
from stages.data.schemas import SPELLINGS
from stages.filter.foreign_rows import CAPTION_NAMES, ERRORS, PATH_NAMES, USUAL, Columns, ForeignRow, PictureFiles
from stages.filter.picture_lists import LIST_SUFFIXES, captioned_folders, chosen, list_rows, read_captioned, read_list
from stages.filter.tables import caption_column, path_column, picture_column, read_arrow, read_parquet, read_schema
from stages.filter.tar_files import SUFFIXES as TAR_SUFFIXES
from stages.filter.tar_files import read_tar
from stages.storage import StorePath, names_below

_SETTING = "filter.pictures_folder"
_Reader = Callable[[Path, str, Columns, PictureFiles], Iterator[ForeignRow]]


@dataclass(frozen=True, kw_only=True)
class ForeignFolder:
    """The files of a folder, and their reader.

    Attributes:
        kind: What one of the files is, for a sentence.
        files: Sorted paths, of files or of folders.
        read: Yields the rows of one, given its path and its name in `origin`; raises DamagedFileError.
    """

    kind: str
    files: Sequence[StorePath]
    read: Callable[[StorePath, str], Iterator[ForeignRow]]


def find_layout(folder: StorePath, columns: Columns = USUAL) -> ForeignFolder:
    """Find the layout of a folder.

    Raises:
        StageError: There is no such folder, it has none of the layouts, or its files lack pictures or captions.
    """
    everything = _visible_files(folder)
    lacking: list[str] = []
    for find in (_find_tar, _find_arrow, _find_parquet, _find_lists, _find_captioned):
        found = find(everything, folder, columns, lacking)
        if found is not None:
            return found
    if lacking:
        raise StageError(f"{_SETTING}: {lacking[0]}")
    raise StageError(
        f"{_SETTING}: {printable_name(str(folder))} holds no captioned pictures that can be read: no *.tar, *.arrow or "
        "*.parquet, no metadata.jsonl or .csv with file names and captions, and no pictures with a .txt of the same "
        f"name{_what_is_there(everything)}."
    )


def _what_is_there(files: Sequence[StorePath]) -> str:
    counts = Counter(file.suffix.lower() or "files without a suffix" for file in files).most_common(3)
    if not counts:
        return ""
    unpack = "; unpack the archives" if any(suffix in (".zip", ".7z", ".rar", ".gz") for suffix, _ in counts) else ""
    return f"; it holds {', '.join(f'{count} {suffix}' for suffix, count in counts)}{unpack}"


def _find_tar(
    everything: Sequence[StorePath], root: StorePath, columns: Columns, lacking: list[str]
) -> ForeignFolder | None:
    files = [file for file in everything if file.name.endswith(TAR_SUFFIXES)]
    return _layout("tar file", files, read_tar, root, columns)


def _find_arrow(
    everything: Sequence[StorePath], root: StorePath, columns: Columns, lacking: list[str]
) -> ForeignFolder | None:
    files = [file for file in everything if file.suffix == ".arrow" and not _is_cache(file)]
    return _layout("Arrow file", _with_columns(files, columns, lacking), read_arrow, root, columns)


def _find_parquet(
    everything: Sequence[StorePath], root: StorePath, columns: Columns, lacking: list[str]
) -> ForeignFolder | None:
    files = [file for file in everything if file.suffix == ".parquet"]
    return _layout("Parquet file", _with_columns(files, columns, lacking), read_parquet, root, columns)


def _find_lists(
    everything: Sequence[StorePath], root: StorePath, columns: Columns, lacking: list[str]
) -> ForeignFolder | None:
    """Lists beside picture files. Other files of these suffixes, such as dataset_infos.json, are none."""
    if not any(file.suffix.lower() in PICTURE_SUFFIXES for file in everything):
        return None
    stems = {(file.parent, file.stem) for file in everything if file.suffix.lower() in PICTURE_SUFFIXES}
    found: list[StorePath] = []
    for file in everything:
        if file.suffix.lower() not in LIST_SUFFIXES or (file.parent, file.stem) in stems:
            continue
        try:
            names = _names_of_list(file, columns)
        except TextError as error:
            lacking.append(str(error))
            continue
        path, caption = names[1] if names else (None, None)
        if path and caption:
            found.append(file)
        elif names and file.suffix.lower() != ".json":
            problem = "a caption" if path else f"a picture's file name (a column {' or '.join(PATH_NAMES[:3])}, ...)"
            lacking.append(_lacks(file, [problem], names[0], columns))
    if not found:
        return None
    return ForeignFolder(kind="picture list", files=found, read=partial(_read, read_list, root, columns))


def _names_of_list(file: StorePath, columns: Columns) -> tuple[list[str], tuple[str | None, str | None]] | None:
    """The columns of a list's first rows, and those of the path and the caption; None if it is no list of rows.

    Raises:
        TextError: It is not text.
    """
    try:
        rows = list(itertools.islice(list_rows(file), 100))
    except TextError:
        raise
    except (ValueError, OSError, RecursionError, AttributeError):
        return None
    fields = {name: value for row in reversed(rows) for name, value in row.items() if value not in (None, "", [])}
    return (list(rows[0]), chosen(fields, columns)) if rows else None


def _find_captioned(
    everything: Sequence[StorePath], root: StorePath, columns: Columns, lacking: list[str]
) -> ForeignFolder | None:
    folders = captioned_folders(everything)
    if not folders:
        return None
    kind = "captioned folder"
    return ForeignFolder(kind=kind, files=folders, read=partial(_read, read_captioned, root, columns))


def _layout(
    kind: str, files: Sequence[StorePath], read: _Reader, root: StorePath, columns: Columns
) -> ForeignFolder | None:
    if not files:
        return None
    ordered = sorted(files, key=lambda file: tuple(file.parts))
    return ForeignFolder(kind=kind, files=ordered, read=partial(_fetch_and_read, read, root, columns))


def _fetch_and_read(
    read: _Reader, root: StorePath, columns: Columns, file: StorePath, name: str
) -> Iterator[ForeignRow]:
    with fetched(file) as local:
        if not local.exists():
            raise StageError(unseen(_SETTING, file))
        yield from read(local, name, columns, PictureFiles(root=root, folder=file.parent))


def _read(
    read: Callable[[StorePath, str, Columns, PictureFiles], Iterator[ForeignRow]],
    root: StorePath,
    columns: Columns,
    file: StorePath,
    name: str,
) -> Iterator[ForeignRow]:
    if not file.exists():
        raise StageError(unseen(_SETTING, file))
    yield from read(file, name, columns, PictureFiles(root=root, folder=file.parent))


def _visible_files(folder: StorePath) -> list[StorePath]:
    if isinstance(folder, Path):
        if not os.path.isdir(folder):
            raise StageError(f"{_SETTING}: there is no folder {printable_name(folder)}.")
        return list(visible_files(folder))
    names = names_below(folder)
    if not names:
        raise StageError(f"{_SETTING}: there is no folder {folder}, or it is empty.")
    return [folder / name for name in sorted(names) if not is_hidden(PurePosixPath(name))]


def _is_cache(file: StorePath) -> bool:
    """Whether `datasets` has left a file beside a dataset: the result of an earlier map, cache-<fingerprint>.arrow."""
    return file.suffix == ".arrow" and file.name.startswith("cache-")


def _with_columns(files: Sequence[StorePath], columns: Columns, lacking: list[str]) -> Sequence[StorePath]:
    """The files if the first readable one has our columns, or none is readable; else none, and what it lacks.

    If another file lacks a column, its rows are rejected later.
    """
    for file in files:
        try:
            schema = read_schema(file)
        except ERRORS:
            continue
        missing = []
        if picture_column(schema, columns) is None and path_column(schema, columns) is None:
            missing.append("a picture's bytes (a column image, jpg, ...)")
        if caption_column(schema, columns) is None:
            missing.append(f"a caption (a text column {' or '.join(CAPTION_NAMES[:4])}, ...)")
        if missing:
            lacking.append(_lacks(file, missing, schema.names, columns))
        return [] if missing else files
    return files


def _lacks(file: StorePath, missing: Sequence[str], names: Sequence[str], columns: Columns) -> str:
    """What a file lacks, the columns that it has, and what to do."""
    text = f"{printable_name(str(file))} lacks {' and '.join(missing)}; its columns are {', '.join(names)}"
    if {column_key(name) for name in names} & set(SPELLINGS["url"]) and missing[0].startswith("a picture's"):
        return f"{text}: pictures behind URLs are downloaded with --set ingest.metadata=... instead."
    wrong = [part for part in ("picture", "caption") if any(part in one.split("(")[0] for one in missing)]
    return f"{text}: name the right one with {' and '.join(f'--set filter.{part}_column=...' for part in wrong)}."
