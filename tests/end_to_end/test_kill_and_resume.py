"""A run that is killed goes on with the same command or with another operation. Its datasets are those of an
undisturbed run, row for row.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stages.training.checkpoints import CheckpointFolder
from tests.support.tiny_run import StartedRun, run

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

GOAL = ["--stage", "train_adapter"]
#: They change how the adapter is trained, not what is trained: the training goes on from its checkpoint.
OTHER_OPERATION = [
    "--set=train_adapter.trainer.workers=1",
    "--set=train_adapter.trainer.zero_stage=2",
    "--set=train_adapter.trainer.checkpoint_every=3",
    "--set=train_adapter.data_workers=0",
    "--set=train_adapter.sample_every=20",
    "--set=backbone.dtype=bfloat16",
    "--set=ingest.threads=2",
]


@dataclass(frozen=True)
class Stop:
    """What a run has left that was told to stop in train_adapter."""

    code: int
    printed: str
    checkpoint: int  # its step; 0: there is none


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Stop, Stop]:
    """Killed in ingest and in filter; stopped in train_adapter by SIGTERM, and by Ctrl-C when MLflow is gone."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    for stage, done in (("ingest", 20), ("filter", 1)):
        begun = StartedRun(folder, *GOAL)
        begun.wait_for(stage, done)
        begun.end(signal.SIGKILL)
        assert not any((folder / "stages" / stage).glob("*/manifest.json"))
    begun = StartedRun(folder, *GOAL)
    begun.wait_for("train_adapter", 1)
    first = Stop(*begun.end(signal.SIGTERM), latest_checkpoint(folder))
    begun = StartedRun(folder, *GOAL, *OTHER_OPERATION)
    begun.wait_for("train_adapter", 0)
    (folder / "mlflow" / "mlflow.db").write_text("gone")
    begun.wait_for("train_adapter", first.checkpoint + 1)
    second = Stop(*begun.end(signal.SIGINT), latest_checkpoint(folder))
    (folder / "mlflow" / "mlflow.db").unlink()
    return folder, first, second


def latest_checkpoint(folder: Path) -> int:
    (training,) = folder.glob("stages/train_adapter/*.partial/scratch/train")
    checkpoint = CheckpointFolder(training / "adapter-checkpoints").latest()
    return checkpoint.step if checkpoint else 0


@pytest.fixture(scope="module")
def killed(stopped: tuple[Path, Stop, Stop]) -> Path:
    """The same run, finished."""
    printed = run(stopped[0], *GOAL)
    assert "train_adapter  starts (interrupted; goes on from there)" in printed
    return stopped[0]


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


def test_a_run_that_is_stopped_has_training_write_a_checkpoint_first(stopped: tuple[Path, Stop, Stop]) -> None:
    for stop in stopped[1:]:
        assert stop.code == 130
        assert stop.printed.endswith("Stopped. What is finished is kept; the same command goes on from here.\n")
        found = re.search(
            "Stage train_adapter was stopped: .* after step ([0-9]+) of 24; the same command", stop.printed
        )
        assert found, stop.printed
        assert stop.checkpoint == int(found[1])


def test_training_goes_on_without_mlflow(stopped: tuple[Path, Stop, Stop]) -> None:
    _, before, after = stopped
    assert "mlflow" not in before.printed.lower()
    (line,) = [line for line in after.printed.splitlines() if "mlflow" in line.lower()]
    assert "warning: MLflow does not record this run (" in line
    assert after.checkpoint > before.checkpoint
