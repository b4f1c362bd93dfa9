"""A worker of the evaluation: a process that loads the models once, and evaluates batches of all kinds of cases."""

from __future__ import annotations

from functools import cached_property

import pyarrow as pa

from stages.config import Config
from stages.data.schemas import MASKS, MULTI_SUBJECT, SCENE_MASKS
from stages.evaluate.mask_quality import MASK_CASES, MaskPainter
from stages.evaluate.models import ModelPaths, Models
from stages.evaluate.multi_subject import PAIR_CASES, MultiSubjectPainter
from stages.evaluate.painter import CASES, PAINTED, Painter
from stages.evaluate.scene_masks import SCENE_CASES, SceneMaskMeter

#: The schema of the results for each dataset of the stage.
RESULTS = {"scores": PAINTED, "multi_subject": MULTI_SUBJECT, "masks": MASKS, "scene_masks": SCENE_MASKS}

_EVALUATORS = (
    (CASES, Painter),
    (PAIR_CASES, MultiSubjectPainter),
    (MASK_CASES, MaskPainter),
    (SCENE_CASES, SceneMaskMeter),
)


class EvaluationWorker:
    """Takes tables of cases, and returns tables of results; the schema of a table says of which kind it is."""

    def __init__(self, config: Config, paths: ModelPaths) -> None:
        self.config = config
        self.paths = paths

    @cached_property
    def models(self) -> Models:
        """Loaded by the first call: Ray loses the type of an error that a constructor raises."""
        return Models(self.config, self.paths)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Evaluate a batch."""
        evaluator = next(evaluator for schema, evaluator in _EVALUATORS if batch.schema.equals(schema))
        return evaluator(self.config, self.models)(batch)


def dataset_of(results: pa.Table) -> str:
    """The name of the dataset that these results belong to."""
    return next(name for name, schema in RESULTS.items() if results.schema.equals(schema))
