"""Where a phrase is written in a text: one rule for placeholders, class words and subjects' words.

An occurrence is no part of a longer word: "[v]" is not in "[v]s" or "x[v]". It may be in upper or lower case, with any
white space between its words. Chinese, Japanese, Thai and the like have no space between words, so that no longer
word is known: "[v]", "狗" and "[v] 狗" are in "一只[v]狗". Korean particles stand directly after a word: "[v]" is in
"[v]를", but a Korean word is not in a longer one.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

# Ranges for a class of characters, both of `re` and of Oniguruma.
#: Letters of scripts without spaces: Thai, Lao, Tibetan, Burmese, Khmer, kana, Bopomofo and Han.
SPACELESS = (
    "\u0e00-\u109f\u1780-\u17ff\u3005-\u3007\u3021-\u3029\u3031-\u303c\u3041-\u3096\u309d-\u312f\u31a0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_HANGUL = "\u1100-\u11ff\u3131-\u318e\uac00-\ud7ff"
_ACCENTS = "\u0300-\u036f"  # that do not compose with the letter before


def phrase_pattern(phrase: str) -> re.Pattern[str]:
    """Finds a phrase in texts; both in the normal form NFC (`composed`)."""
    return re.compile(_source(phrase, r"[^\W{}]"), re.IGNORECASE)


def tokenizer_pattern(phrase: str) -> str:
    """The same for Oniguruma, the engine of the tokenizers' `Regex`, whose class of word characters is another one."""
    return "(?i)" + _source(phrase, r"[\p{{L}}\p{{N}}_&&[^{}]]")


def joins_words(character: str) -> bool:
    """Whether a word goes on beside this character, such as a letter of the Latin script."""
    return re.match(rf"[^\W{SPACELESS}{_HANGUL}]", character) is not None


def composed(text: str) -> str:
    """The text in the normal form NFC: macOS and some keyboards write "é" as two characters."""
    return unicodedata.normalize("NFC", text)


def _source(phrase: str, word_but: str) -> str:
    """The regular expression; `word_but` is the class of word characters other than {}."""
    words = composed(phrase).split()
    source = re.escape(words[0])
    for last, word in pairwise(words):
        gap = r"\s*" if _any_of(SPACELESS, last[-1] + word[0]) else r"\s+"
        source += gap + re.escape(word)
    before, after = (_word_beside(end, word_but) for end in (words[0][0], words[-1][-1]))
    return (f"(?<!{before})" if before else "") + source + f"(?![{_ACCENTS}])" + (f"(?!{after})" if after else "")


def _word_beside(end: str, word_but: str) -> str:
    """The class of characters with which a word goes on beside this end of a phrase; "" if there is none."""
    if _any_of(SPACELESS, end):
        return ""
    return word_but.format(SPACELESS if _any_of(_HANGUL, end) else SPACELESS + _HANGUL)


def _any_of(ranges: str, characters: str) -> bool:
    return re.search(f"[{ranges}]", characters) is not None
