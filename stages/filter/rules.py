"""The rules, cheapest first. A sample is rejected by the first rule that applies, whose name is the reason.

The rules on the metadata come first, then those on the decoded picture, then the scores that a model has to compute
(`stages/filter/scoring.py`), and duplicates last (`stages/filter/duplicates.py`). Rows of another tool's folder that
cannot become samples (`stages/filter/adoption.py`) are rejected before all rules.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.pictures.decoding import PictureError
from stages.data.languages import language_pattern
from stages.data.schemas import LAION_SCORES
from stages.filter.candidate import Candidate
from stages.filter.config import FilterConfig
from stages.filter.scripts import count_words, letters_in

_SCRIPT_CHARACTERS = 1000  # of a caption determine its script

#: Applies a rule: returns the offending value and the limit, or None when the sample passes.
Test = Callable[[Candidate, Any], str | None]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One reason to reject a sample.

    Attributes:
        name: The reason, a short fixed word.
        text: A description of the rejected samples.
        setting: Its key in the section `filter`; null there disables the rule. None: the rule is always on.
        test: Called with a sample and the setting's value; returns the detail, or None for a sample that passes.
    """

    name: str
    text: str
    setting: str | None
    test: Test

    def limit(self, settings: FilterConfig) -> Any:
        """The setting's value; True for a rule without a setting; None when the rule is disabled."""
        return True if self.setting is None else getattr(settings, self.setting)


def _side(candidate: Candidate, limit: int) -> str | None:
    side = min(candidate.row["original_width"], candidate.row["original_height"])
    return f"{side} < {limit}" if side < limit else None


def _pixels(candidate: Candidate, limit: int) -> str | None:
    pixels = candidate.row["original_width"] * candidate.row["original_height"]
    return f"{pixels} < {limit}" if pixels < limit else None


def _aspect_ratio(candidate: Candidate, limit: float) -> str | None:
    side, longest = sorted((candidate.row["original_width"], candidate.row["original_height"]))
    return f"{longest / max(side, 1):.4g} > {limit:g}" if longest > limit * side else None


def _caption_words(candidate: Candidate, limit: int) -> str | None:
    words = count_words(candidate.row["caption"])
    return f"{words} < {limit}" if words < limit else None


def _caption_characters(candidate: Candidate, limit: int) -> str | None:
    characters = len(candidate.row["caption"])
    return f"{characters} > {limit}" if characters > limit else None


def _caption_script(candidate: Candidate, script: str) -> str | None:
    """Reject when fewer than half of the letters belong to the script."""
    own, letters = letters_in(candidate.row["caption"][:_SCRIPT_CHARACTERS], script)
    return f"{own} of {letters} letters are {script}" if 2 * own < letters or not letters else None


def _language(candidate: Candidate, languages: list[str]) -> str | None:
    language = candidate.row["language"]
    is_known = language is not None and re.match(language_pattern(languages), language, re.IGNORECASE)
    return None if is_known else f"{language} is not {' or '.join(name.lower() for name in languages)}"


def _undecodable(candidate: Candidate, _: Any) -> str | None:
    try:
        candidate.picture.load()
    except PictureError as error:
        return error.detail
    return None


def _single_colour(candidate: Candidate, limit: float) -> str | None:
    """Reject when the largest standard deviation of a channel over a 32 x 32 grid is below the limit (of 255)."""
    colours = candidate.grid.reshape(-1, 3).astype(np.float64)
    share = np.full(len(colours), 1 / len(colours))
    variance = share @ colours**2 - (share @ colours) ** 2  # one product is faster than `std` over so few
    contrast = math.sqrt(max(0.0, variance.max()))
    return f"contrast {contrast:.3g} < {limit:g}" if contrast < limit else None


def score_of(candidate: Candidate, score: str) -> float | None:
    """A score of the metadata; None when it is null or NaN."""
    value = candidate.row[score]
    return None if value is None or value != value else float(value)


@dataclass(frozen=True, kw_only=True)
class ScoreRule(Rule):
    """A threshold on one of LAION's scores. A sample without the score passes; the rule `missing` rejects it."""

    score: str

    @property
    def laion_column(self) -> str:
        """The name of the score in LAION's metadata."""
        return next(theirs for theirs, ours in LAION_SCORES.items() if ours == self.score)

    def missing(self) -> Rule:
        """The rule that rejects samples without this score."""

        def test(candidate: Candidate, _: Any) -> str | None:
            return "the row has no such score" if score_of(candidate, self.score) is None else None

        return Rule(name=f"{self.score}_missing", text=f"no {self.score} score", setting=self.setting, test=test)


def _score_rule(score: str, setting: str, text: str) -> ScoreRule:
    def test(candidate: Candidate, limit: float) -> str | None:
        value = score_of(candidate, score)
        if value is None:
            return None
        if setting.startswith("min_"):
            return f"{value:.4g} < {limit:g}" if value < limit else None
        return f"{value:.4g} > {limit:g}" if value > limit else None

    return ScoreRule(name=score, score=score, setting=setting, text=text, test=test)


SCORE_RULES = (
    _score_rule("unsafe", "max_unsafe", "probably unsafe for work"),
    _score_rule("watermark", "max_watermark", "probably has a watermark"),
    _score_rule("similarity", "min_similarity", "caption and picture say different things (CLIP)"),
    _score_rule("aesthetic", "min_aesthetic", "not beautiful enough (LAION's aesthetic score)"),
)

METADATA_RULES: tuple[Rule, ...] = (
    Rule(name="side", text="shorter side too short", setting="min_side", test=_side),
    Rule(name="pixels", text="too few pixels", setting="min_pixels", test=_pixels),
    Rule(name="aspect_ratio", text="too long and narrow", setting="max_aspect_ratio", test=_aspect_ratio),
    Rule(name="caption_words", text="caption too short", setting="min_caption_words", test=_caption_words),
    Rule(
        name="caption_characters",
        text="caption too long",
        setting="max_caption_characters",
        test=_caption_characters,
    ),
    Rule(name="caption_script", text="caption in another script", setting="caption_script", test=_caption_script),
    Rule(name="language", text="caption in another language", setting="languages", test=_language),
    *(rule for score in SCORE_RULES for rule in (score.missing(), score)),
)

PICTURE_RULES: tuple[Rule, ...] = (
    Rule(name="undecodable", text="not a picture, or a damaged one", setting=None, test=_undecodable),
    Rule(name="single_colour", text="a single colour", setting="min_contrast", test=_single_colour),
)

#: Reasons from other modules, listed here for their order and their descriptions.
_ADOPTION_REASONS = {
    "no_picture": "the row has no picture",
    "no_caption": "the row has no caption",
    "caption_encoding": "the caption is not UTF-8, or was damaged before",
    "unreadable": "the rest of a damaged file, as one row",
}
_ID_REASONS = {"duplicate_id": "the id of an earlier sample"}
_DUPLICATE_REASONS = {"duplicate": "the same pixels as another", "near_duplicate": "nearly the same as another"}

#: All reasons in the order in which they are checked, with their descriptions.
REASONS = (
    _ADOPTION_REASONS
    | {rule.name: rule.text for rule in (*METADATA_RULES, *PICTURE_RULES)}
    | _ID_REASONS
    | _DUPLICATE_REASONS
)

#: The setting of each reason that has one.
SETTING_OF = {rule.name: rule.setting for rule in (*METADATA_RULES, *PICTURE_RULES) if rule.setting} | dict.fromkeys(
    _DUPLICATE_REASONS, "drop_duplicates"
)


#: The scores that a model can compute (`stages/filter/scoring.py`), and the key of `filter.scoring` that names it.
COMPUTABLE = {"similarity": "similarity_clip", "aesthetic": "aesthetic_head", "unsafe": "safety_checker"}


def computed_scores(settings: FilterConfig) -> set[str]:
    """The scores that a threshold needs and that a configured model computes when the metadata lacks them."""
    models = settings.scoring
    scores = set()
    if models.similarity_clip is not None and settings.min_similarity is not None:
        scores.add("similarity")
    if models.aesthetic_clip is not None and models.aesthetic_head is not None and settings.min_aesthetic is not None:
        scores.add("aesthetic")
    if models.safety_checker is not None and settings.max_unsafe is not None:
        scores.add("unsafe")
    return scores


def active_rules(settings: FilterConfig) -> list[tuple[Rule, Any]]:
    """The enabled rules, cheapest first, each with its limit."""
    computed = {f"{score}_missing" for score in computed_scores(settings)}
    rules = [(rule, rule.limit(settings)) for rule in (*METADATA_RULES, *PICTURE_RULES) if rule.name not in computed]
    return [(rule, limit) for rule, limit in rules if limit is not None]


def rejection(candidate: Candidate, rules: Iterable[tuple[Rule, Any]]) -> tuple[str, str] | None:
    """Reason and detail of the first of the `active_rules` that rejects the sample; None when it passes."""
    for rule, limit in rules:
        detail = rule.test(candidate, limit)
        if detail is not None:
            return rule.name, detail
    return None
