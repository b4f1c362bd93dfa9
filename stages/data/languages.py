"""Language tags such as "en", "en-US" and "zh_CN", of metadata and settings."""

from __future__ import annotations

import re
from collections.abc import Iterable


def language_pattern(languages: Iterable[str]) -> str:
    """A regular expression for the tags of these languages, for Python and for Arrow; ignore the case.

    A tag of a language is also one of its regions and scripts (basic filtering, RFC 4647): "en" finds "en-US" and
    "EN_gb", "en-US" does not find "en". "-" and "_" are the same.
    """
    tags = (re.sub(r"[-_]", "[-_]", re.escape(language.strip()).replace(r"\-", "-")) for language in languages)
    return rf"^\s*({'|'.join(tags)})([-_].*)?\s*$"
