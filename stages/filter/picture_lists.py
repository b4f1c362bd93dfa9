"""Readers of picture files whose captions stand in a list, or in a text file beside each."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from model.files import TextError, decode_with_losses, printable_name, read_text
from model.pictures.decoding import PICTURE_SUFFIXES
from stages.data.arrow_types import column_key
from stages.filter.foreign_rows import (
    CAPTION_NAMES,
    PATH_NAMES,
    Columns,
    DamagedFileError,
    ForeignRow,
    PictureFiles,
    first_caption,
    first_name,
    words_of,
)
from stages.storage import StorePath

#: Of lists; a JSON list, COCO's captions, a row a line, or a table with a head.
LIST_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".json")
#: Of the text beside a picture.
CAPTION_SUFFIXES = (".txt", ".caption", ".json")
_DELIMITERS = "\t|;,"
_COCO = ("images", "annotations")


def read_list(file: StorePath, name: str, columns: Columns, pictures: PictureFiles) -> Iterator[ForeignRow]:
    """The rows of a list, each with its picture."""
    try:
        for number, fields in enumerate(list_rows(file)):
            path, caption = chosen(fields, columns)
            named = fields.get(path) if path else None
            picture = pictures.read(named) if isinstance(named, str) else None
            own = {**fields, CAPTION_NAMES[0]: fields.get(caption) if caption else None}
            if picture is None:
                own["error_message"] = f"there is no file {printable_name(str(named))}"
            yield ForeignRow(origin=f"{name}#{number}", picture=picture, fields=own)
    except (TextError, ValueError, csv.Error, RecursionError) as error:
        raise DamagedFileError(words_of(error)) from error


def chosen(fields: Mapping[str, Any], columns: Columns) -> tuple[str | None, str | None]:
    """The names of the path and of the caption of a row."""
    paths = PATH_NAMES if columns.picture is None else (column_key(columns.picture),)
    captions = CAPTION_NAMES if columns.caption is None else (column_key(columns.caption),)
    texts = [name for name, value in fields.items() if isinstance(value, str)]
    filled = [name for name, value in fields.items() if first_caption(value) is not None]
    path = first_name(texts, paths)
    return path, first_name([name for name in filled if name != path], captions)


def list_rows(file: StorePath) -> Iterator[dict[str, Any]]:
    """The rows of a list by column in lower case.

    Raises:
        TextError: It is not text.
        ValueError: It is no list of rows.
    """
    text = read_text(file)
    suffix = PurePosixPath(file.name).suffix.lower()
    if suffix in (".csv", ".tsv"):
        rows: Iterator[Any] = _table_rows(text)
    elif suffix == ".json":
        rows = _json_rows(json.loads(text))
    else:
        rows = (json.loads(line) for line in text.split("\n") if line.strip())  # a caption may hold other line ends
    for row in rows:
        if not isinstance(row, dict):
            raise ValueError("a row is no object with columns")
        yield {column_key(str(key).strip()): value for key, value in row.items() if key is not None}


def _table_rows(text: str) -> Iterator[dict[str, Any]]:
    head, _, _ = text.partition("\n")
    delimiter = next((one for one in _DELIMITERS if one in head), ",")
    yield from csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)


def _json_rows(content: Any) -> Iterator[Any]:
    """A list of rows; COCO's captions, of which each picture has the first; or a row by the picture's path."""
    if isinstance(content, dict) and all(isinstance(content.get(name), list) for name in _COCO):
        captions: dict[Any, Any] = {}
        for annotation in content["annotations"]:
            captions.setdefault(annotation.get("image_id"), annotation.get("caption"))
        yield from ({**image, "caption": captions.get(image.get("id"))} for image in content["images"])
    elif isinstance(content, dict):
        for path, row in content.items():
            yield {"file_name": path, **(row if isinstance(row, dict) else {"caption": row})}
    elif isinstance(content, list):
        yield from content
    else:
        raise ValueError("it is no list of rows")


def captioned_folders(files: Sequence[StorePath]) -> list[StorePath]:
    """The folders that have a picture with a text of its name beside it, in order."""
    texts = {(file.parent, file.stem) for file in files if file.suffix.lower() in CAPTION_SUFFIXES}
    pictures = (file for file in files if file.suffix.lower() in PICTURE_SUFFIXES)
    return list(dict.fromkeys(file.parent for file in pictures if (file.parent, file.stem) in texts))


def read_captioned(folder: StorePath, name: str, columns: Columns, pictures: PictureFiles) -> Iterator[ForeignRow]:
    """The pictures in a folder, each with the text beside it."""
    files = sorted((file for file in folder.iterdir() if not file.name.startswith((".", "_"))), key=str)
    texts: dict[str, dict[str, StorePath]] = {}
    for file in files:
        if file.suffix.lower() in CAPTION_SUFFIXES:
            texts.setdefault(file.stem, {})[file.suffix.lower()] = file
    for file in files:
        if file.suffix.lower() not in PICTURE_SUFFIXES or not file.is_file():
            continue
        origin = f"{name}/{printable_name(file.name)}" if name not in ("", ".") else printable_name(file.name)
        fields = _fields_beside(texts.get(file.stem, {}), columns)
        yield ForeignRow(origin=origin, picture=file.read_bytes(), fields=fields)


def _fields_beside(texts: Mapping[str, StorePath], columns: Columns) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if ".json" in texts:
        try:
            content = json.loads(decode_with_losses(texts[".json"].read_bytes()))
            fields = {column_key(str(key)): value for key, value in content.items()}
        except (ValueError, AttributeError, RecursionError):
            pass
        if columns.caption is not None:
            fields[CAPTION_NAMES[0]] = fields.get(column_key(columns.caption))
            return fields
    for suffix in (".txt", ".caption"):
        if suffix in texts:
            fields[CAPTION_NAMES[0]] = decode_with_losses(texts[suffix].read_bytes()).rstrip("\r\n")
            break
    return fields
