"""Scripts of captions, by Unicode's property Script_Extensions and its names, from fontTools' tables."""

from __future__ import annotations

import difflib
import re
from functools import cache, lru_cache

from fontTools import unicodedata
from fontTools.unicodedata.Scripts import NAMES

#: Scripts that are written without spaces between words.
_WITHOUT_SPACES = frozenset(
    {"Hani", "Hira", "Kana", "Bopo", "Yiii", "Tang", "Nshu", "Kits", "Thai", "Laoo"}
) | frozenset({"Khmr", "Mymr", "Tibt", "Java", "Bali", "Bugi", "Ahom", "Lana", "Tale", "Talu", "Tavt"})
_OF_NO_SCRIPT = frozenset({"Zyyy", "Zinh", "Zzzz"})  # common, inherited, unknown
#: Names of ISO 15924 for the scripts that one language mixes.
_MIXED = {
    "Jpan": ("Japanese", frozenset({"Hani", "Hira", "Kana"})),
    "Kore": ("Korean", frozenset({"Hang", "Hani"})),
    "Hrkt": ("Katakana_Or_Hiragana", frozenset({"Hira", "Kana"})),
}


@lru_cache(maxsize=2**16)  # a look-up takes 30 microseconds
def scripts_of(character: str) -> frozenset[str]:
    """The short names (ISO 15924) of the scripts that use a character; none for digits, punctuation and emoji."""
    return frozenset(unicodedata.script_extension(character)) - _OF_NO_SCRIPT


def count_words(caption: str) -> int:
    """The words of a caption; in scripts without spaces each letter counts as one."""
    if caption.isascii():
        return len(caption.split())
    is_letter = [_is_without_spaces(character) for character in caption]
    letters = sum(own and character.isalpha() for own, character in zip(is_letter, caption, strict=True))
    rest = "".join(" " if own else character for own, character in zip(is_letter, caption, strict=True)).split()
    # Beside such letters punctuation stands alone where they were removed.
    return letters + (sum(any(map(str.isalnum, word)) for word in rest) if letters else len(rest))


def _is_without_spaces(character: str) -> bool:
    scripts = scripts_of(character)
    return bool(scripts) and scripts <= _WITHOUT_SPACES


def letters_in(caption: str, script: str) -> tuple[int, int]:
    """How many letters of a caption belong to a script, and how many belong to any.

    Letters that all scripts use, such as the mathematical ones, do not count.
    """
    wanted = find_script(script)
    letters = [scripts for character in caption if character.isalpha() and (scripts := scripts_of(character))]
    return sum(not wanted.isdisjoint(scripts) for scripts in letters), len(letters)


@cache
def find_script(name: str) -> frozenset[str]:
    """The short names of the scripts that a name stands for.

    Args:
        name: Unicode's long or short name, such as Han or Hani, or Jpan or Kore, which are mixed; in any case.

    Raises:
        ValueError: There is no such script; the message has near names.
    """
    key, known = _key(name), _known_names()
    if key in known:
        return known[key][1]
    if key in ("hans", "hant", "chinese"):
        raise ValueError(f"{name!r} is no script of its own in Unicode; Chinese characters are Han")
    near = list(dict.fromkeys(known[found][0] for found in difflib.get_close_matches(key, known)))
    hint = f"; names like it are {', '.join(near)}" if near else ", such as Latin, Cyrillic, Han or Jpan"
    raise ValueError(f"{name!r} is no name of a script in Unicode{hint}")


@cache
def _known_names() -> dict[str, tuple[str, frozenset[str]]]:
    """All long and short names as they are compared, each with the long name and the scripts."""
    named = {code: (text, frozenset({code})) for code, text in NAMES.items() if code not in _OF_NO_SCRIPT} | _MIXED
    return {_key(name): (text, scripts) for code, (text, scripts) in named.items() for name in (text, code)}


def _key(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()
