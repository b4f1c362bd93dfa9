"""The HTML report, a single file with all of its pictures, and the picture grids beside it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from stages.config import Config
from stages.evaluate.cases import Subject
from stages.evaluate.concept import Concept
from stages.evaluate.experiments import Experiments
from stages.evaluate.formatting import FILTERS
from stages.evaluate.grids import picture_grid
from stages.evaluate.report_arms import (
    describe_appearance,
    describe_arm,
    describe_concept,
    describe_metric,
    describe_subject,
)
from stages.evaluate.report_multi_subject import (
    describe_masks,
    describe_multi_subject,
    describe_scene_masks,
    write_grids,
)
from stages.evaluate.report_training import describe_funnel, describe_plots, describe_prompts, describe_settings
from stages.evaluate.summary import ARM_NAMES, ARMS, METRICS, REFERENCE_NAMES, Row, Summary, findings
from stages.storage import StorePath

_SHOWN_SUBJECTS = 8
_HERO_SUBJECTS = 8
_PIXEL_ART_SIDE = 128  # smaller pictures are enlarged pixel by pixel


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The contents of the report.

    Attributes:
        config: Of the run.
        inputs: Output folders of the stages before; parts of the report whose folder is missing are left out.
        subjects: The held-out subjects in the order of the report.
        concepts: The learned concepts, each with its subject.
        rows: Rows of `evaluate/scores`.
        summary: Their averages.
        experiments: Multi-subject generation and mask quality.
    """

    config: Config
    inputs: Mapping[str, StorePath]
    subjects: Sequence[Subject]
    concepts: Sequence[Concept]
    rows: Sequence[Row]
    summary: Summary
    experiments: Experiments


def write_report(folder: Path, evaluation: Evaluation) -> list[Path]:
    """Write `index.html` and the picture grids; return their paths."""
    folder.mkdir(exist_ok=True)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= FILTERS
    page = environment.get_template("report.html.j2").render(**_page(evaluation))
    (folder / "index.html").write_text(page)
    _write_hero(folder / "hero.png", evaluation)
    return [folder / "index.html", folder / "hero.png", *write_grids(folder, evaluation.experiments.multi_subject_rows)]


def _page(evaluation: Evaluation) -> dict[str, Any]:
    config = evaluation.config
    side = Image.open(io.BytesIO(evaluation.rows[0]["picture"])).width
    return {
        "profile": config.profile,
        "pixels": side <= _PIXEL_ART_SIDE,
        **_describe_arms(evaluation),
        **_describe_experiments(evaluation.experiments, config.inference.effective_mask_steps),
        "concepts": [describe_concept(concept, evaluation.rows) for concept in evaluation.concepts],
        **_describe_training(evaluation.inputs),
        "settings": describe_settings(config),
        "judged": config.evaluate.similarity == "judge",
    }


def _describe_arms(evaluation: Evaluation) -> dict[str, Any]:
    summary = evaluation.summary
    metrics = [metric for metric in METRICS if any(metric in means for means in summary.arms.values())]
    return {
        "summary": summary,
        "findings": findings(summary),
        "metrics": [describe_metric(metric, evaluation.config.evaluate.similarity) for metric in metrics],
        "arms": [describe_arm(arm, summary, metrics) for arm in ARMS if arm in summary.arms],
        "references": [
            {"name": REFERENCE_NAMES[name], "interval": interval} for name, interval in summary.references.items()
        ],
        "appearance": describe_appearance(summary),
        "arm_columns": [*(arm for arm in ARMS[:3] if arm in summary.arms), "mask"],
        "subjects": [describe_subject(subject, evaluation.rows) for subject in evaluation.subjects],
        "shown": _SHOWN_SUBJECTS,
    }


def _describe_experiments(experiments: Experiments, mask_steps: int) -> dict[str, Any]:
    return {
        "multi_subject": describe_multi_subject(experiments.multi_subject, experiments.multi_subject_rows),
        "masks": describe_masks(experiments.masks, experiments.mask_rows, mask_steps),
        "scenes": describe_scene_masks(experiments.scenes, experiments.scene_rows),
    }


def _describe_training(inputs: Mapping[str, StorePath]) -> dict[str, Any]:
    return {
        "plots": describe_plots(inputs),
        "funnels": [funnel for stage in ("ingest", "filter") if (funnel := describe_funnel(stage, inputs))],
        "prompts": describe_prompts(inputs),
    }


def _write_hero(path: Path, evaluation: Evaluation) -> None:
    """The first prompt of some subjects in all arms."""
    arms = [arm for arm in ARMS[:3] if arm in evaluation.summary.arms]
    columns, captions = [], []
    for subject in evaluation.subjects[:_HERO_SUBJECTS]:
        own = [row for row in evaluation.rows if row["subject"] == subject.name and row["arm"] in arms]
        seed = min(row["seed"] for row in own)
        first = {row["arm"]: row for row in own if row["seed"] == seed}
        columns.append({"reference": subject.reference, **{arm: row["picture"] for arm, row in first.items()}})
        captions.append(first[arms[0]]["prompt"])
    labels = {"reference": "Reference", **{arm: ARM_NAMES[arm].replace(" + ", "\n+ ") for arm in arms}}
    picture_grid(columns, captions, labels, path)
