"""Checkpoints on the disk: complete, incomplete, damaged, too many, and on a full disk."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import torch

from stages.contract import StageError
from stages.training.checkpoints import CheckpointFolder, CheckpointWriter, difference
from tests.support.checkpoints import STATE, write


def test_the_shares_of_all_workers_are_read_back(tmp_path: Path) -> None:
    checkpoint = write(CheckpointFolder(tmp_path), 100, workers=3)
    assert checkpoint.is_complete()
    checkpoint.local().check()
    assert checkpoint.step == checkpoint.state()["step"] == 100
    tensors = dict(checkpoint.local().tensors())
    assert tensors.keys() == {"weight/0", "weight/1", "weight/2"}
    assert torch.equal(tensors["weight/2"], torch.full((2, 3), 2.0))


@pytest.mark.parametrize("missing", ["rank-1-of-2.json", "rank-0-of-2.json"])
def test_an_incomplete_checkpoint_is_none(tmp_path: Path, missing: str) -> None:
    folder = CheckpointFolder(tmp_path)
    first = write(folder, 10)
    (write(folder, 20).folder / missing).unlink()
    assert folder.complete() == [first]
    assert folder.latest() == first
    folder.remove_incomplete()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]


def test_without_checkpoints_there_is_no_latest(tmp_path: Path) -> None:
    assert CheckpointFolder(tmp_path / "nowhere").latest() is None


@pytest.mark.parametrize("name", ["rank-0-of-2.safetensors", "rank-1-of-2.safetensors", "training.json"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    checkpoint = write(CheckpointFolder(tmp_path), 100)
    file = checkpoint.folder / name
    *kept, last = file.read_bytes()
    file.write_bytes(bytes([*kept, last ^ 1]))
    with pytest.raises(StageError, match=rf"{name} is damaged \(its checksum is not the one in rank-.-of-2.json\)$"):
        checkpoint.local().check()


def test_a_damaged_list_is_named(tmp_path: Path) -> None:
    checkpoint = write(CheckpointFolder(tmp_path), 100)
    (checkpoint.folder / "rank-1-of-2.json").write_text("{")
    with pytest.raises(StageError, match=r"rank-1-of-2.json is damaged \(it is not JSON\)$"):
        checkpoint.local().check()


def test_the_last_ones_and_the_best_are_kept(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=2)
    for step, loss in [(1, 0.9), (2, 0.1), (3, None), (4, 0.8), (5, 0.7)]:
        write(folder, step, loss)
    being_written = folder.at(6)
    being_written.write_share(1, 2, {}, None)
    folder.prune()
    assert [checkpoint.step for checkpoint in folder.complete()] == [2, 4, 5]
    assert being_written.folder.exists()
    write(folder, 6, 0.05)
    folder.prune()
    assert [checkpoint.step for checkpoint in folder.complete()] == [5, 6]


def test_the_writer_writes_one_after_the_other_and_prunes(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=1)
    writer = CheckpointWriter(folder, 0, 1)
    for step in range(1, 6):
        writer.write(step, {"weight/a": torch.ones(3)}, {**STATE, "step": step, "loss": 1 / step})
    writer.wait()
    assert [checkpoint.step for checkpoint in folder.complete()] == [5]


def test_a_full_disk_ends_in_one_sentence(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.at(1).folder.mkdir()
    (folder.at(1).folder / "training.json").symlink_to("/dev/full")  # every write to it fails as on a full disk
    writer = CheckpointWriter(folder, 0, 1)
    writer.write(1, {"weight/a": torch.ones(3)}, STATE)
    with pytest.raises(StageError, match=r"^checkpoint .*/step-00000001 cannot be written \(its disk is full\)"):
        writer.wait()
    assert folder.latest() is None


def test_tensors_that_cannot_be_written_end_in_one_sentence(tmp_path: Path) -> None:
    """As on a disk that takes no file larger than 1 MB."""
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        with pytest.raises(StageError, match=r"^checkpoint .*/step-00000001 cannot be written \(.*File too large"):
            CheckpointFolder(tmp_path).at(1).write_share(0, 1, {"weight/a": torch.ones(2**19)}, STATE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_difference_is_named() -> None:
    then = {"learning_rate": 0.1, "schedule": "cosine", "task": "A"}
    assert difference(then, json.loads(json.dumps(then))) is None
    assert difference(then, {**then, "learning_rate": 0.2}) == "learning_rate is 0.1 there and 0.2 now"
    now = {"learning_rate": 0.2, "schedule": "constant", "task": "B", "task.size": 3}
    assert difference(then, now) == (
        "learning_rate is 0.1 there and 0.2 now, schedule is 'cosine' there and 'constant' now, "
        "task is 'A' there and 'B' now, 1 more differ"
    )
