"""The pictures by which benchmarks of the adapter are compared: held-out subjects with two prompts each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.micro_sd.weights import WEIGHTS_FOLDER
from model.microworld.shapes import HELD_OUT_CATEGORIES
from pipelines.config.loading import load_config, with_values
from stages.config import Config
from stages.evaluate.cases import load_subjects, make_cases
from stages.evaluate.models import ModelPaths, Models
from stages.evaluate.painter import Painter, case_table
from stages.evaluate.summary import Row
from stages.microworld.subjects import write_subjects


def picture_config(subjects: int, painting_steps: int, seed: int, device: str) -> Config:
    """The default configuration of the micro backbone for this many subjects, with two prompts each, on a device."""
    values = {
        "run.seed": seed,
        "inference.steps": painting_steps,
        "evaluate.subjects": subjects,
        "evaluate.prompts_per_subject": 2,
        "evaluate.use_gpu": str(device == "cuda").lower(),
        "evaluate.batch_size": 128 if device == "cuda" else 8,
    }
    return load_config("micro", [f"{key}={value}" for key, value in values.items()])


class HeldOutPictures:
    """Held-out subjects times their prompts, always the same; the subjects' pictures go into `folder`."""

    def __init__(self, config: Config, folder: Path) -> None:
        write_subjects(folder, config.microworld.picture_size, config.run.seed)
        self.config = config
        subjects = load_subjects(folder, config.evaluate.subjects)
        self.cases = make_cases(subjects, config.evaluate, config.run.seed)
        listing = json.loads((folder / "subjects.json").read_text())
        self.held_out = {entry["subject"] for entry in listing if entry["category"] in HELD_OUT_CATEGORIES}

    def models(self, adapter: Path) -> Models:
        """The models that paint and score."""
        paths = ModelPaths(backbone=str(WEIGHTS_FOLDER), adapter=adapter)
        return Models(self.config, paths)

    def rows(self, models: Models, arm: str, inference: Mapping[str, Any]) -> list[Row]:
        """Paint and score the cases in one arm of the stage `evaluate`, with other settings of the inference.

        Returns:
            The stage's rows without pictures, each with "held_out": of a category that no training shows.
        """
        config = with_values(self.config, {f"inference.{name}": value for name, value in inference.items()})
        painter, cases = Painter(config, models), case_table(self.cases, [arm])
        size = config.evaluate.batch_size
        batches = [cases.slice(start, size) for start in range(0, cases.num_rows, size)]
        return [
            {key: value for key, value in row.items() if not isinstance(value, bytes)}
            | {"held_out": row["subject"] in self.held_out}
            for batch in batches
            for row in painter(batch).to_pylist()
        ]
