"""Entries of `concepts.json`, as the stage `customize` writes them."""

from __future__ import annotations

from typing import Any


def concept_entry(
    name: str, word: str, *, learned: bool = True, similarity: float = 0.5, folder: str | None = None
) -> dict[str, Any]:
    """A concept of a subject with this similarity and a prompt fidelity of 0.5."""
    scores = {
        key: {"mean": value, "low": value, "high": value}
        for key, value in (("similarity", similarity), ("fidelity", 0.5))
    }
    return {
        "name": name,
        "word": word,
        "placeholder": "[v]",
        "folder": folder or f"concepts/{name}",
        "method": "xti",
        "learned": learned,
        "verdict": "it is nearer" if learned else "nothing is nearer",
        "scores": scores,
        "evaluation": "the same",
    }
