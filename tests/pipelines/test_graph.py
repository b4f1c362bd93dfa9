from __future__ import annotations

import ast
from pathlib import Path

import pytest

from pipelines.config.loading import load_config
from pipelines.errors import UsageError
from pipelines.fingerprint import reachable_modules
from pipelines.graph import REPOSITORY, STAGES, pipeline_graph
from stages.config import Config

MICRO = pipeline_graph(load_config("micro"))
CACHING = pipeline_graph(load_config("micro", ["cache_latents.enabled=true"]))


def test_every_stage_comes_after_its_inputs() -> None:
    for profile in ("micro", "sd15", "sdxl"):
        graph = pipeline_graph(load_config(profile))
        for position, name in enumerate(graph.order):
            assert set(graph.inputs[name]) <= set(graph.order[:position])


def test_the_edges_of_micro() -> None:
    assert MICRO.inputs == {
        "microworld": [],
        "prompts": [],
        "base": [],
        "ingest": ["microworld"],
        "multiview": ["microworld"],
        "filter": ["ingest"],
        "curriculum": ["filter", "multiview"],
        "train_adapter": ["filter", "multiview", "curriculum", "base"],
        "contextualizer": ["prompts", "base"],
        "customize": ["contextualizer", "base", "microworld"],
        "evaluate": ["train_adapter", "customize", "base", "microworld", "ingest", "filter", "curriculum", "prompts"],
        "register": ["train_adapter", "evaluate", "base"],
    }


@pytest.mark.parametrize("profile", ["sd15", "sdxl"])
def test_the_large_profiles_have_neither_microworld_nor_base(profile: str) -> None:
    assert set(MICRO.order) - set(pipeline_graph(load_config(profile)).order) == {"microworld", "base"}


def test_own_pictures_replace_the_microworld_edge_by_edge() -> None:
    graph = pipeline_graph(load_config("micro", ["ingest.metadata=/data/laion"]))
    assert graph.inputs["ingest"] == []
    assert graph.inputs["multiview"] == ["microworld"]


def test_a_folder_that_another_tool_wrote_replaces_ingest() -> None:
    graph = pipeline_graph(load_config("micro", ["filter.pictures_folder=/data/downloaded"]))
    assert "ingest" not in graph.order
    assert graph.inputs["filter"] == []
    assert graph.stage("filter").files(graph.config)[0] == "/data/downloaded"


def test_latents_are_cached_when_that_is_asked_for() -> None:
    assert "cache_latents" not in MICRO.order
    assert set(CACHING.order) - set(MICRO.order) == {"cache_latents"}
    changed = {name: inputs for name, inputs in CACHING.inputs.items() if inputs != MICRO.inputs.get(name)}
    assert changed == {
        "cache_latents": ["filter", "multiview", "curriculum", "base"],
        "train_adapter": ["filter", "multiview", "curriculum", "base", "cache_latents"],
    }


def test_downstream_of_filter() -> None:
    assert MICRO.downstream("filter") == {"filter", "curriculum", "train_adapter", "evaluate", "register"}


def test_upstream_is_what_a_stage_needs() -> None:
    assert MICRO.upstream(["curriculum"]) == {"curriculum", "filter", "ingest", "multiview", "microworld"}
    assert MICRO.upstream(MICRO.order) == set(MICRO.order)


@pytest.mark.parametrize("name", MICRO.order)
def test_upstream_and_downstream_agree(name: str) -> None:
    assert {other for other in MICRO.order if name in MICRO.upstream([other])} == MICRO.downstream(name)


def test_an_unknown_stage_names_the_nearest() -> None:
    with pytest.raises(
        UsageError, match=r"There is no stage 'filtre'. Did you mean 'filter'\? The stages are microworld"
    ):
        MICRO.stage("filtre")


def test_sections_exist() -> None:
    for stage in STAGES:
        assert set(stage.sections) <= set(Config.__dataclass_fields__)


def _sections_read(file: Path) -> set[str]:
    """Sections of the configuration that a file names as an attribute of something called config or settings."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in Config.__dataclass_fields__:
            owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            if owner == "config":
                found.add(node.attr)
    return found - {"run", "profile"}


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_stage_reads_only_the_sections_that_its_fingerprint_depends_on(stage: object) -> None:
    name = getattr(stage, "name", "")
    declared = {section for other in CACHING.upstream([name]) for section in CACHING.stages[other].sections}
    files = reachable_modules(f"stages.{name}", REPOSITORY)
    assert files, f"stages/{name} does not exist"
    for module, file in files.items():
        if module.startswith("stages."):
            assert _sections_read(file) <= declared, f"{module} reads sections that stage {name} does not declare"
