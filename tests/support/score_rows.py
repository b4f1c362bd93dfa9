"""Rows of `evaluate/scores` for tests of their averages."""

from __future__ import annotations

from typing import Any

from stages.evaluate.appearance import ANSWERS
from tests.support.subject_folder import png


def a_row(
    arm: str, subject: str, seed: int, similarity: float, background_change: float | None = None
) -> dict[str, Any]:
    """A picture's row, without the judge's answers on pattern and colours."""
    return {
        "arm": arm,
        "subject": subject,
        "word": "mug",
        "prompt": f"a mug {seed}",
        "seed": seed,
        "similarity": similarity,
        "controllability": 0.9,
        "clip_t": 0.3,
        "copying": 0.0,
        "real_views": 0.9,
        "another_subject": 0.1 if subject == "mug-0" else None,
        **dict.fromkeys(("reference_pattern", *ANSWERS, *(f"views_{answer}" for answer in ANSWERS))),
        "background_change": background_change,
        "picture": png(seed),
        "mask": png(seed) if arm == "adapter_mask" else None,
        "seconds": 0.5,
    }
