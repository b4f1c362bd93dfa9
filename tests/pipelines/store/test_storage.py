from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import pipeline
from pipelines.config.loading import config_to_dict
from pipelines.errors import PipelineError, UsageError
from pipelines.fingerprint import Ingredients, ingredients_of
from pipelines.graph import Graph
from pipelines.store.storage import Entry, State, choose, list_entries, remove
from pipelines.store.store import Output, Store
from stages.contract import StageResult
from tests.support.toy_pipeline import SOURCES, commit_stage, run_graph, toy_config, toy_graph

pytestmark = pytest.mark.slow

#: Interrupted after it has written a checkpoint; goes on when it finds one.
TRAINING = (
    SOURCES["ingest"]
    .replace(
        "    samples = context.output",
        """    checkpoint = context.scratch / "train" / "toy-checkpoints" / "step-00000003"
    if not checkpoint.exists():
        checkpoint.mkdir(parents=True)
        (checkpoint / "weights").write_text("w" * 1000)
        raise StageError("interrupted.")
    samples = context.output""",
    )
    .replace("import StageContext, StageResult", "import StageError, StageResult")
)


def interrupt(graph: Graph) -> None:
    with pytest.raises(PipelineError, match=r"interrupted\.$"):
        run_graph(graph)


def entries_of(graph: Graph) -> dict[str, Entry]:
    store = Store.at(graph.config.run.folder)
    expected = {name: ingredients.fingerprint for name, ingredients in ingredients_of(graph).items()}
    return {entry.name: entry for entry in list_entries(store, expected)}


def states(graph: Graph, stage: str) -> list[State]:
    return sorted(
        (entry.state for name, entry in entries_of(graph).items() if name.startswith(f"{stage}/")),
        key=lambda state: state.name,
    )


def test_an_interrupted_stage_goes_on_when_only_the_operation_has_changed(tmp_path: Path) -> None:
    interrupt(toy_graph(tmp_path, ingest=TRAINING))
    outputs, _ = run_graph(toy_graph(tmp_path, "ingest.threads=3", "ingest.processes=1"))
    assert outputs["ingest"].manifest.rows["samples"]


def test_checkpoints_of_other_configurations_stay_until_the_user_removes_them(tmp_path: Path) -> None:
    other = toy_graph(tmp_path, "ingest.image_size=12", ingest=TRAINING)
    interrupt(other)
    graph = toy_graph(tmp_path)
    interrupt(graph)
    assert states(graph, "ingest") == [State.RESUMABLE, State.UNFINISHED]
    run_graph(graph)
    assert states(graph, "ingest") == [State.IN_USE, State.UNFINISHED]
    (left,) = [entry for entry in entries_of(graph).values() if entry.state is State.UNFINISHED]
    assert (left.checkpoints, left.size) == (1, 1000)
    run_graph(other)  # goes on from its checkpoint
    assert states(other, "ingest") == [State.IN_USE, State.OLD]


def test_a_group_or_single_entries_are_removed_and_nothing_else(tmp_path: Path) -> None:
    first, second = toy_graph(tmp_path, "filter.min_aesthetic=6"), toy_graph(tmp_path)
    run_graph(first)
    outputs, _ = run_graph(second)
    store = Store(tmp_path / "run")
    with store.locked():
        chosen = choose(list(entries_of(second).values()), ["old"])
        assert sorted(entry.name.split("/")[0] for entry in chosen) == ["curriculum", "filter"]
        remove(store, chosen)
    assert {entry.state for entry in entries_of(second).values()} == {State.IN_USE}
    assert all(output.damage(thorough=True) is None for output in outputs.values())


def test_an_output_that_the_last_one_was_made_from_is_in_use(tmp_path: Path) -> None:
    graph = toy_graph(tmp_path)
    outputs, _ = run_graph(graph)
    store = Store(tmp_path / "run")
    store.write_latest(config_to_dict(graph.config), {"curriculum": outputs["curriculum"].fingerprint})
    assert {entry.state for entry in entries_of(graph).values()} == {State.IN_USE}


def command(capsys: pytest.CaptureFixture[str], tmp_path: Path, *words: str) -> tuple[int, str]:
    code = pipeline.main(["storage", "--set", f"run.folder={tmp_path / 'run'}", *words])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def test_the_command_lists_and_removes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_graph(toy_graph(tmp_path, "filter.min_aesthetic=6"))
    interrupt(toy_graph(tmp_path, "ingest.image_size=12", ingest=TRAINING))
    run_graph(toy_graph(tmp_path, ingest=SOURCES["ingest"]))
    code, listed = command(capsys, tmp_path)
    assert code == 0
    lines = {line.split()[0]: line for line in listed.splitlines()}
    (unfinished,) = [name for name in lines if name.endswith(".scratch")]
    assert lines[unfinished].split()[1] == "unfinished"
    code, removed = command(capsys, tmp_path, "--remove", unfinished, "old")
    assert code == 0
    assert f"removed {unfinished}" in removed
    assert removed.count("removed filter/") == 1
    _, listed = command(capsys, tmp_path)
    assert unfinished not in listed
    assert not [line for line in listed.splitlines() if line.split()[1] == "old"]


@pytest.fixture
def used(tmp_path: Path) -> Output:
    """The one output of a run, and an old one."""
    store = Store(tmp_path / "run")
    commit_stage(store, "filter", StageResult(), Ingredients(config={}, inputs={}, files={}, code="old"))
    output = commit_stage(store, "filter", StageResult())
    store.write_latest(config_to_dict(toy_config(tmp_path)), {"filter": output.fingerprint})
    return output


@pytest.mark.parametrize("what", ["../..", "ingest", "filter/0123456789ab", "filter/../ingest", "everything"])
def test_what_is_not_there_is_not_removed(used: Output, what: str) -> None:
    store = Store(used.folder.parents[2])
    entries = list_entries(store, {})
    assert [entry.state for entry in entries] == [State.IN_USE, State.OLD]
    with pytest.raises(UsageError) as caught:
        choose(entries, ["old", what])
    assert repr(what) in str(caught.value)


def test_what_the_last_run_uses_is_not_removed(
    used: Output, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"filter/{used.fingerprint}"
    code, said = command(capsys, tmp_path, "--remove", "old", name)
    assert code == 2
    assert name in said
    assert "the last run uses it" in said
    assert len(list(used.folder.parent.iterdir())) == 2


def test_a_folder_outside_the_run_is_not_removed(used: Output, tmp_path: Path) -> None:
    (tmp_path / "precious" / "things").mkdir(parents=True)
    (entry, _) = list_entries(Store(used.folder.parents[2]), {})
    with pytest.raises(PipelineError, match="things does not lie in"):
        remove(Store(tmp_path / "run"), [dataclasses.replace(entry, folders=(tmp_path / "precious" / "things",))])
    assert (tmp_path / "precious" / "things").is_dir()


def test_nothing_is_removed_while_a_run_is_at_work(
    used: Output, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Store(tmp_path / "run").locked():
        code, said = command(capsys, tmp_path, "--remove", "old")
    assert code == 1
    assert "Another run" in said


def test_a_folder_in_which_nothing_has_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = command(capsys, tmp_path)
    assert code == 1
    assert str(tmp_path / "run") in said
    assert not (tmp_path / "run").exists()
