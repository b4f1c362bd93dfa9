"""The context-rich prompts of the MLM loss (Contextualizer, Algorithm 2), from the output of the stage `prompts`."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

from prompts.schema import PLACEHOLDER, replace_named
from stages.data.datasets import read_dataset
from stages.data.schemas import PROMPTS
from stages.storage import StorePath


def rich_prompts(folder: StorePath, word: str, placeholder: str) -> list[str]:
    """The prompts for a subject with this class word, with its placeholder.

    A set tailored to the word comes first (Sec. 5.3), then the word's rich set; without either, the rich sets of
    other words with this word inserted.
    """
    tailored = _read(folder / "tailored") if (folder / "tailored").is_dir() else []
    rich = _read(folder / "prompts")
    own = _of_word(tailored, word) or _of_word(rich, word) or _of_other_words(rich, word)
    return [prompt.replace(PLACEHOLDER, placeholder) for prompt in own]


def _read(dataset: StorePath) -> list[Mapping[str, str]]:
    return read_dataset(dataset, PROMPTS, ["concept", "prompt"]).to_pylist()


def _of_word(rows: Sequence[Mapping[str, str]], word: str) -> list[str]:
    wanted = _key(word)
    return [row["prompt"] for row in rows if _key(row["concept"]) == wanted]


def _of_other_words(rows: Sequence[Mapping[str, str]], word: str) -> list[str]:
    return [replace_named(row["prompt"], row["concept"], f"{PLACEHOLDER} {word}") for row in rows]


def _key(word: str) -> str:
    """The same for spellings that differ in case, white space or Unicode normal form."""
    return " ".join(unicodedata.normalize("NFC", word).casefold().split())
