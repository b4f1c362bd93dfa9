"""JSON as language models write it: inside prose, with comments, other quotes, wrong commas, or a cut-off end.

Libraries that repair JSON complete a string that was cut off, and keep only the last of two objects. Here a value is
complete or left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_START = re.compile(r"\{|\[(?!\s*v\s*\\?\])", re.IGNORECASE)  # "[v]" is the placeholder
_MAX_DEPTH = 50
_MAX_UNREADABLE = 200
_STRICT = json.JSONDecoder(strict=False)  # line breaks in strings are allowed

#: Quotes that may close a string, by the one that opens it.
_CLOSING = {'"': '"', "'": "'", "“": "”“", "”": "”", "„": "“”", "\u2018": "\u2019\u2018", "\u2019": "\u2019"}
_OPENING = "".join(_CLOSING)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)

_BLANK = r"(?:\s|//[^\n]*+|/\*.*?\*/|#[^\n]*+)*+"
_COLON = re.compile(rf"{_BLANK}:{_BLANK}", re.DOTALL)
_COMMAS = re.compile(rf"(?:{_BLANK},)*+{_BLANK}", re.DOTALL)
_KEY = rf"(?:[{_OPENING}][\w .-]+[{_OPENING}]|[\w-]+){_BLANK}:"
_WORD = re.compile(rf"[^\s,:{{}}\[\]{_OPENING}]+")

#: What follows a closing quote. Any other quote belongs to the string: models forget to escape.
_AFTER_MEMBER = re.compile(rf"{_BLANK}(?:\Z|[}}\]]|,{_BLANK}(?:\Z|[}}\]])|,?{_BLANK}{_KEY})", re.DOTALL)
_AFTER_ITEM = re.compile(
    rf"\s*?\n\s*[{_OPENING}{{\[]|"  # a line break does for a comma
    rf"{_BLANK}(?:\Z|[}}\]]|,{_BLANK}(?:\Z|[{_OPENING}{{\[}}\]]|{_WORD.pattern}{_BLANK}[,\]]))",
    re.DOTALL,
)


class _UnreadableError(Exception):
    """There is no value here."""


class _CutError(Exception):
    """The text ends before the value does."""


def values_in(text: str) -> Iterator[Any]:
    """Every object and list in a text, outermost ones, in order.

    Of a value that is cut off, the complete items are returned; an object without its closing bracket is not complete.
    Nothing is read from the point on where brackets are nested too deeply, or mean nothing too often: a model that
    repeats itself without end must not take minutes to read.
    """
    position = unreadable = 0
    while unreadable < _MAX_UNREADABLE and (match := _START.search(text, position)) is not None:
        reader = _Reader(text, match.start())
        try:
            value = reader.container(depth=0)
        except (_UnreadableError, _CutError):
            position = match.end()
            unreadable += 1
        except RecursionError:
            return
        else:
            position = reader.position
            yield value


class _Reader:
    """Reads a value from a position on."""

    def __init__(self, text: str, position: int) -> None:
        self.text = text
        self.position = position

    def container(self, depth: int) -> Any:
        """The object or list that begins here."""
        try:
            value, self.position = _STRICT.raw_decode(self.text, self.position)
            return value
        except ValueError:
            if depth == _MAX_DEPTH:
                raise RecursionError from None
        is_object = self.text[self.position] == "{"
        self.position += 1
        return self._object(depth) if is_object else self._list(depth)

    def _object(self, depth: int) -> dict[str, Any]:
        members: dict[str, Any] = {}
        try:
            while not self._closed("}"):
                key = self._string(_COLON) if self._quoted() else self._word()
                self._skip(_COLON)
                members[key] = self._value(_AFTER_MEMBER, depth)
        except _CutError:
            members = {key: value for key, value in members.items() if isinstance(value, dict | list)}
            if not members:
                raise
        return members

    def _list(self, depth: int) -> list[Any]:
        items: list[Any] = []
        try:
            while not self._closed("]"):
                item = self._value(_AFTER_ITEM, depth)
                if item is not None:
                    items.append(item)
        except _CutError:
            if not items:
                raise
        return items

    def _value(self, after: re.Pattern[str], depth: int) -> Any:
        """An object, a list or a string; None for anything else: a number, null, NaN, None, "..."."""
        if self.text.startswith(("{", "["), self.position):
            return self.container(depth + 1)
        if self._quoted():
            return self._string(after)
        self._word()
        return None

    def _string(self, after: re.Pattern[str]) -> str:
        """The string that begins here; the quote that closes it is one with the right text after it."""
        start = self.position + 1
        closing = _CLOSING[self.text[self.position]]
        inner = 0
        for match in re.compile(rf"\\.|[{closing}]", re.DOTALL).finditer(self.text, start):
            if match[0][0] == "\\":
                continue
            # Quotes inside come in pairs; apostrophes do not.
            if (inner % 2 == 0 or match[0] in "'\u2019") and after.match(self.text, match.end()):
                self.position = match.end()
                return _ESCAPE.sub(_unescaped, self.text[start : match.start()])
            inner += 1
        self.position = len(self.text)
        raise _CutError

    def _word(self) -> str:
        match = _WORD.match(self.text, self.position)
        if match is None:
            raise _UnreadableError
        self.position = match.end()
        return match[0]

    def _quoted(self) -> bool:
        return self.text.startswith(tuple(_CLOSING), self.position)

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self.position)
        if match is None:
            raise _CutError if self.position == len(self.text) else _UnreadableError
        self.position = match.end()

    def _closed(self, bracket: str) -> bool:
        """Whether it ends here, if by the wrong bracket; steps over commas, comments and the right bracket."""
        self._skip(_COMMAS)
        if self.position == len(self.text):
            raise _CutError
        character = self.text[self.position]
        self.position += character == bracket
        return character in "}]"


def _unescaped(escape: re.Match[str]) -> str:
    if escape[1]:
        return chr(int(escape[1], 16))
    return _ESCAPES.get(escape[2], escape[2])
