"""The output of the stage: the folders of each concept, and its entry of `concepts.json`."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from model.concepts.customization_settings import ConceptSubject
from model.scoring.metrics import bootstrap_interval
from stages.config import Config
from stages.contract import StageContext
from stages.customize.learning import LearnedConcept
from stages.customize.scores import Scored
from stages.customize.verdict import ArmScores
from stages.storage import copy_folder


def scored_subjects(concept: LearnedConcept) -> list[tuple[ConceptSubject, Scored]]:
    """Each subject of a concept with its scores."""
    return list(zip(concept.subjects, concept.scored, strict=True))


def write_concept_folders(name: str, concept: LearnedConcept, context: StageContext) -> list[dict[str, Any]]:
    """Write the folders of a concept; returns the entry of each of its subjects."""
    for step, folder in concept.folders.items():
        copy_folder(folder, context.output / _folder(name, step, context.config))
    return [concept_entry(name, subject, scored, context.config) for subject, scored in scored_subjects(concept)]


def _folder(name: str, step: int, config: Config) -> str:
    """Where the concept of a step lies in the output."""
    last = step == config.customize.steps
    return f"concepts/{name}" if last else f"checkpoints/{name}/step-{step:06d}"


def concept_entry(name: str, subject: ConceptSubject, scored: Scored, config: Config) -> dict[str, Any]:
    """What `concepts.json` says of a subject's concept."""
    last = scored.checkpoints[max(scored.checkpoints)]
    verdict = scored.verdict
    return {
        "name": subject.name,
        "word": subject.word,
        "placeholder": subject.placeholder,
        "folder": _folder(name, config.customize.steps, config),
        "method": config.customize.method,
        "mlm": config.customize.mlm,
        "prompts": config.customize.prompts,
        "pictures": len(subject.pictures),
        "learned": verdict.learned,
        "verdict": verdict.sentence,
        "scores": {**_intervals("", last, scored.prompts), **_intervals("class_", scored.word, scored.prompts)},
        "gain": dataclasses.asdict(verdict.gain),
        "drift": verdict.drift and dataclasses.asdict(verdict.drift),
        "loss": verdict.loss and dataclasses.asdict(verdict.loss),
        "checkpoints": [
            {
                "step": step,
                "folder": _folder(name, step, config),
                **dict(zip(("similarity", "fidelity"), arm.means(), strict=True)),
            }
            for step, arm in sorted(scored.checkpoints.items())
        ],
        "evaluation": _evaluation(subject, scored.prompts, config),
    }


def _intervals(prefix: str, arm: ArmScores, prompts: Sequence[str]) -> dict[str, Any]:
    """Means over pictures with intervals over prompts."""
    return {
        f"{prefix}{key}": dataclasses.asdict(bootstrap_interval(getattr(arm, key), prompts))
        for key in ("similarity", "fidelity")
    }


def _evaluation(subject: ConceptSubject, prompts: Sequence[str], config: Config) -> str:
    """Scores are comparable if they have the same id: a digest of pictures, prompts, seed and metrics."""
    settings = config.evaluate
    parts = [subject.digest, *prompts, str(config.run.seed), settings.similarity, settings.clip, settings.dino]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def mean_scores(entries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over the subjects."""
    keys = ("similarity", "fidelity", "class_similarity", "class_fidelity")
    scores = {key: float(np.mean([entry["scores"][key]["mean"] for entry in entries])) for key in keys}
    gain = float(np.mean([entry["gain"]["mean"] for entry in entries]))
    return {**scores, "gain": gain, "learned": float(np.mean([entry["learned"] for entry in entries]))}
