"""What benchmarks of training take from a finished run: its configuration, its stages' outputs, a plan of theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config.loading import config_from_dict, with_values
from pipelines.errors import PipelineError
from pipelines.store.store import Store
from stages.config import Config
from stages.contract import Reporter, StageContext
from stages.curriculum.stage import map_columns, recipe_of, write_plan_part
from stages.data.plan import PlanReader
from stages.data.schemas import PAIRS, SAMPLES


@dataclass(frozen=True)
class FinishedRun:
    """A run folder, read.

    Attributes:
        config: Of the last run, with some values over it.
        inputs: Stage -> its committed output.
        fingerprints: Stage -> which output that is.
    """

    config: Config
    inputs: Mapping[str, Path]
    fingerprints: Mapping[str, str]

    def context(self, config: Config, folder: Path) -> StageContext:
        """For a piece of a stage that is to run alone in `folder` and has nobody to tell."""
        silent = Reporter(emit=lambda event: None)
        return StageContext(config=config, inputs=self.inputs, output=folder, scratch=folder, report=silent)

    def write_plan(self, config: Config, folder: Path) -> PlanReader:
        """Write a training plan as the stage curriculum does, in one part, to `folder/plan`."""
        recipe = recipe_of(config.curriculum)
        columns = ["reference_frame_id", "target_frame_id", "category"]
        map_columns(self.inputs["filter"] / "samples", SAMPLES, ["sample_id", "caption"], folder / "samples.arrow")
        map_columns(self.inputs["multiview"] / "pairs", PAIRS, columns, folder / "pairs.arrow")
        write_plan_part(folder / "plan", 0, range(recipe.steps), recipe, folder, config.run.seed)
        return PlanReader(folder / "plan")


def open_run(folder: Path, stages: Sequence[str], values: Mapping[str, Any]) -> FinishedRun:
    """Read a run folder whose `stages` have run; `values`, by dotted key, go over its configuration.

    Raises:
        PipelineError: There is no such run, or a stage has not run in it.
    """
    store = Store(folder)
    config, fingerprints = store.read_latest()
    outputs = store.latest_outputs()
    if missing := [name for name in stages if name not in outputs]:
        raise PipelineError(f"{folder} lacks the output of {', '.join(missing)}; run the default profile in it.")
    return FinishedRun(
        with_values(config_from_dict(config), values),
        {name: outputs[name].folder.resolve() for name in stages},
        {name: fingerprints[name] for name in stages},
    )
