"""The columns of LAION's metadata that the thresholds need, and what to do about those that are missing."""

from __future__ import annotations

from collections.abc import Collection

from stages.filter.config import FilterConfig
from stages.filter.rules import COMPUTABLE, SCORE_RULES, computed_scores


def needed_columns(settings: FilterConfig) -> dict[str, tuple[str, str]]:
    """Our columns that the metadata must have: LAION's name of each, and the setting that needs it."""
    needed = {
        rule.score: (rule.laion_column, f"filter.{rule.setting}")
        for rule in SCORE_RULES
        if rule.limit(settings) is not None and rule.score not in computed_scores(settings)
    }
    if settings.languages is not None:
        needed["language"] = ("LANGUAGE", "filter.languages")
    return needed


def missing_columns(found: Collection[str], settings: FilterConfig) -> str | None:
    """One sentence on all columns that the thresholds need and the metadata lacks; None: nothing is missing.

    Args:
        found: Our names of the columns that some sample has a value in.
        settings: The thresholds, and the models that compute scores.
    """
    missing = {ours: names for ours, names in needed_columns(settings).items() if ours not in found}
    if not missing:
        return None
    keys = [key for _, key in missing.values()]
    scores, columns = (", ".join(map(repr, names)) for names in (missing, [column for column, _ in missing.values()]))
    models = ", ".join(f"filter.scoring.{COMPUTABLE[score]}" for score in missing if score in COMPUTABLE)
    model = f"name models that compute them ({models}), " if models else ""
    return (
        f"{', '.join(keys)} {'need' if keys[1:] else 'needs'} {scores}, which no sample "
        f"has: the metadata lacks LAION's {columns}; add what is missing, {model}or go without by "
        f"{' '.join(f'--set {key}=null' for key in keys)}."
    )
