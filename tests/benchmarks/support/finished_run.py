"""A finished run as the input of a benchmark: its configuration, its stages' outputs, and plans made from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config.loading import config_from_dict, with_values
from pipelines.errors import PipelineError
from pipelines.store.store import Store
from stages.config import Config
from stages.contract import StageContext
from stages.curriculum.stage import map_examples, recipe_of, write_plan_part
from stages.data.plan import PlanReader, target_sizes
from stages.local_copies import local_copy
from tests.benchmarks.support.environment import silent_reporter


@dataclass(frozen=True)
class FinishedRun:
    """The last run in a run folder.

    Attributes:
        config: Its configuration, with some values replaced.
        inputs: Stage -> its committed output folder.
        fingerprints: Stage -> fingerprint of that output.
    """

    config: Config
    inputs: Mapping[str, Path]
    fingerprints: Mapping[str, str]

    def context(self, config: Config, folder: Path) -> StageContext:
        """The context of a part of a stage that runs alone in `folder`."""
        return StageContext(config=config, inputs=self.inputs, output=folder, scratch=folder, report=silent_reporter())

    def write_plan(self, config: Config, folder: Path) -> PlanReader:
        """Write a training plan to `folder/plan`, like the stage `curriculum` but in one part."""
        recipe = recipe_of(config.curriculum)
        map_examples(self.inputs, folder)
        write_plan_part(folder / "plan", 0, range(recipe.steps), recipe, target_sizes(config), folder, config.run.seed)
        return PlanReader(folder / "plan")


def open_run(folder: Path, stages: Sequence[str], values: Mapping[str, Any]) -> FinishedRun:
    """Open a run folder in which `stages` have run; `values`, by dotted key, replace values of its configuration.

    Raises:
        PipelineError: There is no such run, or it lacks the output of a stage.
    """
    store = Store(folder)
    config, fingerprints = store.read_latest()
    outputs = store.latest_outputs()
    if missing := [name for name in stages if name not in outputs]:
        raise PipelineError(f"{folder} lacks the output of {', '.join(missing)}; run the default profile in it.")
    return FinishedRun(
        with_values(config_from_dict(config), values),
        {name: local_copy(outputs[name].folder).resolve() for name in stages},
        {name: fingerprints[name] for name in stages},
    )
