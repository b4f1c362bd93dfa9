from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from pipelines.config.keys import configuration_keys
from pipelines.config.loading import load_config
from pipelines.errors import UsageError
from pipelines.fingerprint import outside_files, reachable_modules, settings_read
from pipelines.graph import REPOSITORY, STAGES, pipeline_graph
from stages.config import Config
from stages.declaration import Stage

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
        "customize": ["prompts", "contextualizer", "base", "microworld"],
        "evaluate": [
            *("train_adapter", "customize", "base", "microworld", "ingest"),
            *("filter", "curriculum", "prompts", "contextualizer"),
        ],
        "register": ["train_adapter", "customize", "evaluate", "base"],
    }


@pytest.mark.parametrize("profile", ["sd15", "sdxl"])
def test_the_large_profiles_have_neither_microworld_nor_base(profile: str) -> None:
    concepts = load_config(profile, ["customize.subjects=[/data/my_dog]"])
    assert set(MICRO.order) - set(pipeline_graph(concepts).order) == {"microworld", "base"}


@pytest.mark.parametrize("profile", ["sd15", "sdxl"])
def test_the_large_profiles_need_no_pictures_of_a_concept(profile: str) -> None:
    data = ("ingest", "multiview", "filter")
    order = pipeline_graph(load_config(profile)).order
    assert order == [*data, "curriculum", "train_adapter", "evaluate", "register"]
    alone = pipeline_graph(load_config(profile, ["evaluate.subjects=0"]))
    assert alone.order == [*data, "curriculum", "train_adapter", "register"]
    assert alone.inputs["register"] == ["train_adapter"]


#: Settings, and the stages of micro that a run has no more.
ABSENT = [
    (["customize.subjects=[]"], {"prompts", "contextualizer", "customize"}),
    (["customize.subjects=null"], set()),
    (["customize.subjects=[]", "customize.mlm=false"], {"prompts", "contextualizer", "customize"}),
    (["customize.mlm=false"], {"contextualizer"}),
    (["customize.subjects=[]", "customize.words=[dog, cat]"], {"prompts", "contextualizer", "customize"}),
    (["customize.subjects=[]", "customize.method=custom_diffusion"], {"prompts", "contextualizer", "customize"}),
    (["evaluate.subjects=0"], {"evaluate"}),
    (["evaluate.subjects=0", "evaluate.subjects_folder=/data/mine"], {"evaluate"}),
    (["evaluate.subjects=0", "customize.mlm=false"], {"evaluate", "contextualizer", "prompts"}),
    (["evaluate.subjects=0", "customize.subjects=[]"], {"evaluate", "prompts", "contextualizer", "customize"}),
]


@pytest.mark.parametrize(("settings", "absent"), ABSENT, ids=[" ".join(settings) for settings, _ in ABSENT])
def test_stages_that_nobody_needs_are_no_part_of_a_run(settings: list[str], absent: set[str]) -> None:
    graph = pipeline_graph(load_config("micro", settings))
    assert set(MICRO.order) - set(graph.order) == absent
    for name in absent:
        with pytest.raises(UsageError, match=rf"Stage {name} is not part of a run with these settings: \w+\.\w+"):
            graph.stage(name)


def test_own_subjects_replace_the_microworld_where_the_concept_has_its_own_too() -> None:
    """A concept of the microworld is evaluated on its own subject."""
    both = ["customize.words=[mug]", "evaluate.subjects_folder=subjects", "customize.subjects=[mug]"]
    needed = ["microworld" in pipeline_graph(load_config("micro", both[: n + 1])).inputs["evaluate"] for n in range(3)]
    assert needed == [True, True, False]


def test_own_pictures_replace_the_microworld_edge_by_edge() -> None:
    graph = pipeline_graph(load_config("micro", ["ingest.metadata=/data/laion"]))
    assert graph.inputs["ingest"] == []
    assert graph.inputs["multiview"] == ["microworld"]


def test_a_folder_that_another_tool_wrote_replaces_ingest() -> None:
    graph = pipeline_graph(load_config("micro", ["filter.pictures_folder=/data/downloaded"]))
    assert "ingest" not in graph.order
    assert graph.inputs["filter"] == []
    assert outside_files(graph.config, graph.stage("filter")) == [Path("/data/downloaded")]


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


def test_declared_settings_exist() -> None:
    for stage in STAGES:
        for name in (*stage.settings, *stage.previews):
            assert any(f"{key}.".startswith(f"{name}.") for key in configuration_keys()), f"{stage.name}: {name}"


def test_a_stage_is_declared_beside_its_code() -> None:
    for stage in STAGES:
        assert (REPOSITORY / "stages" / stage.name / "declaration.py").is_file()
        assert stage.module == f"stages.{stage.name}.stage"


def _settings_named(file: Path) -> set[str]:
    """Sections and keys that a file names as attributes of a configuration: {"backbone", "backbone.dtype"}."""
    sections = set(Config.__dataclass_fields__) - {"run", "profile"}
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in sections and _name(node.value) == "config":
            found.add(node.attr)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute):
            section = node.value
            if section.attr in sections and _name(section.value) == "config":
                found.add(f"{section.attr}.{node.attr}")
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_stage_reads_only_the_settings_that_its_fingerprint_depends_on(stage: Stage) -> None:
    needed = [CACHING.stages[name] for name in CACHING.upstream([stage.name])]
    declared = [name for other in needed for name in (*other.settings, *other.previews)]
    files = reachable_modules(stage.module, REPOSITORY)
    assert stage.module in files
    for module, file in files.items():
        if module.startswith("stages."):
            for name in _settings_named(file):
                near = [one for one in declared if f"{name}.".startswith(f"{one}.") or one.startswith(f"{name}.")]
                assert near, f"{module} reads {name}, which stage {stage.name} does not declare"


def test_training_does_not_depend_on_how_pictures_are_painted() -> None:
    for name in ("train_adapter", "contextualizer", "customize", "cache_latents"):
        read = settings_read(MICRO.config, CACHING.stages[name])
        assert "backbone.dtype" not in read
        assert not [key for key in read if key.startswith("inference.")]
    assert "backbone.dtype" in settings_read(MICRO.config, CACHING.stages["evaluate"])


#: What a part of the configuration is called where it is read.
_OWNERS = {
    "config",
    "settings",
    "_settings",
    "models",
    "part",
    "recipe",
    "w",
    "weights",
    "training",
    "trainer",
    "inference",
}


def _reads(tree: ast.AST) -> Iterator[str]:
    """Names of settings that a module reads as attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            section = isinstance(node.value, ast.Attribute) and _name(node.value.value) in ("config", "recipe")
            if section or _name(node.value) in _OWNERS:
                yield node.attr


def _reads_by_name(tree: ast.AST) -> Iterator[str]:
    """Patterns of the names of settings that a module reads with `getattr`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            yield re.escape(node.value)
        elif isinstance(node, ast.Call) and _name(node.func) == "getattr" and isinstance(node.args[1], ast.JoinedStr):
            parts = node.args[1].values
            yield "".join(re.escape(str(part.value)) if isinstance(part, ast.Constant) else ".+" for part in parts)


def _unread(keys: Iterable[str]) -> list[str]:
    files = [file for package in ("stages", "model", "pipelines") for file in (REPOSITORY / package).rglob("*.py")]
    trees = {file: ast.parse(file.read_text()) for file in files if file.name not in ("config.py", "pool_config.py")}
    attributes = {name for tree in trees.values() for name in _reads(tree)}
    patterns: dict[str, set[str]] = defaultdict(set)  # by stage
    for file, tree in trees.items():
        patterns[file.parent.name] |= set(_reads_by_name(tree))
    return [
        key
        for key in keys
        if key.rpartition(".")[2] not in attributes
        and not any(re.fullmatch(one, key.rpartition(".")[2]) for one in patterns[key.split(".")[0]])
    ]


def test_no_setting_is_read_by_nobody() -> None:
    assert _unread([*configuration_keys(), "backbone.family"]) == ["backbone.family"]
