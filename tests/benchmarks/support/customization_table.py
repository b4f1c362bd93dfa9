"""Tables of the results of `customization_methods`, in the layout of the papers'."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.concepts.customization_settings import Method
from model.scoring.metrics import Interval, bootstrap_interval
from tests.benchmarks.support.customization_arms import (
    EXPERIMENTS,
    METHODS,
    MLM_WEIGHT,
    VECTORS,
    Arm,
    with_mlm,
    with_prompts,
)
from tests.benchmarks.support.trade_off_curve import above_curve

CLASS_WORD = "class_word"
SCORES = {"similarity": "subject similarity", "fidelity": "background as the prompt says", "clip_t": "CLIP-T"}

#: Arm -> step -> the rows of all subjects (`concept_painting.Row` with "subject"), in the same order in all arms.
Results = Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]]


def read_results(folder: Path, subjects: Sequence[str]) -> Results:
    """The arms that are finished for all subjects."""
    names = [CLASS_WORD, *dict.fromkeys(arm.name for arms in EXPERIMENTS.values() for arm in arms)]
    results: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for name in names:
        files = [folder / name / f"{subject}.json" for subject in subjects]
        if not all(file.exists() for file in files):
            continue
        results[name] = {}
        for subject, file in zip(subjects, files, strict=True):
            for step, rows in json.loads(file.read_text()).items():
                results[name].setdefault(int(step), []).extend({**row, "subject": subject} for row in rows)
    return results


def last(results: Results, name: str) -> Sequence[Mapping[str, Any]]:
    """An arm's rows at its last step."""
    return results[name][max(results[name])]


def mean(rows: Sequence[Mapping[str, Any]], score: str) -> Interval:
    """A score's mean over pictures, with an interval over subjects."""
    return bootstrap_interval([row[score] for row in rows], [row["subject"] for row in rows])


def difference(rows: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], score: str) -> Interval:
    """The paired difference of two arms: subjects, prompts and noise are the same."""
    values = np.subtract([row[score] for row in rows], [row[score] for row in other])
    return bootstrap_interval(values, [row["subject"] for row in rows])


def markdown(results: Results) -> str:
    """The tables of all finished arms, with 95 % intervals over subjects."""
    parts = [_class_words(results), _methods(results)]
    for experiment in ("lambda", "mask_rate", "tailored", "resize"):
        reference: Method = "custom_diffusion" if experiment == "resize" else "textual_inversion"
        parts.append(_against(experiment, results, {arm.name: reference for arm in EXPERIMENTS[experiment]}))
    parts.append(_curves("ico", results))
    parts.append(_ico_against_templates(results))
    parts.append(_against("dci", results, {arm.name: arm.training for arm in EXPERIMENTS["dci"]}))
    parts.append(_dci_above_curves(results))
    return "\n\n".join(part for part in parts if part)


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = (head, ["---"] * len(head), *rows)
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{title}\n\n{table}" if rows else ""


def _class_words(results: Results) -> str:
    if CLASS_WORD not in results:
        return ""
    shown = [f"{mean(last(results, CLASS_WORD), score):.2f}" for score in SCORES]
    return _table("Without a concept", ["", *SCORES.values()], [["class word alone", *shown]])


def _methods(results: Results) -> str:
    """Table 2 of the Contextualizer: each method without and with the MLM loss, and their paired difference."""
    rows = []
    for method, label in METHODS.items():
        names = [with_mlm(method, weight).name for weight in (0.0, MLM_WEIGHT)]
        if all(name in results for name in names):
            without, with_it = (last(results, name) for name in names)
            rows.append([label, *(f"{mean(without, score):.2f}" for score in SCORES)])
            rows.append([f"{label} + MLM", *(f"{mean(with_it, score):.2f}" for score in SCORES)])
            rows.append(["difference", *(f"{difference(with_it, without, score):+.2f}" for score in SCORES)])
    return _table(f"mlm: lambda {MLM_WEIGHT:g}", ["method", *SCORES.values()], rows)


def _against(experiment: str, results: Results, references: Mapping[str, str]) -> str:
    """An experiment's arms at their last steps, each with its differences from another arm."""
    rows = []
    for arm in EXPERIMENTS[experiment]:
        if arm.name in results:
            own = last(results, arm.name)
            cells = [arm.label, *(f"{mean(own, score):.2f}" for score in SCORES)]
            reference = references[arm.name]
            known = reference in results and reference != arm.name
            cells += [f"{difference(own, last(results, reference), s):+.2f}" if known else "" for s in SCORES]
            rows.append(cells)
    return _table(experiment, ["arm", *SCORES.values(), *(f"{name}, difference" for name in SCORES.values())], rows)


def _curves(experiment: str, results: Results) -> str:
    """An experiment's arms at all steps."""
    rows = [
        [arm.label, str(step), *(f"{mean(rows, score):.2f}" for score in SCORES)]
        for arm in EXPERIMENTS[experiment]
        for step, rows in sorted(results.get(arm.name, {}).items())
    ]
    return _table(experiment, ["arm", "step", *SCORES.values()], rows)


def _ico_against_templates(results: Results) -> str:
    """ICO at each step against fixed templates with as many vectors: at the same step, and their curve over steps."""
    rows = []
    for vectors in VECTORS:
        ico, fixed = (with_prompts(prompts, vectors) for prompts in ("ico", "fixed"))
        if ico.name not in results or fixed.name not in results or CLASS_WORD not in results:
            continue
        for step, own in sorted(results[ico.name].items()):
            differences = [f"{difference(own, results[fixed.name][step], score):+.2f}" for score in SCORES]
            rows.append([ico.label, str(step), *differences, f"{above_curve(own, curve(results, fixed)):+.2f}"])
    title = "ico minus fixed templates; above their curve: more subject similarity at the same prompt fidelity"
    return _table(title, ["arm", "step", *SCORES.values(), "above their curve"], rows)


def _dci_above_curves(results: Results) -> str:
    """How far the pictures with DCI lie outside the curves of the models without it."""
    raw = [arm for arm in EXPERIMENTS["dci"] if arm.strength is None]
    if CLASS_WORD not in results or any(arm.name not in results for arm in raw):
        return ""
    rows = [
        [arm.label, *(f"{above_curve(last(results, arm.name), curve(results, other)):+.2f}" for other in raw)]
        for arm in finished("dci", results)
        if arm.strength is not None
    ]
    title = "dci: subject similarity above the curves over the steps without DCI, at the same prompt fidelity"
    return _table(title, ["arm", *(arm.label for arm in raw)], rows)


def curve(results: Results, arm: Arm) -> list[Sequence[Mapping[str, Any]]]:
    """The points of an arm's trade-off curve: the class word alone, then the steps."""
    return [last(results, CLASS_WORD), *(rows for _, rows in sorted(results[arm.name].items()))]


def finished(experiment: str, results: Results) -> list[Arm]:
    """An experiment's arms that have results."""
    return [arm for arm in EXPERIMENTS[experiment] if arm.name in results]
