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
    "contextualizer.trainer.zero_stage=1",
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
    "prompts.token_budget=9",
    "prompts.requests_per_minute=9",
    "prompts.tokens_per_minute=9",
    "prompts.answers_folder=answers",
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
        ("evaluate.clip={}", {"customize", "evaluate", "register"}),
        ("evaluate.dino={}", {"customize", "evaluate", "register"}),
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


NAMES = {
    "latin-1": b"caf\xe9.jpg",
    "gbk": "\u676f\u5b50".encode("gbk"),
    "shift-jis": "\u8336\u7897".encode("shift-jis"),
    "utf-16": b"\xff\xfea",
    "cut utf-8": "é".encode()[:1],
    "surrogates in utf-8": b"\xed\xb3\xa9",
    "line break": b"a\nb",
    "carriage return": b"a\rb",
    "tab": b"a\tb",
    "escape": b"\x1b[2J",
    "quotes": b"\"a\" 'b' `c`",
    "hash": b"#a",
    "percent": b"%s%d%(name)s",
    "braces": b"{a}{}",
    "backslash": b"a\\b",
    "spaces": b" a  ",
    "dashes": b"--set",
    "wildcards": b"*[a]?",
    "long": b"x" * 255,
    "emoji": "\U0001f469\u200d\U0001f467".encode(),
    "right to left": "\u202eabc".encode(),
    "decomposed": b"e\xcc\x81",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_no_name_breaks_a_digest(tmp_path: Path, name: bytes) -> None:
    empty = file_digest(tmp_path)
    below = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    below.mkdir()
    (below / "a").write_text("1")
    as_folder = file_digest(tmp_path)
    (below / "a").unlink()
    below.rmdir()
    below.write_text("1")
    assert len({empty, as_folder, file_digest(tmp_path)}) == 3
    assert len(file_digest(below)) == 12


def test_two_folders_have_one_digest_only_if_their_names_agree(tmp_path: Path) -> None:
    """A name with a line break and numbers in it is no two files."""
    digests = set()
    for number, names in enumerate(
        (["a", "b"], ["a\n1\n1\nb"], ["a\n1", "1\nb"], ["é"], ["e\u0301"], [os.fsdecode(b"\xe9")])
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in names:
            (folder / name).write_text("1")
            os.utime(folder / name, ns=(1, 1))
        digests.add(file_digest(folder))
    assert len(digests) == 6


def test_what_is_no_data_changes_no_digest(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("1")
    before = file_digest(tmp_path)
    for hidden in ("._a.jpg", ".DS_Store", ".ipynb_checkpoints/a.jpg", "_temporary/0/a.jpg", "__MACOSX/a/b.jpg"):
        (tmp_path / hidden).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / hidden).write_text("1")
    (tmp_path / "nowhere").symlink_to("nothing")
    (tmp_path / "circle").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert file_digest(tmp_path) == before


def test_what_lies_behind_a_link_counts(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    before = file_digest(tmp_path / "data")
    (tmp_path / "elsewhere" / "a.jpg").touch()
    assert file_digest(tmp_path / "data") != before


def test_a_file_that_goes_while_its_folder_is_read_breaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").touch()
    expected = file_digest(tmp_path)
    monkeypatch.setattr(fingerprint, "visible_files", lambda folder: [folder / "a", folder / "gone"])
    assert file_digest(tmp_path) == expected


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
    for name in ("__pycache__/other.pyc", ".ipynb_checkpoints/template.txt", ".template.txt.swp"):
        (root / "package" / name).parent.mkdir(exist_ok=True)
        (root / "package" / name).write_text("1")
    assert code_version("package.start", root, ["package/**/*"]) == before
    (root / "package" / os.fsdecode(b"caf\xe9.txt")).write_text("1")
    unnamed = code_version("package.start", root, ["package/**/*"])
    assert unnamed != before
    (root / "package" / "template.txt").write_text("1")
    assert code_version("package.start", root, ["package/**/*"]) not in (before, unnamed)


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
