"""The context-rich prompts of the MLM loss (Contextualizer, Algorithm 2), from the output of the stage `prompts`."""

from __future__ import annotations

from pathlib import Path

from prompts.schema import PLACEHOLDER
from stages.data.datasets import read_dataset
from stages.data.schemas import PROMPTS


def rich_prompts(folder: Path, word: str, placeholder: str) -> list[str]:
    """The prompts for a subject with this class word, with its placeholder.

    A set tailored to the word comes first (Sec. 5.3), then the word's rich set; without either, the rich sets of
    other words with this word inserted.
    """
    tailored = _of_word(folder / "tailored", word) if (folder / "tailored").is_dir() else []
    own = tailored or _of_word(folder / "prompts", word) or _of_other_words(folder / "prompts", word)
    return [prompt.replace(PLACEHOLDER, placeholder) for prompt in own]


def _of_word(dataset: Path, word: str) -> list[str]:
    wanted = " ".join(word.split())
    return [row["prompt"] for row in read_dataset(dataset, PROMPTS).to_pylist() if row["concept"] == wanted]


def _of_other_words(dataset: Path, word: str) -> list[str]:
    rows = read_dataset(dataset, PROMPTS).to_pylist()
    return [row["prompt"].replace(f"{PLACEHOLDER} {row['concept']}", f"{PLACEHOLDER} {word}") for row in rows]
