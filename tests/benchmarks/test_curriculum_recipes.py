"""Errors of the runner, and how processes share its runs. The runs themselves take minutes and are not tested."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.config.loading import config_to_dict, load_config
from pipelines.errors import PipelineError
from pipelines.store.manifest import MANIFEST
from pipelines.store.store import Store
from tests.benchmarks.curriculum_recipes import open_experiment
from tests.benchmarks.support.recipe_table import TABLE_X

STAGES = ("microworld", "filter", "multiview", "base")
BUDGET = {"curriculum.steps": 5, "evaluate.subjects": 2}


def write_run(folder: Path, *stages: str) -> Path:
    """A run folder with empty outputs."""
    for stage in stages:
        output = folder / "stages" / stage / "1234"
        output.mkdir(parents=True)
        (output / MANIFEST).write_text("{}")
    Store(folder).write_latest(config_to_dict(load_config("micro")), dict.fromkeys(stages, "1234"))
    return folder


def test_the_budget_and_the_recipe_replace_values_of_the_run_s_configuration(tmp_path: Path) -> None:
    experiment = open_experiment(write_run(tmp_path / "run", *STAGES), tmp_path / "results", BUDGET)
    config = experiment.config_of(TABLE_X[4], seed=7)
    assert (config.curriculum.steps, config.curriculum.crops, config.run.seed) == (5, "random", 7)
    assert (config.evaluate.subjects, config.train_adapter.trainer.workers) == (2, 1)
    assert experiment.results() == []


def test_a_run_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "microworld", "filter", "base")
    with pytest.raises(PipelineError, match=r"lacks the output of multiview; run the default profile in it"):
        open_experiment(run, tmp_path / "results", BUDGET)


def test_results_of_another_budget_are_not_mixed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", *STAGES)
    open_experiment(run, tmp_path / "results", BUDGET)
    open_experiment(run, tmp_path / "results", BUDGET)
    with pytest.raises(PipelineError, match="holds results of another budget or run"):
        open_experiment(run, tmp_path / "results", {**BUDGET, "curriculum.steps": 6})
