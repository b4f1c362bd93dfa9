"""The report's parts about the arms: metrics, table, pictures of the subjects, and the learned concepts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from model.scoring.metrics import Interval
from stages.evaluate.appearance import ANSWER_NAMES, ANSWERS
from stages.evaluate.cases import Subject
from stages.evaluate.concept import Concept
from stages.evaluate.grids import data_uri
from stages.evaluate.summary import ARM_NAMES, ARMS, METRIC_NAMES, Row, Summary

METHOD_NAMES = {
    "textual_inversion": "Textual Inversion",
    "xti": "XTI (P+)",
    "dreambooth": "DreamBooth",
    "custom_diffusion": "Custom Diffusion",
}
_ARM_TEXTS = {
    "text_only": "The base model with the prompt alone.",
    "adapter": "The subject's picture enters every cross-attention layer, at all positions.",
    "adapter_mask": "The same, but only at the positions where the guidance branch finds the word.",
    "concept": "A word learned from a few pictures of one subject, without an adapter. Its pictures are compared with "
    "that subject.",
}
_SIMILARITY_TEXTS = {
    "judge": "is the cosine similarity of the picture and the subject's other views, as embedded by the microworld's "
    "independent judge. It is 1 for the same object, and near 0 for another object of the same category.",
    "clip": "is CLIP-I: the cosine similarity of CLIP's embeddings of the picture and of the subject's other "
    "photographs.",
    "dino": "is DINO-I: the cosine similarity of DINO's embeddings of the picture and of the subject's other "
    "photographs.",
}
_FIDELITY_TEXTS = {
    "judge": "is the probability that the judge assigns to the background that the prompt names.",
    "clip": "is CLIP-T, the papers' measure of fidelity to the prompt.",
    "dino": "is CLIP-T, the papers' measure of fidelity to the prompt.",
}
_METRIC_TEXTS = {
    "clip_t": "is the cosine similarity of CLIP's embeddings of the picture and of its prompt.",
    "copying": "is how much more similar the picture is to the given reference than to the subject's other views. High "
    "values mean that the reference is copied, not the subject painted.",
    "background_change": "is the mean absolute difference to the text-only picture from the same noise, outside the "
    "subject, as a fraction of the value range. The mask is meant to keep it low.",
}


def describe_metric(metric: str, similarity: str) -> dict[str, str]:
    """Name, direction and explanation of a metric; `similarity` is the configured measure."""
    texts = {
        **_METRIC_TEXTS,
        "similarity": _SIMILARITY_TEXTS[similarity],
        "controllability": _FIDELITY_TEXTS[similarity],
    }
    arrow = "↓" if metric in ("copying", "background_change") else "↑"
    return {"name": METRIC_NAMES[metric], "arrow": arrow, "text": texts[metric]}


def describe_arm(arm: str, summary: Summary, metrics: Sequence[str]) -> dict[str, Any]:
    """An arm's row of the table."""
    cells = []
    for metric in metrics:
        interval = summary.arms[arm].get(metric)
        all_arms = [means[metric] for means in summary.arms.values() if metric in means]
        cells.append({"interval": interval, **_bar(interval, all_arms)} if interval else None)
    return {
        "key": arm,
        "name": ARM_NAMES[arm],
        "text": _ARM_TEXTS[arm],
        "pictures": summary.pictures[arm],
        "cells": cells,
        "gap_closed": summary.gap_closed.get(arm),
        "seconds": summary.seconds[arm],
    }


def describe_appearance(summary: Summary) -> dict[str, Any] | None:
    """The table of pattern and colours; None if they were not judged."""
    groups = summary.appearance
    if not groups:
        return None
    arms = [arm for arm in ARMS if any(arm in own.arms for own in groups.values())]
    rows = [_appearance_row(arm, ARM_NAMES[arm], [own.arms.get(arm, {}) for own in groups.values()]) for arm in arms]
    rows.append(_appearance_row(None, "Other real views", [own.real_views for own in groups.values()]))
    return {
        "groups": [{"kind": kind, "subjects": own.subjects} for kind, own in groups.items()],
        "answers": list(ANSWER_NAMES.values()),
        "rows": rows,
    }


def _appearance_row(arm: str | None, name: str, shares: Sequence[Mapping[str, Interval]]) -> dict[str, Any]:
    return {"key": arm, "name": name, "cells": [own.get(answer) for own in shares for answer in ANSWERS]}


def _bar(interval: Interval, all_arms: Sequence[Interval]) -> dict[str, float]:
    """The bar of an interval, in percent of the range from 0 (or the lowest bound) to the highest bound of any arm."""
    low = min(0.0, *(other.low for other in all_arms))
    high = max(other.high for other in all_arms)
    scale = 100 / ((high - low) or 1.0)
    return {
        "left": round((interval.low - low) * scale, 1),
        "width": round((interval.high - interval.low) * scale, 1),
        "middle": round((interval.mean - low) * scale, 1),
    }


def describe_subject(subject: Subject, rows: Sequence[Row]) -> dict[str, Any]:
    """A subject's card: its reference, and the pictures of all arms for each prompt."""
    own = [row for row in rows if row["subject"] == subject.name and row["arm"] != "concept"]
    cases = sorted({(row["seed"], row["prompt"]) for row in own})
    return {
        "name": subject.name,
        "word": subject.word,
        "reference": data_uri(subject.reference),
        "rows": [_describe_case([row for row in own if row["seed"] == seed], prompt) for seed, prompt in cases],
    }


def _describe_case(rows: Sequence[Row], prompt: str) -> dict[str, Any]:
    by_arm = {row["arm"]: row for row in rows}
    cells = [
        {"name": ARM_NAMES[arm], "uri": data_uri(by_arm[arm]["picture"]), "similarity": by_arm[arm]["similarity"]}
        for arm in ARMS
        if arm in by_arm
    ]
    masks = [row["mask"] for row in rows if row["mask"] is not None]
    cells += [{"name": "Mask", "uri": data_uri(mask), "similarity": None} for mask in masks]
    return {"prompt": prompt, "cells": cells}


def describe_concept(concept: Concept, rows: Sequence[Row]) -> dict[str, Any]:
    """The card of the learned concept."""
    return {
        "placeholder": concept.placeholder,
        "method": METHOD_NAMES[concept.method],
        "learned": concept.learned,
        "verdict": concept.verdict,
        "word": concept.subject.word,
        "subject": concept.subject.name,
        "reference": data_uri(concept.subject.reference),
        "pictures": [
            {"uri": data_uri(row["picture"]), "prompt": row["prompt"], "similarity": row["similarity"]}
            for row in rows
            if row["arm"] == "concept" and row["subject"] == concept.subject.name
        ],
    }
