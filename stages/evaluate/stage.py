"""Stage `evaluate`: paints held-out subjects in every arm, scores the pictures, and writes the report.

What varies between the arms is only what the model is given: text alone, the subject's picture everywhere, or the
subject's picture inside the mask. Subject, prompt and noise are the same. The learned concept is a further arm with its
own subject. Beside the arms: two subjects in one picture and several rounds (`pairs`, `multi_subject`), and how well
masks of different recipes fit the object (`mask_quality`, `scene_masks`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data

from model.checksums import folder_checksums
from stages.config import Config
from stages.contract import StageContext, StageError, StageResult
from stages.data.datasets import write_dataset
from stages.data.schemas import MASKS, MULTI_SUBJECT, SCENE_MASKS, SCORES
from stages.evaluate.cases import Case, evaluation_id, load_subjects, make_cases
from stages.evaluate.concept import Concept, concept_cases, read_concept
from stages.evaluate.mask_quality import RECIPES, MaskPainter, mask_table
from stages.evaluate.multi_subject import MultiSubjectPainter, pair_table
from stages.evaluate.multi_subject_summary import SecondaryResults
from stages.evaluate.painter import Painter, PaintingPaths, case_table
from stages.evaluate.pairs import load_pairs, make_pair_cases
from stages.evaluate.report import Evaluation, write_report
from stages.evaluate.scene_masks import SceneMasks, scene_table
from stages.evaluate.summary import Row, summarize
from stages.inference import backbone_location, model_errors_as_stage_errors
from stages.ray_tools.tasks import set_data_context

ADAPTER_ARMS = ("text_only", "adapter", "adapter_mask")


def run(context: StageContext) -> StageResult:
    """Write `scores/`, `multi_subject/`, `masks/`, `scene_masks/`, `metrics.json` and `report/`."""
    config: Config = context.config
    folder = _subjects_folder(context)
    subjects = load_subjects(folder, config.evaluate.subjects)
    cases = make_cases(subjects, config.evaluate, config.run.seed)
    concept = read_concept(context.inputs["customize"] / "concept", config, folder)
    backbone = backbone_location(config.backbone, context.inputs)
    adapter = context.inputs["train_adapter"] / "adapter"
    place = PaintingPaths(backbone=backbone, adapter=adapter.resolve(), concept=concept.folder.resolve())
    tables = _batches(case_table(cases, ADAPTER_ARMS), config) + _batches(_concept_table(concept, config), config)
    rows = _paint(Painter, context, place, tables, "painting and scoring")
    secondary = _paint_secondary(context, place, folder, cases)
    evaluation = Evaluation(
        config=config,
        inputs=context.inputs,
        subjects=subjects,
        concept=concept,
        rows=rows,
        summary=summarize(rows),
        secondary=secondary,
    )
    counts = {
        "scores": _write(context, "scores", rows, SCORES, ("arm", "subject", "seed", "prompt")),
        "multi_subject": _write(
            context, "multi_subject", secondary.multi_subject_rows, MULTI_SUBJECT, ("task", "pair", "subject")
        ),
        "masks": _write(context, "masks", secondary.mask_rows, MASKS, ("recipe", "subject", "seed", "step")),
        "scene_masks": _write(
            context, "scene_masks", secondary.scene_rows, SCENE_MASKS, ("recipe", "objects", "scene", "word")
        ),
    }
    identity = evaluation_id(cases, config.evaluate, _scorer_digest(config, backbone))
    _write_metrics(context.output / "metrics.json", evaluation, identity)
    for page in write_report(context.output / "report", evaluation):
        context.report.picture(page.name, page)
    metrics = evaluation.summary.flat() | secondary.flat()
    return StageResult(rows=counts, metrics=metrics, notes={"evaluation": identity})


def _paint_secondary(
    context: StageContext, place: PaintingPaths, folder: Path, cases: Sequence[Case]
) -> SecondaryResults:
    """Several subjects and masks; nothing without the judge, who alone can tell regions and objects."""
    config: Config = context.config
    settings, seed = config.evaluate, config.run.seed
    if settings.similarity != "judge":
        return SecondaryResults.of([], [], [], config.inference.effective_mask_steps)
    pairs = make_pair_cases(load_pairs(folder, settings.pairs), settings, seed)
    first = cases[:: settings.prompts_per_subject][: settings.mask_subjects]
    recipes = [table for recipe in RECIPES for table in _batches(mask_table(first, recipe), config)]
    scenes = [scene_table(recipe, settings.mask_scenes, seed) for recipe in RECIPES if settings.mask_scenes]
    return SecondaryResults.of(
        _paint(MultiSubjectPainter, context, place, _batches(pair_table(pairs), config), "several subjects"),
        _paint(MaskPainter, context, place, recipes, "masks of pictures"),
        _paint(SceneMasks, context, place, scenes, "masks of scenes"),
        config.inference.effective_mask_steps,
    )


def _subjects_folder(context: StageContext) -> Path:
    settings = context.config.evaluate
    if settings.subjects_folder is not None:
        return Path(settings.subjects_folder)
    if "microworld" not in context.inputs:
        raise StageError(
            "evaluate.subjects_folder is not set, and this profile has no microworld to take subjects from; "
            "set it to a folder with one folder of pictures for each held-out subject."
        )
    return context.inputs["microworld"] / "subjects"


def _concept_table(concept: Concept, config: Config) -> pa.Table:
    cases, painted = concept_cases(concept, config)
    return case_table(cases, ("concept",), painted)


def _batches(table: pa.Table, config: Config) -> list[pa.Table]:
    size = config.evaluate.batch_size
    return [table.slice(start, size) for start in range(0, table.num_rows, size)]


def _paint(
    worker: type[Painter | MultiSubjectPainter | MaskPainter | SceneMasks],
    context: StageContext,
    place: PaintingPaths,
    tables: Sequence[pa.Table],
    what: str,
) -> list[dict[str, Any]]:
    """The rows of all pictures, painted by `evaluate.workers` processes; a table is a batch."""
    config: Config = context.config
    if not tables:
        return []
    context.report.progress(0, len(tables), f"{what}: starting painters")
    set_data_context()
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    painted = ray.data.from_arrow(list(tables)).map_batches(
        worker,
        fn_constructor_kwargs={"config": config, "place": place},
        batch_format="pyarrow",
        batch_size=None,  # a block is a batch
        compute=ray.data.ActorPoolStrategy(size=min(config.evaluate.workers, len(tables))),
        num_cpus=1,
        num_gpus=1 if config.evaluate.use_gpu else None,
    )
    rows: list[dict[str, Any]] = []
    with model_errors_as_stage_errors():
        for done, batch in enumerate(painted.iter_batches(batch_size=None, batch_format="pyarrow"), 1):
            rows += batch.to_pylist()
            context.report.progress(done, len(tables), what)
    return rows


def _write(context: StageContext, name: str, rows: Sequence[Row], schema: pa.Schema, order: Sequence[str]) -> int:
    table = pa.Table.from_pylist([dict(row) for row in rows], schema)
    return write_dataset(context.output / name, table, schema, order=order)


def _scorer_digest(config: Config, backbone: str) -> str:
    """What the scores come from: the judge's weights, or the names of the public models."""
    names = [config.evaluate.clip] + (["judge"] if config.evaluate.similarity == "judge" else [])
    folders = [Path(backbone) / name for name in names]
    return json.dumps([folder_checksums(folder) for folder in folders if folder.is_dir()])


def _write_metrics(path: Path, evaluation: Evaluation, identity: str) -> None:
    content = {
        "evaluation": identity,
        "similarity_metric": evaluation.config.evaluate.similarity,
        **evaluation.summary.as_json(),
        **evaluation.secondary.as_json(),
    }
    path.write_text(json.dumps(content, indent=2) + "\n")
