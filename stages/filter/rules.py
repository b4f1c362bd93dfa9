"""The thresholds, in the order in which they are asked: a row's reason is the first that it fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.config import FilterConfig
from stages.schemas import LAION_SCORES


@dataclass(frozen=True, kw_only=True)
class ScoreRule:
    """A threshold on one of LAION's scores; `setting` is its name in the section `filter`."""

    score: str
    setting: str

    @property
    def is_minimum(self) -> bool:
        """Whether values below the threshold fail; else those above do."""
        return self.setting.startswith("min_")

    @property
    def laion_column(self) -> str:
        """The name of the score in LAION's metadata."""
        return next(theirs for theirs, ours in LAION_SCORES.items() if ours == self.score)


SCORE_RULES = (
    ScoreRule(score="unsafe", setting="max_unsafe"),
    ScoreRule(score="watermark", setting="max_watermark"),
    ScoreRule(score="similarity", setting="min_similarity"),
    ScoreRule(score="aesthetic", setting="min_aesthetic"),
)

#: The setting behind each reason.
SETTING_OF = {
    "side": "min_side",
    "aspect_ratio": "max_aspect_ratio",
    "caption_words": "min_caption_words",
    "duplicate": "drop_duplicates",
    "near_duplicate": "drop_duplicates",
    **{rule.score: rule.setting for rule in SCORE_RULES},
    **{f"{rule.score}_missing": rule.setting for rule in SCORE_RULES},
}


def rejection(row: Mapping[str, Any], settings: FilterConfig) -> tuple[str, str] | None:
    """Reason and detail when a sample fails a threshold, else None. Sizes are those of the original picture, pixels."""
    side, longest = sorted((row["original_width"], row["original_height"]))
    if settings.min_side is not None and side < settings.min_side:
        return "side", f"{side} < {settings.min_side}"
    if settings.max_aspect_ratio is not None and longest > settings.max_aspect_ratio * side:
        return "aspect_ratio", f"{longest / side:.4g} > {settings.max_aspect_ratio:g}"
    for rule in SCORE_RULES:
        if (failed := _score_rejection(rule, row[rule.score], getattr(settings, rule.setting))) is not None:
            return failed
    words = len(row["caption"].split())
    if settings.min_caption_words is not None and words < settings.min_caption_words:
        return "caption_words", f"{words} < {settings.min_caption_words}"
    return None


def _score_rejection(rule: ScoreRule, value: float | None, threshold: float | None) -> tuple[str, str] | None:
    if threshold is None:
        return None
    if value is None or value != value:  # NaN is no score either
        return f"{rule.score}_missing", "the row has no such score"
    if rule.is_minimum and value < threshold:
        return rule.score, f"{value:.4g} < {threshold:g}"
    if not rule.is_minimum and value > threshold:
        return rule.score, f"{value:.4g} > {threshold:g}"
    return None
