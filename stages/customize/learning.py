"""One concept from its beginning to its scores: the training on the project's trainer, then pictures and verdict."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from model.concepts.customization_settings import ConceptSubject
from model.concepts.customization_task import CustomizationTask
from model.pictures.sheets import row
from model.training.precision import HALVES
from stages.contract import StageContext
from stages.customize.painting_task import Device, results_of
from stages.customize.preparation import PreparedSubject, customization_settings
from stages.customize.scores import Scored, ScoringJob, score_concept
from stages.inference import backbone_location, backbone_setting, model_errors_as_stage_errors
from stages.storage import StorePath, absolute, open_output
from stages.training.trainer import Curves, fit

#: The name of each training: of its files and its metrics.
NAME = "concept"


@dataclass(frozen=True, kw_only=True)
class LearnedConcept:
    """A concept of one subject, or of several that were learned together.

    Attributes:
        folders: The concept at each step that was sampled, and at the end (see `model.concepts.folder`).
        scored: The scores of each subject.
    """

    subjects: tuple[ConceptSubject, ...]
    folders: Mapping[int, StorePath]
    curves: Curves
    scored: tuple[Scored, ...]


def stop_request(scratch: StorePath) -> StorePath:
    """The file that asks the trainer for a checkpoint and an end (see `stages.training.job`)."""
    return scratch / "train" / f"{NAME}.stop"


def learn_concept(
    prepared: Sequence[PreparedSubject], of_classes: Mapping[str, tuple[bytes, ...]], context: StageContext
) -> LearnedConcept:
    """Train a concept and score it. Its checkpoints are in `context.scratch`, from which an interrupted one goes on.

    Args:
        prepared: One subject, or several that are learned together.
        of_classes: Pictures of each class word for prior preservation.
        context: With a scratch folder and a reporter of the concept's own.

    Raises:
        StageError: See `fit`; or a model cannot be loaded.
    """
    config = context.config.customize
    with model_errors_as_stage_errors():
        task = _task(prepared, of_classes, context)
        weights, curves = fit(
            task,
            steps=config.steps,
            config=config.trainer,
            context=context,
            name=NAME,
            seed=context.config.run.seed,
            section="customize.trainer",
            batch_size=config.batch_size,
            batch_setting="customize.batch_size",
            backbone_setting=backbone_setting(context.config.backbone),
        )
        folders = _checkpoints(weights, config.steps)
        scored = tuple(_score(subject, folders, task, context) for subject in task.subjects)
    return LearnedConcept(subjects=task.subjects, folders=folders, curves=curves, scored=scored)


def _task(
    prepared: Sequence[PreparedSubject], of_classes: Mapping[str, tuple[bytes, ...]], context: StageContext
) -> CustomizationTask:
    config = context.config.customize
    subjects = [one.subject for one in prepared]
    return CustomizationTask(
        backbone=backbone_location(context.config.backbone, context.inputs),
        subjects=tuple(dataclasses.replace(one, class_pictures=of_classes[one.word]) for one in subjects),
        settings=customization_settings(context.config),
        contextualizer=str(absolute(context.inputs["contextualizer"] / "contextualizer")) if config.mlm else None,
        rich_prompts=tuple(prompt for one in prepared for prompt in one.rich_prompts),
        seed=context.config.run.seed,
        device="cuda" if config.trainer.use_gpu else "cpu",
        half=HALVES.get(config.trainer.precision),
        gradient_checkpointing=config.gradient_checkpointing,
        sample_every=config.sample_every,
    )


def _score(
    subject: ConceptSubject, folders: Mapping[int, StorePath], task: CustomizationTask, context: StageContext
) -> Scored:
    """Score the concept at each step; report the curves."""
    job = ScoringJob(
        config=context.config,
        backbone=task.backbone,
        device=Device.of(context.config),
        word=subject.word,
        placeholder=subject.placeholder,
        pictures=subject.pictures,
        checkpoints={step: str(folder) for step, folder in folders.items()},
    )
    steps = context.config.customize.steps
    scored: Scored | None = None
    for result in results_of(score_concept, job, context.config):
        if isinstance(result, Scored):
            scored = result
        else:
            context.report.progress(steps, steps, f"{NAME}: {result}")
    assert scored is not None
    own = re.sub(r"[^\w.-]", "-", subject.name)
    _report(scored, NAME if len(task.subjects) == 1 else f"{NAME}/{own}", context)
    return scored


def _report(scored: Scored, key: str, context: StageContext) -> None:
    """Report the curves of both scores, and the sample pictures."""
    for step, arm in sorted(scored.checkpoints.items()):
        for name, value in zip(("similarity", "fidelity"), arm.means(), strict=True):
            context.report.metric(f"{key}/{name}", value, step)
        file = context.scratch / f"{key.replace('/', '-')}-{step}.png"
        with open_output(file) as picture:
            row(scored.samples[step]).save(picture, "PNG")
        context.report.sample(f"{key}/samples", file, step)


def _checkpoints(folder: StorePath, steps: int) -> dict[int, StorePath]:
    """The folders of the concept at each step that was sampled, and at the end."""
    sampled: list[StorePath] = sorted(folder.with_name(f"{NAME}-samples").glob("step-*/concept.json"), key=str)
    found = {int(file.parent.name.removeprefix("step-")): file.parent for file in sampled}
    return {**found, steps: folder}
