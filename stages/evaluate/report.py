"""The HTML report: one file that needs nothing else, and the grid for the README."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pyarrow.parquet as pq
from PIL import Image

from model.scoring.metrics import Interval
from stages.config import Config
from stages.data.datasets import dataset_files, read_dataset
from stages.data.schemas import PROMPTS, REJECTED
from stages.evaluate.cases import Subject
from stages.evaluate.concept import Concept
from stages.evaluate.grids import data_uri, picture_grid
from stages.evaluate.multi_subject_summary import SecondaryResults
from stages.evaluate.report_multi_subject import (
    describe_masks,
    describe_multi_subject,
    describe_scene_masks,
    write_grids,
)
from stages.evaluate.summary import ARM_NAMES, ARMS, METRICS, Row, Summary, findings

_SHOWN_SUBJECTS = 8
_HERO_SUBJECTS = 8
_PIXEL_ART_SIDE = 128  # smaller pictures are enlarged pixel by pixel

_ARM_TEXTS = {
    "text_only": "The base model reads the sentence and nothing else.",
    "adapter": "The subject's picture enters every cross-attention, everywhere in the picture.",
    "adapter_mask": "The same, but only where the base model's own attention places the word.",
    "concept": "A word learned from a few pictures of one subject, the same that it is compared with; no adapter.",
}
_METRIC_NAMES = {
    "similarity": "Likeness",
    "controllability": "Obedience",
    "clip_t": "CLIP-T",
    "ground_change": "Ground change",
}
_SIMILARITY_TEXTS = {
    "judge": "is the cosine between what the microworld's judge, a network of its own, sees in the picture and in the "
    "subject's other views. 1 is the same object; another object of the same kind is near 0.",
    "clip": "is CLIP-I: the cosine of CLIP's embeddings of the picture and of the subject's other photographs.",
    "dino": "is DINO-I: the cosine of DINO's embeddings of the picture and of the subject's other photographs.",
}
_METRIC_TEXTS = {
    "clip_t": "is the cosine of CLIP's embeddings of the picture and of its prompt.",
    "ground_change": "is the mean difference to the text-only picture of the same noise, outside the subject, in parts "
    "of white. The mask is there to keep it low.",
}
_PLOTS = (
    (
        "train_adapter",
        "curves.png",
        "The adapter's training",
        "The diffusion loss over the steps, also by the source of the examples and by quarters of the noise schedule.",
    ),
    (
        "train_adapter",
        "samples.png",
        "What the adapter painted on the way",
        "The same subjects, prompts and noise at every look; the subjects are of the training data.",
    ),
    (
        "curriculum",
        "plan.png",
        "The curriculum",
        "As training goes on, more of it comes from two views of one object and the reference is cropped harder.",
    ),
    (
        "filter",
        "waterfall.png",
        "The filter",
        "What each rule took of the samples that the ones before it had left, with some of the pictures.",
    ),
)
_HIDDEN_SECTIONS = {"run", "register", "serve"}  # nothing of these shows in the pictures


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Everything that the report tells.

    Attributes:
        config: Of the run.
        inputs: Output folders of the stages before; what is not there is not shown.
        subjects: The held-out subjects, in the order in which they are shown.
        concept: The learned concept and its subject.
        rows: Rows of `evaluate/scores`.
        summary: Their averages.
        further: Several subjects, rounds and masks.
    """

    config: Config
    inputs: Mapping[str, Path]
    subjects: Sequence[Subject]
    concept: Concept
    rows: Sequence[Row]
    summary: Summary
    secondary: SecondaryResults


def write_report(folder: Path, evaluation: Evaluation) -> list[Path]:
    """Write `index.html` and the picture grids; return their paths."""
    folder.mkdir()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("report.html.j2").render(**_page(evaluation))
    (folder / "index.html").write_text(page)
    _write_hero(folder / "hero.png", evaluation)
    return [folder / "index.html", folder / "hero.png", *write_grids(folder, evaluation.secondary.multi_subject_rows)]


def _page(evaluation: Evaluation) -> dict[str, Any]:
    config, summary, secondary = evaluation.config, evaluation.summary, evaluation.secondary
    judged = config.evaluate.similarity == "judge"
    metrics = [metric for metric in METRICS if any(metric in found for found in summary.arms.values())]
    side = Image.open(io.BytesIO(evaluation.rows[0]["picture"])).width
    return {
        "profile": config.profile,
        "summary": summary,
        "findings": findings(summary),
        "metrics": [_describe_metric(metric, config.evaluate.similarity) for metric in metrics],
        "arms": [_describe_arm(arm, summary, metrics) for arm in ARMS if arm in summary.arms],
        "arm_columns": [*(arm for arm in ARMS[:3] if arm in summary.arms), "mask"],
        "pixels": side <= _PIXEL_ART_SIDE,
        "subjects": [_describe_subject(subject, evaluation.rows) for subject in evaluation.subjects],
        "shown": _SHOWN_SUBJECTS,
        "multi_subject": describe_multi_subject(secondary.multi_subject, secondary.multi_subject_rows),
        "masks": describe_masks(secondary.masks, secondary.mask_rows, config.inference.effective_mask_steps),
        "scenes": describe_scene_masks(secondary.scenes, secondary.scene_rows),
        "concept": _describe_concept(evaluation),
        "plots": _plots(evaluation.inputs),
        "funnels": [funnel for stage in ("ingest", "filter") if (funnel := _funnel(stage, evaluation.inputs))],
        "prompts": _prompts(evaluation.inputs),
        "settings": _settings(config),
        "judge_note": "the microworld's judge." if judged else "CLIP and DINO on whole pictures.",
    }


def _describe_metric(metric: str, similarity: str) -> dict[str, str]:
    texts = _METRIC_TEXTS | {"similarity": _SIMILARITY_TEXTS[similarity]}
    texts["controllability"] = (
        "is the probability that the judge gives to the ground that the prompt names."
        if similarity == "judge"
        else "is CLIP-T, the papers' measure of obedience to the prompt."
    )
    arrow = "↓" if metric == "ground_change" else "↑"
    return {"name": _METRIC_NAMES[metric], "arrow": arrow, "text": texts[metric]}


def _describe_arm(arm: str, summary: Summary, metrics: Sequence[str]) -> dict[str, Any]:
    cells = []
    for metric in metrics:
        everywhere = [found[metric] for found in summary.arms.values() if metric in found]
        found = summary.arms[arm].get(metric)
        cells.append(_bar(found, everywhere) if found else None)
    return {
        "key": arm,
        "name": ARM_NAMES[arm],
        "text": _ARM_TEXTS[arm],
        "pictures": summary.pictures[arm],
        "cells": cells,
        "seconds": summary.seconds[arm],
    }


def _bar(found: Interval, everywhere: Sequence[Interval]) -> dict[str, float]:
    """Where an interval lies on a scale from 0, or the lowest bound, to the highest bound of any arm; in percent."""
    low = min(0.0, *(interval.low for interval in everywhere))
    high = max(interval.high for interval in everywhere)
    scale = 100 / ((high - low) or 1.0)
    return {
        "mean": found.mean,
        "low": found.low,
        "high": found.high,
        "left": round((found.low - low) * scale, 1),
        "width": round((found.high - found.low) * scale, 1),
        "middle": round((found.mean - low) * scale, 1),
    }


def _describe_subject(subject: Subject, rows: Sequence[Row]) -> dict[str, Any]:
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


def _describe_concept(evaluation: Evaluation) -> dict[str, Any]:
    rows = [row for row in evaluation.rows if row["arm"] == "concept"]
    subject = evaluation.concept.subject
    return {
        "placeholder": evaluation.concept.placeholder,
        "word": subject.word,
        "subject": subject.name,
        "reference": data_uri(subject.reference),
        "pictures": [
            {"uri": data_uri(row["picture"]), "prompt": row["prompt"], "similarity": row["similarity"]} for row in rows
        ],
    }


def _plots(inputs: Mapping[str, Path]) -> list[dict[str, Any]]:
    found = []
    for stage, name, title, text in _PLOTS:
        if stage in inputs and (inputs[stage] / name).is_file():
            encoded = base64.b64encode((inputs[stage] / name).read_bytes()).decode()
            uri, wide = f"data:image/png;base64,{encoded}", stage == "train_adapter"
            found.append({"title": title, "text": text, "uri": uri, "wide": wide})
    return found


def _funnel(stage: str, inputs: Mapping[str, Path]) -> dict[str, Any] | None:
    """How many samples a stage has kept, and why it has dropped the others."""
    if stage not in inputs:
        return None
    kept = sum(pq.read_metadata(file).num_rows for file in dataset_files(inputs[stage] / "samples"))
    others = [inputs[stage] / name for name in ("rejected", "failed") if (inputs[stage] / name).is_dir()]
    reasons = Counter(
        reason for folder in others for reason in read_dataset(folder, REJECTED, ["reason"]).column(0).to_pylist()
    )
    dropped = reasons.total()
    shares = [
        {"name": name, "count": count, "share": 100 * count / (kept + dropped)} for name, count in reasons.most_common()
    ]
    return {"stage": stage, "kept": kept, "dropped": dropped, "reasons": shares}


def _prompts(inputs: Mapping[str, Path]) -> dict[str, Any] | None:
    if "prompts" not in inputs:
        return None
    table = read_dataset(inputs["prompts"] / "prompts", PROMPTS, ["prompt", "writer"])
    if not table.num_rows:
        return None
    spread = range(0, table.num_rows, max(1, table.num_rows // 8))
    writers = sorted(set(table.column("writer").to_pylist()))
    samples = [table.column("prompt")[row].as_py() for row in spread]
    return {"writer": ", ".join(writers), "count": table.num_rows, "samples": samples[:8]}


def _settings(config: Config) -> list[dict[str, Any]]:
    sections = {
        section.name: dataclasses.asdict(getattr(config, section.name))
        for section in dataclasses.fields(config)
        if section.name != "profile" and section.name not in _HIDDEN_SECTIONS
    }
    return [{"name": name, "entries": list(_flat(values).items())} for name, values in sections.items()]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping)
        found |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return found


def _write_hero(path: Path, evaluation: Evaluation) -> None:
    arms = [arm for arm in ARMS[:3] if arm in evaluation.summary.arms]
    columns, captions = [], []
    for subject in evaluation.subjects[:_HERO_SUBJECTS]:
        own = [row for row in evaluation.rows if row["subject"] == subject.name and row["arm"] in arms]
        first = min(row["seed"] for row in own)
        painted = {row["arm"]: row["picture"] for row in own if row["seed"] == first}
        columns.append({"reference": subject.reference, **painted})
        captions.append(next(row["prompt"] for row in own if row["seed"] == first))
    labels = {"reference": "Reference", **{arm: ARM_NAMES[arm].replace(" + ", "\n+ ") for arm in arms}}
    picture_grid(columns, captions, labels, path)
