"""Files that other programs and people wrote: which of a folder's files are data, their names, and their text."""

from __future__ import annotations

import codecs
import os
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import Protocol

from model.errors import ModelError

#: The longer marks first: UTF-32's begins with UTF-16's.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
#: Any of these marks, once decoded.
BYTE_ORDER_MARK = "\ufeff"


class File(Protocol):
    """A file on a disk, or elsewhere."""

    def read_bytes(self) -> bytes:
        """Its content."""


class Entry(Protocol):
    """A file or a folder."""

    @property
    def name(self) -> str:
        """Without the folder."""


class Folder(Protocol):
    """A folder on a disk, or elsewhere."""

    def iterdir(self) -> Iterable[Entry]:
        """What is in it."""


class TextError(ModelError):
    """Bytes that are no text, or text that was damaged before it came here."""


def is_hidden(path: PurePath) -> bool:
    """Whether a component of a relative path starts with "." or "_": such files are no data.

    So it is for Spark, Hive and pyarrow (`_temporary/`, `_delta_log/`, `_SUCCESS`), for macOS (`._0.jpg`, `__MACOSX/`)
    and for Jupyter (`.ipynb_checkpoints/`).
    """
    return any(part.startswith((".", "_")) for part in path.parts if part not in (".", ".."))


def visible_entries(folder: Path, pattern: str = "*") -> Iterator[Path]:
    """The files and folders that match a glob pattern, in the order of their names, without hidden ones.

    The name of `folder` itself does not count: it may be hidden.
    """
    yield from sorted(path for path in folder.glob(pattern) if not is_hidden(path.relative_to(folder)))


def visible_files(folder: Path) -> Iterator[Path]:
    """All files below a folder, in a fixed order, without hidden ones.

    Folders behind links are searched too. What is no regular file is left out: links to nothing or in a circle, pipes
    and sockets. So is what cannot be listed.
    """
    yield from _files_below(folder, frozenset([os.path.realpath(folder)]))


def _files_below(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    for path in (folder / name for name in names if not is_hidden(PurePath(name))):
        if os.path.isdir(path):  # unlike Path's, it raises nothing
            real = os.path.realpath(path)
            if real not in above:
                yield from _files_below(path, above | {real})
        elif os.path.isfile(path):
            yield path


def printable_name(name: str | PurePath) -> str:
    r"""A name on disk as text that can be printed and stored: a byte that is not UTF-8 becomes \xe9, a line break \n.

    Different names stay different, because backslashes are doubled.
    """
    return "".join(_printable(character) for character in str(name))


def _printable(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte of a name that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    is_special = character == "\\" or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
    return character.encode("unicode_escape").decode() if is_special else character


def is_utf8(name: str) -> bool:
    """Whether a name on disk is text: the names of other encodings hold surrogates in Python."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def decode_text(data: bytes) -> str:
    """Text by its byte order mark, which is dropped, also when there are two; UTF-8 without one.

    Raises:
        TextError: The bytes are in another encoding, or the text is damaged (see `text_damage`).
    """
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise TextError(
            f"it is not {encoding.removesuffix('-sig').upper()} (byte {error.start}: {error.reason})"
        ) from error
    if damage := text_damage(text):
        raise TextError(damage)
    return text.lstrip(BYTE_ORDER_MARK)


def decode_with_losses(data: bytes) -> str:
    """As `decode_text`; of damaged text what can be read, in which `text_damage` finds the damage."""
    try:
        return decode_text(data)
    except TextError:
        return data.decode("utf-8", "replace")


def read_text(file: File) -> str:
    """The text of a file, as `decode_text` reads it.

    Raises:
        TextError: Names the file.
        OSError: The file cannot be read.
    """
    try:
        return decode_text(file.read_bytes())
    except TextError as error:
        raise TextError(f"{file} is no text that can be read: {error}; save it as UTF-8.") from error


def text_damage(text: str) -> str | None:
    """What shows that a text was decoded wrongly before: NULs, U+FFFD or lone surrogates; None if it is sound."""
    if "\0" in text:
        return "it holds NUL characters, as UTF-16 does that was read as another encoding"
    if "\ufffd" in text:
        return "it holds U+FFFD, which stands for characters that were lost"
    if not is_utf8(text):
        return "it holds half a surrogate pair"
    return None
