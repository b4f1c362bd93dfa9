"""Rows of captioned pictures as other tools have written them, and the names that they use for columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import pyarrow as pa

from model.pictures.decoding import PICTURE_SUFFIXES
from stages.data.schemas import SPELLINGS
from stages.storage import StorePath

#: Names of the picture column, when more than one column holds bytes, and suffixes of the members of a tar file.
PICTURE_NAMES = ("image", *(suffix.removeprefix(".") for suffix in PICTURE_SUFFIXES), "picture", "img")
#: Of captions in text, or in lists and structs of texts; from the best to the least.
CAPTION_NAMES = (
    *SPELLINGS["caption"], "txt", "captions", "prompt", "description", "short_caption", "long_caption",
    "detailed_caption", "sentence", "sentences", "texts", "raw", "caption_0", "recaption", "blip_caption",
    "generated_caption", "llm_caption", "caption_en", "en", "comment",
)  # fmt: skip
#: Of a picture's file, in a list of pictures.
PATH_NAMES = (
    "file_name", "filename", "file", "file_path", "filepath", "image", "image_path", "img_path", "img", "path",
    "picture", "image_file", "image_name", "image_filename",
)  # fmt: skip
#: Folders that hold the pictures of a list, and are not named in it.
_PICTURE_FOLDERS = ("", "images", "imgs", "img")
ERRORS = (pa.ArrowException, OSError, EOFError, ValueError, KeyError)  # that damaged files cause


class DamagedFileError(Exception):
    """A file that cannot be read to its end."""


@dataclass(frozen=True, kw_only=True)
class ForeignRow:
    """A row as another tool has written it.

    Attributes:
        origin: The file, and the row's key or number: "00000.tar#000000017".
        picture: The encoded picture, if there is one.
        fields: The other columns, by their names in lower case. Text is valid Unicode; what could not be decoded shows
            in it (`model.files.text_damage`).
    """

    origin: str
    picture: bytes | None
    fields: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns that the user names; None: found by their usual names."""

    picture: str | None = None
    caption: str | None = None


USUAL = Columns()


@dataclass(frozen=True, kw_only=True)
class PictureFiles:
    """The files that the rows of a list name.

    Attributes:
        root: The user's folder. Nothing outside is read.
        folder: That of the list.
    """

    root: StorePath
    folder: StorePath

    def read(self, name: str) -> bytes | None:
        """The file of this name, which may lack its suffix; None if there is none."""
        below = self._below(name)
        if below is None:
            return None
        suffixes = ("",) if below.suffix.lower() in PICTURE_SUFFIXES else ("", *PICTURE_SUFFIXES)
        for above in dict.fromkeys((self.folder, self.root)):
            for place in _PICTURE_FOLDERS:
                for suffix in suffixes:
                    file = above / place / f"{below}{suffix}" if place else above / f"{below}{suffix}"
                    if file.is_file():
                        return bytes(file.read_bytes())
        return None

    def _below(self, name: str) -> PurePosixPath | None:
        """The path below the folder; None if it leads out of the user's."""
        text = name.replace("\\", "/")
        if isinstance(self.root, Path) and Path(text).is_relative_to(self.root):
            text = str(Path(text).relative_to(self.root))
        path = PurePosixPath(text)
        is_outside = path.is_absolute() or ".." in path.parts or PureWindowsPath(name).drive
        return None if is_outside or not path.name else path


def first_caption(value: Any) -> str | None:
    """The first text of a caption: a text, a list of captions, or a struct with one by its usual names."""
    if isinstance(value, str):
        return value
    values: Sequence[Any] = ()
    if isinstance(value, Mapping):
        named = {str(key).lower(): own for key, own in value.items()}
        values = [named[name] for name in CAPTION_NAMES if name in named]
    elif isinstance(value, list | tuple):
        values = value
    return next((text for own in values if (text := first_caption(own)) is not None and text.strip()), None)


def first_name(names: Mapping[str, Any] | Sequence[str], usual: Sequence[str]) -> str | None:
    """The first of the usual names that is there."""
    return next((name for name in usual if name in names), None)


def words_of(error: BaseException) -> str:
    """An error's message on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
