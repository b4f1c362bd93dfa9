"""A run that is killed goes on with the same command, and its datasets are row for row those of an undisturbed run."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny_run import kill_in, run

pytestmark = [pytest.mark.slow]

DATASETS = [
    ("microworld", "metadata"),
    ("ingest", "samples"),
    ("ingest", "rejected"),
    ("ingest", "failed"),
    ("filter", "samples"),
    ("filter", "rejected"),
    ("multiview", "frames"),
    ("multiview", "pairs"),
    ("curriculum", "plan"),
]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Killed in ingest, in filter and in train_adapter, and then finished."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    goal = ["--stage", "train_adapter"]
    kill_in(folder, "ingest", *goal, done=20)
    assert not any((folder / "stages" / "ingest").glob("*/manifest.json"))
    kill_in(folder, "filter", *goal, done=1)
    kill_in(folder, "train_adapter", *goal, done=6)
    printed = run(folder, *goal)
    assert "train_adapter  starts (interrupted; goes on from there)" in printed
    return folder


@pytest.mark.parametrize(("stage", "dataset"), DATASETS)
def test_the_datasets_are_those_of_an_undisturbed_run(
    killed: Path, finished: tuple[Path, str], stage: str, dataset: str
) -> None:
    (output,) = (killed / "stages" / stage).iterdir()
    same = finished[0] / "stages" / stage / output.name
    found = pq.read_table(output / dataset)
    assert found.equals(pq.read_table(same / dataset))
    assert found.num_rows


def test_the_adapter_is_there(killed: Path) -> None:
    """That training goes on from its checkpoint and ends where an undisturbed one ends: `test_trainer.py`."""
    (output,) = (killed / "stages" / "train_adapter").iterdir()
    assert list((output / "adapter").glob("*.safetensors"))
