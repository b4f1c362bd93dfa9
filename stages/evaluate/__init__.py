"""Stage `evaluate`: paints held-out subjects in every arm, scores the pictures, and writes the report.

What varies between the arms is only what the model is given: text alone, the subject's picture everywhere, or the
subject's picture inside the mask. Subject, prompt and noise are the same. The learned concept is a further arm with its
own subject.
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
from stages.datasets import write_dataset
from stages.evaluate.cases import evaluation_id, load_subjects, make_cases
from stages.evaluate.concept import Concept, concept_cases, read_concept
from stages.evaluate.painter import Painter, Place, case_table
from stages.evaluate.report import Evaluation, write_report
from stages.evaluate.summary import Summary, summarise
from stages.inference import backbone_location, model_errors_as_stage_errors
from stages.schemas import SCORES
from stages.stage import Reporter, StageContext, StageError, StageResult

ADAPTER_ARMS = ("text_only", "adapter", "adapter_mask")


def run(context: StageContext) -> StageResult:
    """Write `scores/`, `metrics.json` and `report/`."""
    config: Config = context.config
    folder = _subjects_folder(context)
    subjects = load_subjects(folder, config.evaluate.subjects)
    cases = make_cases(subjects, config.evaluate, config.run.seed)
    concept = read_concept(context.inputs["customize"] / "concept", config, folder)
    backbone = backbone_location(config.backbone, context.inputs)
    adapter = context.inputs["train_adapter"] / "adapter"
    place = Place(backbone=backbone, adapter=adapter.resolve(), concept=concept.folder.resolve())
    tables = [*_batches(case_table(cases, ADAPTER_ARMS), config.evaluate.batch_size)]
    tables += _batches(_concept_table(concept, config), config.evaluate.batch_size)
    rows = _paint(config, place, tables, context.report)
    summary = summarise(rows)
    count = write_dataset(
        context.output / "scores", pa.Table.from_pylist(rows), SCORES, order=("arm", "subject", "seed", "prompt")
    )
    evaluation = evaluation_id(cases, config.evaluate, _scorer_digest(config, backbone))
    _write_metrics(context.output / "metrics.json", summary, config, evaluation)
    pages = write_report(
        context.output / "report",
        Evaluation(
            config=config, inputs=context.inputs, subjects=subjects, concept=concept, rows=rows, summary=summary
        ),
    )
    for page in pages:
        context.report.picture(page.name, page)
    return StageResult(rows={"scores": count}, metrics=summary.flat(), notes={"evaluation": evaluation})


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


def _batches(table: pa.Table, size: int) -> list[pa.Table]:
    return [table.slice(start, size) for start in range(0, table.num_rows, size)]


def _paint(config: Config, place: Place, tables: Sequence[pa.Table], report: Reporter) -> list[dict[str, Any]]:
    """The rows of all pictures, painted by `evaluate.workers` processes; a table is a batch."""
    total = sum(len(arms) for table in tables for arms in table.column("arms").to_pylist())
    report.progress(0, total, "starting painters")
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    painted = ray.data.from_arrow(list(tables)).map_batches(
        Painter,
        fn_constructor_kwargs={"config": config, "place": place},
        batch_format="pyarrow",
        batch_size=None,  # a block is a batch
        compute=ray.data.ActorPoolStrategy(size=min(config.evaluate.workers, len(tables))),
        num_cpus=1,
        num_gpus=1 if config.evaluate.use_gpu else None,
    )
    rows: list[dict[str, Any]] = []
    with model_errors_as_stage_errors():
        for batch in painted.iter_batches(batch_size=None, batch_format="pyarrow"):
            rows += batch.to_pylist()
            report.progress(len(rows), total, "painting and scoring")
    return rows


def _scorer_digest(config: Config, backbone: str) -> str:
    """What the scores come from: the judge's weights, or the names of the public models."""
    names = [config.evaluate.clip] + (["judge"] if config.evaluate.similarity == "judge" else [])
    folders = [Path(backbone) / name for name in names]
    return json.dumps([folder_checksums(folder) for folder in folders if folder.is_dir()])


def _write_metrics(path: Path, summary: Summary, config: Config, evaluation: str) -> None:
    content = {"evaluation": evaluation, "similarity_metric": config.evaluate.similarity, **summary.as_json()}
    path.write_text(json.dumps(content, indent=2) + "\n")
