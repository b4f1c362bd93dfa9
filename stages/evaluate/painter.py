"""The arms of the evaluation: each case is painted in every arm, and the pictures are scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from torch import Tensor

from model.pictures.decoding import load_picture, to_png
from model.pictures.tensors import mask_picture, to_tensor
from model.pipeline_output import RealCustomOutput
from stages.config import Config
from stages.data.schemas import SCORES
from stages.evaluate.cases import Case, Subject
from stages.evaluate.models import Models
from stages.storage import StorePath

#: The input: one row for each case. `painted_prompt` is `prompt`, with the placeholder in it for a concept.
CASES = pa.schema(
    [
        pa.field("subject", pa.string()),
        pa.field("word", pa.string()),
        pa.field("prompt", pa.string()),
        pa.field("painted_prompt", pa.string()),
        pa.field("seed", pa.int64()),
        pa.field("background", pa.string()),
        pa.field("reference", pa.binary()),
        pa.field("views", pa.list_(pa.binary())),
        pa.field("another_subject", pa.binary()),  # a picture of one with the same word; null: there is none
        pa.field("arms", pa.list_(pa.string())),  # the same in all rows of a batch
        pa.field("concept", pa.string()),  # of that arm: its folder's path or URI, the same in all rows of a batch
    ]
)
#: The output: one row for each picture, with the seconds that it took.
PAINTED = SCORES.append(pa.field("seconds", pa.float64(), nullable=False))

MASK_SIDE = 64  # pixels of a mask's picture, at least


def case_table(
    cases: Sequence[Case],
    arms: Sequence[str],
    painted_prompts: Sequence[str] | None = None,
    concept: StorePath | None = None,
) -> pa.Table:
    """Cases as a table for the workers, to be painted in `arms`."""
    others = _other_subjects([case.subject for case in cases])
    rows = [
        {
            "subject": case.subject.name,
            "word": case.subject.word,
            "prompt": case.prompt,
            "painted_prompt": painted,
            "seed": case.seed,
            "background": case.background,
            "reference": case.subject.reference,
            "views": list(case.subject.views),
            "another_subject": others[case.subject.name],
            "arms": list(arms),
            "concept": None if concept is None else str(concept),
        }
        for case, painted in zip(cases, painted_prompts or [case.prompt for case in cases], strict=True)
    ]
    return pa.Table.from_pylist(rows, CASES)


def _other_subjects(subjects: Sequence[Subject]) -> dict[str, bytes | None]:
    """For each subject's name the reference of the next one with the same word, None if there is none."""
    by_word: dict[str, dict[str, Subject]] = {}
    for subject in subjects:
        by_word.setdefault(subject.word, {})[subject.name] = subject
    found: dict[str, bytes | None] = {}
    for same in map(list, (named.values() for named in by_word.values())):
        following = [*same[1:], same[0]]
        found |= {
            one.name: other.reference if other is not one else None for one, other in zip(same, following, strict=True)
        }
    return found


class Painter:
    """Takes tables of `CASES`, and returns tables of `PAINTED`."""

    def __init__(self, config: Config, models: Models) -> None:
        self.models = models
        self.settings = config.inference

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Paint and score each case in every arm."""
        cases = batch.to_pylist()
        rows: list[dict[str, Any]] = []
        plain: Tensor | None = None
        for arm in cases[0]["arms"]:
            output = self._paint(arm, cases)
            pictures = to_tensor(output.images)
            scores: dict[str, Sequence[float | str | None]] = {**self.models.scorer.score(pictures, cases)}
            if plain is None:
                plain, scores["background_change"] = pictures, [None] * len(cases)
            else:
                scores["background_change"] = self.models.scorer.background_change(pictures, plain)
            rows += [_row(arm, case, output, number, scores) for number, case in enumerate(cases)]
        return pa.Table.from_pylist(rows, PAINTED)

    def _paint(self, arm: str, cases: Sequence[Mapping[str, Any]]) -> RealCustomOutput:
        prompts = [case["painted_prompt"] for case in cases]
        request: dict[str, Any] = {"seeds": [case["seed"] for case in cases], "settings": self.settings}
        if arm == "concept":
            with self.models.concept(cases[0]["concept"]):
                return self.models.pipeline(prompts, **request)
        if arm != "text_only":
            request["subjects"] = [load_picture(case["reference"]) for case in cases]
            request["words"] = [case["word"] for case in cases]
            request["use_mask"] = arm == "adapter_mask"
        return self.models.pipeline(prompts, **request)


def _row(
    arm: str,
    case: Mapping[str, Any],
    output: RealCustomOutput,
    number: int,
    scores: Mapping[str, Sequence[float | str | None]],
) -> dict[str, Any]:
    masks = output.masks[number] if arm == "adapter_mask" else []
    return {
        "arm": arm,
        **{key: case[key] for key in ("subject", "word", "prompt", "seed")},
        **{name: values[number] for name, values in scores.items()},
        "picture": to_png(output.images[number]),
        "mask": to_png(mask_picture(masks[-1], MASK_SIDE)) if masks else None,
        "seconds": output.timings["total"] / len(output.images),
    }
