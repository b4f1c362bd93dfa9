"""Prompts that serve evaluation only: DreamBench's lists and MS-Bench's combinations. No training set may hold one.

Texts are compared without case, punctuation, articles and placeholder; any class word of the benchmarks or of the
training set stands for a subject.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from prompts import dreambench, msbench

#: By name of the benchmark; a field in braces stands for a class word.
EVALUATION_PROMPTS: dict[str, tuple[str, ...]] = {
    "DreamBench": tuple(dict.fromkeys((*dreambench.OBJECT_PROMPTS, *dreambench.LIVE_PROMPTS))),
    "MS-Bench": msbench.MSBENCH_PROMPTS,
}

#: "[v]", "<sks>", "{word}", "V*", and the rare token of DreamBooth's prompts.
_PLACEHOLDERS = re.compile(r"\[[^\[\]\s]*\]|<[^<>\s]*>|\{[^{}\s]*\}|\b[a-z]\*|\bsks\b", re.IGNORECASE)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_MARK = "\x00"  # stands for a placeholder in a normalized text
_FIELD = re.compile(r"\{\w+\}")


class EvaluationPromptFinder:
    """Recognizes evaluation prompts. `concepts` are the class words of a training set."""

    def __init__(self, concepts: Iterable[str]) -> None:
        words = {*dreambench.CLASS_WORDS, *msbench.CLASS_WORDS, *concepts}
        subject = _subject_pattern(filter(None, map(_normalized, words)))
        self._patterns = {
            name: re.compile("|".join(_pattern(template, subject) for template in templates))
            for name, templates in EVALUATION_PROMPTS.items()
        }

    def benchmark_of(self, prompt: str) -> str | None:
        """The benchmark that a prompt belongs to; None if it belongs to none."""
        text = _normalized(prompt)
        return next((name for name, pattern in self._patterns.items() if pattern.fullmatch(text)), None)


def evaluation_prompt_in(prompts: Sequence[str], concepts: Iterable[str]) -> tuple[str, str] | None:
    """The first prompt that serves evaluation only, and its benchmark; None if there is none."""
    finder = EvaluationPromptFinder(concepts)
    named = ((prompt, finder.benchmark_of(prompt)) for prompt in prompts)
    return next(((prompt, benchmark) for prompt, benchmark in named if benchmark is not None), None)


def _subject_pattern(words: Iterable[str]) -> str:
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    return rf"(?:{_MARK}|(?:{_MARK} )?(?:{'|'.join(map(re.escape, longest_first))}))"


def _pattern(template: str, subject: str) -> str:
    """The regular expression of a template's normalized texts."""
    pieces = [re.escape(_normalized(piece)) for piece in _FIELD.split(template)]
    return " ".join(filter(None, [pieces[0], *(part for piece in pieces[1:] for part in (subject, piece))]))


def _normalized(text: str) -> str:
    text = _PLACEHOLDERS.sub(f" {_MARK} ", unicodedata.normalize("NFKC", text).casefold())
    text = _ARTICLES.sub(" ", re.sub(rf"[^\w{_MARK}]|_", " ", text))
    return " ".join(text.split())
