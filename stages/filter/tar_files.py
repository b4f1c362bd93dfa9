"""Reader of webdatasets: tar files with a picture, and its caption in `key.txt` or `key.json`."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from model.files import decode_with_losses, is_hidden, printable_name, text_damage
from stages.data.arrow_types import column_key
from stages.filter.foreign_rows import (
    CAPTION_NAMES,
    ERRORS,
    PICTURE_NAMES,
    USUAL,
    Columns,
    DamagedFileError,
    ForeignRow,
    PictureFiles,
    words_of,
)

SUFFIXES = (".tar", ".tar.gz", ".tgz")
MAX_MEMBER_BYTES = 100_000_000  # larger members of a tar file are not read
_TEXT_MEMBERS = ("txt", "caption", "text", "prompt")
_BLOCK = tarfile.BLOCKSIZE


def read_tar(
    file: Path, name: str, columns: Columns = USUAL, pictures: PictureFiles | None = None
) -> Iterator[ForeignRow]:
    """The rows of a webdataset: consecutive members whose names agree up to the first dot after the folder."""
    is_packed = file.suffix != ".tar"
    try:
        with tarfile.open(file, "r|gz" if is_packed else "r:", encoding="utf-8", errors="surrogateescape") as archive:
            key, parts = "", dict[str, bytes]()
            for member_key, suffix, data in _tar_members(archive):
                if member_key != key:
                    if parts:
                        yield _tar_row(f"{name}#{printable_name(key)}", parts, columns)
                    key, parts = member_key, {}
                parts.setdefault(suffix, data)
            if parts:
                yield _tar_row(f"{name}#{printable_name(key)}", parts, columns)
            end = archive.offset
    except (tarfile.TarError, *ERRORS) as error:
        raise DamagedFileError(words_of(error)) from error
    if is_packed:
        return  # gzip has found the end
    with file.open("rb") as raw:  # tarfile treats everything that is not a header as the end
        raw.seek(end)
        if raw.read(_BLOCK) != b"\0" * _BLOCK:
            raise DamagedFileError(f"the archive breaks off at byte {end}")


def _tar_members(archive: tarfile.TarFile) -> Iterator[tuple[str, str, bytes]]:
    """Key, suffix and content of the regular files without hidden ones; that of one that is too large is empty."""
    for member in archive:
        folder, slash, base = member.name.rpartition("/")
        stem, dot, suffix = base.partition(".")
        if member.isreg() and dot and not is_hidden(PurePosixPath(member.name)):
            stream = archive.extractfile(member)
            is_read = stream is not None and member.size <= MAX_MEMBER_BYTES
            yield folder + slash + stem, suffix.lower(), stream.read() if stream is not None and is_read else b""


def _tar_row(origin: str, parts: Mapping[str, bytes], columns: Columns) -> ForeignRow:
    fields: dict[str, Any] = {}
    text = _json_text(_member(parts, ("json",)) or b"{}")
    try:
        fields = {column_key(str(key)): _sound(value) for key, value in json.loads(text).items()}
    except (ValueError, AttributeError, RecursionError):
        if text_damage(text):
            fields[CAPTION_NAMES[0]] = text  # in Shift-JIS a quote or a backslash may be half a letter
    named = columns.caption and column_key(columns.caption)
    caption = _member(parts, (named,) if named else _TEXT_MEMBERS)
    if caption is not None:
        fields[CAPTION_NAMES[0]] = decode_with_losses(caption).rstrip("\r\n")  # replaces a caption in the JSON
    elif named:
        fields[CAPTION_NAMES[0]] = fields.get(named)
    picture = _member(parts, (column_key(columns.picture),) if columns.picture else PICTURE_NAMES)
    return ForeignRow(origin=origin, picture=picture, fields=fields)


def _member(parts: Mapping[str, bytes], names: tuple[str, ...]) -> bytes | None:
    """The member with the first of these suffixes, else with one that ends so: "image.jpg", "caption.txt"."""
    exact = next((parts[name] for name in names if name in parts), None)
    if exact is not None:
        return exact
    return next((data for name in names for suffix, data in parts.items() if suffix.endswith(f".{name}")), None)


def _json_text(data: bytes) -> str:
    """JSON by its first bytes (RFC 4627), which need no byte order mark."""
    return data.decode(json.detect_encoding(data), "replace")


def _sound(value: Any) -> Any:
    """A value of JSON, whose texts may hold lone surrogates."""
    if isinstance(value, list):
        return [_sound(own) for own in value]
    if isinstance(value, dict):
        return {key: _sound(own) for key, own in value.items()}
    return decode_with_losses(value.encode("utf-8", "surrogatepass")) if isinstance(value, str) else value
