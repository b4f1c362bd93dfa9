from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import PipelineError
from pipelines.fingerprint import Ingredients
from pipelines.store.manifest import MANIFEST, Manifest, describe_datasets, describe_output
from pipelines.store.store import Output, Store
from stages.contract import StageResult
from stages.local_copies import local_copy
from tests.support.toy_pipeline import INGREDIENTS, commit_stage

FINGERPRINT = INGREDIENTS.fingerprint


def commit(store: Store, text: str = "whole", ingredients: Ingredients = INGREDIENTS) -> Output:
    work = store.begin("filter", ingredients.fingerprint, restart=True)
    (work.output / "data").mkdir()
    (work.output / "data" / "file.txt").write_text(text)
    return commit_stage(store, "filter", StageResult(rows={"data": 1}), ingredients, work)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "run")


def test_a_committed_output_is_found_with_its_manifest(store: Store) -> None:
    assert store.output("filter", FINGERPRINT) is None
    output = commit(store)
    assert output == store.output("filter", FINGERPRINT)
    manifest = output.manifest
    assert manifest.ingredients == INGREDIENTS
    assert (manifest.rows, manifest.seconds, manifest.stage) == ({"data": 1}, 1.5, "filter")
    assert manifest.files.keys() == {"data/file.txt"}
    assert manifest.libraries["numpy"]
    assert sorted(path.name for path in output.folder.parent.iterdir()) == [FINGERPRINT]


def test_what_was_not_committed_does_not_exist(store: Store) -> None:
    work = store.begin("filter", FINGERPRINT, restart=False)
    (work.output / "file.txt").write_text("half")
    assert store.output("filter", FINGERPRINT) is None


def test_scratch_survives_and_output_does_not(store: Store) -> None:
    work = store.begin("filter", FINGERPRINT, restart=False)
    (work.output / "file.txt").write_text("half")
    (work.scratch / "shard").write_text("done")
    work = store.begin("filter", FINGERPRINT, restart=False)
    assert list((work.output).iterdir()) == []
    assert (work.scratch / "shard").read_text() == "done"
    work = store.begin("filter", FINGERPRINT, restart=True)
    assert list((work.scratch).iterdir()) == []
    (work.scratch / "shard").write_text("made from scratch")
    work = store.begin("filter", FINGERPRINT, restart=True)
    assert (work.scratch / "shard").read_text() == "made from scratch"


def test_a_forced_output_replaces_the_earlier_one_only_when_complete(store: Store) -> None:
    output = commit(store, "earlier")
    for attempt in range(3):
        work = store.begin("filter", FINGERPRINT, restart=True)
        (work.output / "file.txt").write_text("half")
        assert store.output("filter", FINGERPRINT) == output
        assert output.damage(thorough=True) is None
        output = commit(store, f"attempt {attempt}")
        assert store.output("filter", FINGERPRINT) == output
        assert (output.folder / "data" / "file.txt").read_text() == f"attempt {attempt}"
        assert [path.name for path in output.folder.parent.iterdir()] == [output.folder.name]


def test_a_kill_before_the_earlier_output_is_removed_loses_nothing(store: Store) -> None:
    earlier = commit(store, "earlier")
    kept = local_copy(earlier.folder)
    shutil.copytree(kept, kept.with_name("kept"))
    later = commit(store, "later")
    kept.with_name("kept").rename(kept)
    os.utime(kept / MANIFEST, (0, 0))
    assert store.output("filter", FINGERPRINT) == later
    assert commit(store, "last").folder == earlier.folder


def test_outputs_and_interrupted_work_of_other_configurations_are_kept(store: Store) -> None:
    other = Ingredients(config={}, inputs={}, files={}, code="other")
    interrupted = store.begin("filter", "interrupted", restart=False)
    commit(store, ingredients=other)
    output = commit(store)
    assert store.output("filter", other.fingerprint) is not None
    found = sorted(path.name for path in output.folder.parent.iterdir())
    assert found == sorted([FINGERPRINT, other.fingerprint, interrupted.output.name, interrupted.scratch.name])


def test_damage_is_named_with_its_remedy(store: Store) -> None:
    output = commit(store)
    file = output.folder / "data" / "file.txt"
    assert output.damage(thorough=False) is None
    file.write_text("whale")
    assert output.damage(thorough=False) is None
    sentence = output.damage(thorough=True)
    assert sentence == (
        f"The output of stage filter in {output.folder} is damaged: the checksum of data/file.txt is not the one in "
        "its manifest; rebuild it with --force filter."
    )
    file.write_text("longer than before")
    assert "data/file.txt has 18 bytes instead of 5" in (output.damage(thorough=False) or "")
    file.unlink()
    assert "data/file.txt is missing" in (output.damage(thorough=False) or "")
    (output.folder / MANIFEST).write_text("{")
    assert "manifest.json cannot be read" in (output.damage(thorough=False) or "")


def test_datasets_are_described_by_their_footers(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    for part in range(2):
        pq.write_table(pa.table({"id": ["a", "b"], "size": [1, 2]}), tmp_path / "samples" / f"part-0000{part}.parquet")
    (tmp_path / "pictures").mkdir()
    assert describe_datasets(tmp_path) == {
        "samples": {"columns": {"id": "string", "size": "int64"}, "rows": 4, "files": 2}
    }


def test_a_manifest_survives_the_disk(tmp_path: Path) -> None:
    manifest = describe_output(
        tmp_path, "filter", INGREDIENTS, StageResult(metrics={"share": 0.5}, notes={"a": "b"}), 2
    )
    manifest.write(tmp_path / MANIFEST)
    assert Manifest.read(tmp_path / MANIFEST) == manifest


def test_the_latest_outputs_are_noted(store: Store) -> None:
    with store.locked():
        assert store.latest_outputs() == {}
        output = commit(store)
        store.write_latest({"profile": "micro"}, {"filter": FINGERPRINT, "ingest": "gone"})
    assert store.read_latest() == ({"profile": "micro"}, {"filter": FINGERPRINT, "ingest": "gone"})
    assert store.latest_outputs() == {"filter": output}


def test_before_the_first_run_the_way_to_start_is_named(store: Store) -> None:
    with pytest.raises(PipelineError, match=r"Nothing has run in .*/run yet; start with python pipeline\.py run"):
        store.read_latest()


def test_a_damaged_note_is_named(store: Store) -> None:
    store.folder.mkdir()
    store.latest_file.write_text("{}")
    with pytest.raises(PipelineError, match=r"latest\.json is damaged"):
        store.read_latest()


def test_two_runs_on_one_folder(store: Store) -> None:
    code = "import sys, pathlib, pipelines.store.store as s\nwith s.Store(pathlib.Path(sys.argv[1])).locked(): pass"
    with store.locked():
        second = subprocess.run([sys.executable, "-c", code, str(store.folder)], capture_output=True, text=True)
    assert f"Another run (process {os.getpid()}) is at work in {store.folder}" in second.stderr
    subprocess.run([sys.executable, "-c", code, str(store.folder)], check=True)


def test_a_run_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(PipelineError, match="Cannot write in the run folder"), Store(folder).locked():
            pass


@contextmanager
def without_privileges(folder: Path) -> Iterator[None]:
    """Be somebody who may not write into `folder`; root may write everywhere."""
    if os.geteuid() != 0:
        folder.chmod(0o500)
        yield
        folder.chmod(0o700)
        return
    folder.chmod(0o755)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_run_folder_without_permission() -> None:
    with (
        tempfile.TemporaryDirectory() as home,
        without_privileges(Path(home)),
        pytest.raises(PipelineError) as caught,
        Store(Path(home, "run")).locked(),
    ):
        pass
    assert str(caught.value).startswith(f"Cannot write in the run folder {home}/run: there is no permission")


def test_a_run_folder_where_there_can_be_none() -> None:
    with pytest.raises(PipelineError, match=r"/proc/1/run.* run\.folder="), Store(Path("/proc/1/run")).locked():
        pass


DISK_ERRORS = [(28, "there is no space left on its disk"), (122, "its disk quota is used up"), (30, "a read-only disk")]


@pytest.mark.parametrize(("number", "advice"), DISK_ERRORS)
def test_trouble_with_the_disk_is_one_sentence(store: Store, number: int, advice: str) -> None:
    with pytest.raises(PipelineError) as caught, store.writable():
        raise OSError(number, os.strerror(number), str(store.folder / "file"))
    assert str(caught.value).startswith(f"Cannot write in the run folder {store.folder}: ")
    assert advice in str(caught.value)


def test_other_troubles_stay_what_they_are(store: Store) -> None:
    with pytest.raises(PermissionError), store.writable():
        raise PermissionError(13, "Permission denied", "/etc/shadow")
    with pytest.raises(json.JSONDecodeError), store.writable():
        json.loads("{")


@pytest.mark.parametrize(
    "location", ["http://host/run", "https://host/run", "memory://host/run", "s3://", "gs://b/run"]
)
def test_a_place_where_no_run_can_be_kept_is_refused(location: str) -> None:
    with pytest.raises(PipelineError, match=r"^run\.folder: .*://"):
        Store.at(location)
