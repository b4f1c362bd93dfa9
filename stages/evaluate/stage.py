"""Stage `evaluate`: paints held-out subjects in every arm, scores the pictures, and writes the report.

The arms differ in the input of the model only: text alone, the subject's picture in the whole image, or the subject's
picture inside the mask. Subject, prompt and noise are the same. Learned concepts are another arm with
subjects of their own. Two experiments stand beside the arms: multi-subject and multi-round generation (`pairs`,
`multi_subject`), and the quality of the masks of different recipes (`mask_quality`, `scene_masks`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from model.checksums import folder_checksums
from model.errors import ModelError
from stages.config import Config
from stages.contract import StageContext, StageError, StageResult
from stages.data.datasets import write_dataset
from stages.data.schemas import MASKS, MULTI_SUBJECT, SCENE_MASKS, SCORES
from stages.evaluate.cases import Case, evaluation_id, load_subjects, make_cases
from stages.evaluate.concept import Concept, concept_cases, read_concepts
from stages.evaluate.experiments import Experiments
from stages.evaluate.mask_quality import RECIPES, mask_table
from stages.evaluate.models import ModelPaths
from stages.evaluate.multi_subject import pair_table
from stages.evaluate.painter import case_table
from stages.evaluate.pairs import PairCase, load_pairs, make_pair_cases
from stages.evaluate.report import Evaluation, write_report
from stages.evaluate.scene_masks import scene_table
from stages.evaluate.summary import Row, summarize
from stages.evaluate.worker import RESULTS, EvaluationWorker, dataset_of
from stages.inference import backbone_location
from stages.local_copies import local_copy
from stages.ray_tools.mapping import Progress, Workers, map_on_workers
from stages.storage import StorePath, absolute, local_folder, store_path, write_whole
from stages.subject_lists import list_subjects

ADAPTER_ARMS = ("text_only", "adapter", "adapter_mask")


def run(context: StageContext) -> StageResult:
    """Write `scores/`, `multi_subject/`, `masks/`, `scene_masks/`, `metrics.json` and `report/`."""
    config: Config = context.config
    folder = _subjects_folder(context)
    subjects = load_subjects(folder, config.evaluate.subjects)
    for text in list_subjects(folder)[1]:
        context.report.warning(text)
    cases = make_cases(subjects, config.evaluate, config.run.seed)
    concepts = read_concepts(context.inputs, config)
    pairs = make_pair_cases(load_pairs(folder, config.evaluate.pairs), config.evaluate, config.run.seed)
    paths = _model_paths(context)
    tables = _batches(case_table(cases, ADAPTER_ARMS), config)
    tables += [batch for concept in concepts for batch in _batches(_concept_table(concept, config), config)]
    rows = _paint(context, paths, tables + _experiment_tables(config, cases, pairs))
    evaluation = Evaluation(
        config=config,
        inputs=context.inputs,
        subjects=subjects,
        concepts=concepts,
        rows=rows["scores"],
        summary=summarize(rows["scores"]),
        experiments=Experiments.of(
            rows["multi_subject"], rows["masks"], rows["scene_masks"], config.inference.effective_mask_steps
        ),
    )
    identity = evaluation_id(cases, config.evaluate, _scorer_digest(config, paths.backbone))
    counts = _write_datasets(context, evaluation)
    _write_metrics(context.output / "metrics.json", evaluation, identity)
    with local_folder(context.output / "report") as report:
        pages = write_report(report, evaluation)
    for page in pages:
        context.report.picture(page.name, context.output / "report" / page.name)
    metrics = evaluation.summary.flat() | evaluation.experiments.flat()
    return StageResult(rows=counts, metrics=metrics, notes={"evaluation": identity})


def _model_paths(context: StageContext) -> ModelPaths:
    backbone = backbone_location(context.config.backbone, context.inputs)
    adapter = absolute(context.inputs["train_adapter"] / "adapter")
    return ModelPaths(backbone=backbone, adapter=adapter)


def _experiment_tables(config: Config, cases: Sequence[Case], pairs: Sequence[PairCase]) -> list[pa.Table]:
    """Multi-subject generation and mask quality. Only the judge can score them: without it there are no tables."""
    settings, seed = config.evaluate, config.run.seed
    if settings.similarity != "judge":
        return []
    first = cases[:: settings.prompts_per_subject][: settings.mask_subjects]
    masks = [table for recipe in RECIPES for table in _batches(mask_table(first, recipe), config)]
    scenes = [scene_table(recipe, settings.mask_scenes, seed) for recipe in RECIPES if settings.mask_scenes]
    return _batches(pair_table(pairs), config) + masks + scenes


def _subjects_folder(context: StageContext) -> Path:
    settings = context.config.evaluate
    if settings.subjects_folder is not None:
        return Path(settings.subjects_folder)
    if "microworld" not in context.inputs:
        raise StageError(
            "evaluate.subjects_folder is not set, and this profile has no microworld with held-out subjects; "
            "set it to a folder with one folder of pictures for each held-out subject."
        )
    return local_copy(context.inputs["microworld"] / "subjects")


def _concept_table(concept: Concept, config: Config) -> pa.Table:
    cases, painted = concept_cases(concept, config)
    return case_table(cases, ("concept",), painted, concept.folder)


def _batches(table: pa.Table, config: Config) -> list[pa.Table]:
    size = config.evaluate.batch_size
    return [table.slice(start, size) for start in range(0, table.num_rows, size)]


def _paint(context: StageContext, paths: ModelPaths, tables: Sequence[pa.Table]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each dataset, by `evaluate.workers` processes; each table is a batch."""
    config: Config = context.config
    context.report.progress(0, len(tables), "starting workers")
    painted = map_on_workers(
        EvaluationWorker,
        tables,
        arguments={"config": config, "paths": paths},
        workers=Workers(count=config.evaluate.workers, gpus=1 if config.evaluate.use_gpu else 0),
        progress=Progress(report=context.report, total=len(tables), note="painting and scoring"),
        errors=(ModelError,),
    )
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in RESULTS}
    for batch in painted:
        rows[dataset_of(batch)] += batch.to_pylist()
    return rows


def _write_datasets(context: StageContext, evaluation: Evaluation) -> dict[str, int]:
    """Write the four datasets; return the number of rows of each."""
    experiments = evaluation.experiments
    datasets = {
        "scores": (evaluation.rows, SCORES, ("arm", "subject", "seed", "prompt")),
        "multi_subject": (experiments.multi_subject_rows, MULTI_SUBJECT, ("task", "pair", "subject")),
        "masks": (experiments.mask_rows, MASKS, ("recipe", "subject", "seed", "step")),
        "scene_masks": (experiments.scene_rows, SCENE_MASKS, ("recipe", "objects", "scene", "word")),
    }
    return {
        name: write_dataset(context.output / name, _table(rows, schema), schema, order=order)
        for name, (rows, schema, order) in datasets.items()
    }


def _table(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist([dict(row) for row in rows], schema)


def _scorer_digest(config: Config, backbone: str) -> str:
    """A digest of the weights that score: those in the backbone; public models are identified by their names."""
    names = [config.evaluate.clip] + (["judge"] if config.evaluate.similarity == "judge" else [])
    folders = [store_path(backbone) / name for name in names]
    return json.dumps([folder_checksums(local_copy(folder)) for folder in folders if folder.is_dir()])


def _write_metrics(path: StorePath, evaluation: Evaluation, identity: str) -> None:
    content = {
        "evaluation": identity,
        "similarity_metric": evaluation.config.evaluate.similarity,
        **evaluation.summary.as_json(),
        **evaluation.experiments.as_json(),
    }
    write_whole(path, json.dumps(content, indent=2) + "\n")
