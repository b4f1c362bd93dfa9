"""Class words that the names of folders stand for."""

from __future__ import annotations

import re

#: What distinguishes folders of one class: "dog2", "dog_02", "dog-2", "dog (2)", "dog #2", "02_dog".
_NUMBER_BEHIND = re.compile(r"[\s_\-.#]*(?:\(\d+\)|\d*)[\s_]*$")
_NUMBER_BEFORE = re.compile(r"\d+[\s_\-.]+(?=\D)")


def word_of_folder(name: str) -> str:
    """The class word in a folder's name, without its number and with spaces for underscores; the name if it is one."""
    text = _NUMBER_BEFORE.sub("", _NUMBER_BEHIND.sub("", name), count=1)
    return " ".join(text.replace("_", " ").split()) or name
