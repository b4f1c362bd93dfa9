"""The same command continues a killed run, and its datasets are row for row those of an uninterrupted run.

So does a command that changes settings of the operation only.
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
    """The result of a run that was stopped in train_adapter."""

    code: int
    printed: str
    checkpoint: int  # the step of the last checkpoint; 0: there is none


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Stop, Stop]:
    """Killed in ingest and in filter; stopped in train_adapter by SIGTERM, and by Ctrl-C when MLflow is gone."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    for stage, done in (("ingest", 20), ("filter", 1)):
        started = StartedRun(folder, *GOAL)
        started.wait_for(stage, done)
        started.end(signal.SIGKILL)
        assert not any((folder / "stages" / stage).glob("*/manifest.json"))
    started = StartedRun(folder, *GOAL)
    started.wait_for("train_adapter", 1)
    first = Stop(*started.end(signal.SIGTERM), latest_checkpoint(folder))
    started = StartedRun(folder, *GOAL, *OTHER_OPERATION)
    started.wait_for("train_adapter", 0)
    (folder / "mlflow" / "mlflow.db").write_text("gone")
    started.wait_for("train_adapter", first.checkpoint + 1)
    second = Stop(*started.end(signal.SIGINT), latest_checkpoint(folder))
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
def test_the_datasets_are_those_of_an_uninterrupted_run(
    killed: Path, finished: tuple[Path, str], stage: str, dataset: str
) -> None:
    (output,) = (killed / "stages" / stage).iterdir()
    same = finished[0] / "stages" / stage / output.name
    found = pq.read_table(output / dataset)
    assert found.equals(pq.read_table(same / dataset))
    assert found.num_rows


def test_the_adapter_is_trained(killed: Path) -> None:
    """That a resumed training has the same result is tested in `test_trainer.py`."""
    (output,) = (killed / "stages" / "train_adapter").iterdir()
    assert list((output / "adapter").glob("*.safetensors"))


def test_a_stopped_training_writes_a_checkpoint_first(stopped: tuple[Path, Stop, Stop]) -> None:
    for stop in stopped[1:]:
        assert stop.code == 130
        assert stop.printed.endswith("Stopped. Finished stages are kept; the same command continues from here.\n")
        found = re.search(
            "Stage train_adapter was stopped: .* after step ([0-9]+) of 24; the same command", stop.printed
        )
        assert found, stop.printed
        assert stop.checkpoint == int(found[1])


def test_training_continues_without_mlflow(stopped: tuple[Path, Stop, Stop]) -> None:
    _, before, after = stopped
    assert "mlflow" not in before.printed.lower()
    (line,) = [line for line in after.printed.splitlines() if "mlflow" in line.lower()]
    assert "warning: MLflow does not record this run (" in line
    assert after.checkpoint > before.checkpoint
