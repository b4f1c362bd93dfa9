from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelines import fingerprint
from pipelines.config.loading import load_config
from pipelines.fingerprint import code_version, config_slice, file_digest, ingredients_of, reachable_modules
from pipelines.graph import REPOSITORY, Graph, pipeline_graph
from tests.support.toy_pipeline import SOURCES, toy_graph


def fingerprints(graph: Graph) -> dict[str, str]:
    fingerprint._tree.cache_clear()
    fingerprint._tree_digest.cache_clear()
    return {name: ingredients.fingerprint for name, ingredients in ingredients_of(graph).items()}


def of_pipeline(*settings: str) -> dict[str, str]:
    """The fingerprints of the profile micro; the code is read once."""
    graph = pipeline_graph(load_config("micro", settings))
    return {name: ingredients.fingerprint for name, ingredients in ingredients_of(graph).items()}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


def test_the_same_ingredients_give_the_same_fingerprint(tmp_path: Path) -> None:
    assert fingerprints(toy_graph(tmp_path)) == fingerprints(toy_graph(tmp_path))
    assert all(len(value) == 12 for value in fingerprints(toy_graph(tmp_path)).values())


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("filter.min_aesthetic=6.0", {"filter", "curriculum"}),
        ("ingest.samples_per_shard=3", {"ingest", "filter", "curriculum"}),
        ("ingest.threads=3", set()),
        ("ingest.processes=3", set()),
        ("multiview.image_size=8", {"multiview", "curriculum"}),
        ("run.seed=1", {"ingest", "filter", "multiview", "curriculum"}),
        ("run.cpus=1", set()),
        ("run.folder=/elsewhere", set()),
        ("serve.port=1", set()),
    ],
)
def test_a_setting_changes_exactly_what_depends_on_it(tmp_path: Path, setting: str, expected: set[str]) -> None:
    assert changed(fingerprints(toy_graph(tmp_path)), fingerprints(toy_graph(tmp_path, setting))) == expected


OPERATION = [
    "train_adapter.trainer.workers=4",
    "train_adapter.trainer.use_gpu=true",
    "train_adapter.trainer.zero_stage=2",
    "train_adapter.trainer.accumulation=2",
    "train_adapter.trainer.checkpoint_every=7",
    "train_adapter.trainer.keep_checkpoints=7",
    "train_adapter.trainer.max_failures=7",
    "train_adapter.data_workers=0",
    "train_adapter.gradient_checkpointing=true",
    "train_adapter.sample_every=null",
    "contextualizer.trainer.workers=1",
    "base.workers=1",
    "ingest.threads=1",
    "ingest.processes=1",
    "filter.scoring.batch_size=1",
    "evaluate.workers=1",
    "evaluate.batch_size=1",
    "prompts.concurrency=1",
    "run.cpus=1",
    "serve.port=1",
]


def test_what_changes_no_result_changes_no_fingerprint() -> None:
    assert of_pipeline(*OPERATION) == of_pipeline()


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("backbone.dtype=bfloat16", {"evaluate", "register"}),
        ("inference.mask_scope=0.3", {"evaluate", "register"}),
        ("train_adapter.trainer.learning_rate=1", {"train_adapter", "evaluate", "register"}),
        ("customize.steps=1", {"customize", "evaluate", "register"}),
    ],
)
def test_a_setting_makes_nothing_run_again_that_does_not_read_it(setting: str, expected: set[str]) -> None:
    assert changed(of_pipeline(), of_pipeline(setting)) == expected


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("backbone.image_encoders=[{}, dino]", {"train_adapter", "evaluate", "register"}),
        ("evaluate.clip={}", {"evaluate", "register"}),
        ("evaluate.dino={}", {"evaluate", "register"}),
        ("filter.scoring.similarity_clip={}", {"filter", "curriculum", "train_adapter", "evaluate", "register"}),
    ],
)
def test_a_change_of_a_models_files_is_seen(tmp_path: Path, setting: str, expected: set[str]) -> None:
    (tmp_path / "weights").write_text("one")
    before = of_pipeline(setting.format(tmp_path))
    (tmp_path / "weights").write_text("other")
    assert changed(before, of_pipeline(setting.format(tmp_path))) == expected


def test_a_docstring_below_an_attribute_is_no_code(tmp_path: Path) -> None:
    root = write(tmp_path, start='class Settings:\n    size: int = 3\n    """One."""\n')
    before = code_version("package.start", root)
    write(tmp_path, start='class Settings:\n    size: int = 3\n    """Other."""\n')
    fingerprint._tree.cache_clear()
    fingerprint._tree_digest.cache_clear()
    assert code_version("package.start", root) == before


def test_code_changes_what_runs_it(tmp_path: Path) -> None:
    before = fingerprints(toy_graph(tmp_path))
    other = SOURCES["arithmetic"].replace(">=", ">")
    assert changed(before, fingerprints(toy_graph(tmp_path, arithmetic=other))) == {"filter", "curriculum"}


def test_comments_docstrings_and_layout_change_nothing(tmp_path: Path) -> None:
    before = fingerprints(toy_graph(tmp_path))
    same = (
        '"""New."""\n# A comment.\ndef keep(number,\n         least):\n    """New."""\n    return (number >= least)\n'
    )
    assert changed(before, fingerprints(toy_graph(tmp_path, arithmetic=same))) == set()


def test_a_file_from_outside_counts(tmp_path: Path) -> None:
    metadata = tmp_path / "metadata.parquet"
    metadata.write_bytes(b"one")
    before = fingerprints(toy_graph(tmp_path, f"ingest.metadata={metadata}"))
    metadata.write_bytes(b"other")
    after = fingerprints(toy_graph(tmp_path, f"ingest.metadata={metadata}"))
    assert changed(before, after) == {"ingest", "filter", "curriculum"}


def test_another_tools_folder_counts_for_the_filter(tmp_path: Path) -> None:
    folder = tmp_path / "downloaded"
    folder.mkdir()
    (folder / "00000.tar").write_bytes(b"one")
    config = load_config("micro", [f"filter.pictures_folder={folder}"])
    before = ingredients_of(pipeline_graph(config))["filter"]
    assert list(before.inputs) == []
    (folder / "00001.tar").write_bytes(b"two")
    assert ingredients_of(pipeline_graph(config))["filter"].fingerprint != before.fingerprint


def test_file_digest_sees_names_sizes_and_times(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    digests = {file_digest(folder)}
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a").write_text("1")
    digests.add(file_digest(folder))
    (folder / "deep" / "a").rename(folder / "b")
    digests.add(file_digest(folder))
    (folder / "b").write_text("12")
    digests.add(file_digest(folder))
    os.utime(folder / "b", ns=(1, 1))
    digests.add(file_digest(folder))
    assert len(digests) == 5
    assert file_digest(folder) == file_digest(folder)


def write(root: Path, **modules: str) -> Path:
    for name, text in modules.items():
        file = root / "package" / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    return root


def test_imports_are_followed_in_all_their_forms(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        __init__="",
        start="import package.a\nfrom package import b, thing\nfrom package.c import name\n"
        "from . import d\nfrom .e import x\ndef late():\n    import package.f as g\nimport numpy, json\n",
        a="",
        b="import package.start\n",
        c="",
        d="",
        e="",
        f="",
        unreached="",
    )
    found = reachable_modules("package.start", root)
    assert sorted(found) == ["package", *(f"package.{name}" for name in ("a", "b", "c", "d", "e", "f", "start"))]


def test_data_files_count_and_python_files_do_not_count_twice(tmp_path: Path) -> None:
    root = write(tmp_path, start="")
    before = code_version("package.start", root, ["package/**/*"])
    (root / "package" / "other.py").write_text("1")
    assert code_version("package.start", root, ["package/**/*"]) == before
    (root / "package" / "template.txt").write_text("1")
    assert code_version("package.start", root, ["package/**/*"]) != before


def test_the_contract_is_not_part_of_a_stages_code() -> None:
    found = reachable_modules("stages.ingest.stage", REPOSITORY)
    assert "stages.ingest.stage" in found
    assert not {"stages.config", "stages.contract", "stages.ingest.config", "stages.declaration"} & set(found)


def test_the_slice_holds_own_sections_and_the_seed(tmp_path: Path) -> None:
    graph = toy_graph(tmp_path, "run.seed=3")
    found = config_slice(graph.config, graph.stages["filter"])
    assert found["run.seed"] == 3
    assert {key.split(".")[0] for key in found} == {"run", "filter"}
    assert [key for key in found if key.startswith("run.")] == ["run.seed"]
