"""The loop in one process, without Ray: resuming, averaging, skipped steps, metrics."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from model.training.task import Feed, Prepared
from stages.contract import StageError
from stages.training.config import TrainerConfig
from stages.training.job import TrainingJob
from stages.training.loop import prepare_here, run_worker
from stages.training.trainer import check_resume, read_curves
from tests.support.contexts import on_disk
from tests.support.training_tasks import FedLinearTask, LinearModule, LinearTask

pytestmark = pytest.mark.slow

CONFIG = TrainerConfig(
    workers=1, learning_rate=1e-2, warmup_steps=5, weight_decay=0.1, gradient_clip=0.5, checkpoint_every=4
)
STEPS = 12


def make_job(folder: Path, task: LinearTask | None = None, **changes: Any) -> TrainingJob:
    config = dataclasses.replace(CONFIG, **changes)
    folder.mkdir(parents=True, exist_ok=True)
    return TrainingJob(
        task=task or LinearTask(), steps=STEPS, config=config, seed=3, cores=1, folder=folder, name="linear"
    )


def trained(job: TrainingJob) -> dict[str, Tensor]:
    run_worker(job, torch.device("cpu"))
    assert not job.ending.exists()
    return load_file(job.weights / "model.safetensors")


def stopped_before_step(job: TrainingJob, step: int) -> TrainingJob:
    """The job after a request to stop; ready to resume."""
    task = dataclasses.replace(job.task, stop_at=step, marker=on_disk(job.stop_request))  # type: ignore[type-var]
    run_worker(dataclasses.replace(job, task=task), torch.device("cpu"))
    assert (
        job.ending.read_text() == f"training linear was stopped after step {step + 1} of 12; the same command goes on."
    )
    job.ending.unlink()
    job.stop_request.unlink()
    return job


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.9}, {"accumulation": 2}, {"optimizer": "muon"}], ids=str)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_stopped_training_resumes_exactly(
    process_group: None, tmp_path: Path, stage: int, changes: dict[str, Any]
) -> None:
    if (stage == 3 and "ema_decay" in changes) or (stage > 0 and "optimizer" in changes):
        pytest.skip("refused")
    uninterrupted = trained(make_job(tmp_path / "a", zero_stage=stage, **changes))
    job = stopped_before_step(make_job(tmp_path / "b", zero_stage=stage, **changes), 6)
    assert job.checkpoints.latest() == job.checkpoints.at(7)
    resumed = trained(job)
    assert all(torch.equal(resumed[name], weight) for name, weight in uninterrupted.items())
    curves = [read_curves(tmp_path / folder / "linear.jsonl") for folder in "ab"]
    assert curves[0]["loss"] == curves[1]["loss"]
    assert [step for step, _ in curves[1]["loss"]] == list(range(1, STEPS + 1))


@pytest.mark.parametrize(("before", "after"), [(0, 3), (3, 1), (2, 0), (1, 2)])
def test_another_zero_stage_can_resume(process_group: None, tmp_path: Path, before: int, after: int) -> None:
    expected = trained(make_job(tmp_path / "a", zero_stage=before))
    stopped_before_step(make_job(tmp_path / "b", zero_stage=before), 6)
    for name, weight in trained(make_job(tmp_path / "b", zero_stage=after)).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-6)


def test_fp16_resumes_with_its_loss_scale(process_group: None, tmp_path: Path) -> None:
    expected = trained(make_job(tmp_path / "a", precision="fp16", use_gpu=True))
    job = stopped_before_step(make_job(tmp_path / "b", precision="fp16", use_gpu=True), 6)
    latest = job.checkpoints.latest()
    assert latest is not None
    state = latest.state()
    assert state["loss_scale"] == {"scale": 2.0 ** (16 - state["skipped"]), "finite_steps": state["updates"]}
    assert all(torch.equal(weight, expected[name]) for name, weight in trained(job).items())


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_average_is_the_naive_recursion(process_group: None, tmp_path: Path, stage: int) -> None:
    """The weights after n steps are those that a training with a constant rate exports after n steps."""
    config: dict[str, Any] = {"schedule": "constant", "zero_stage": stage}
    torch.manual_seed(3)
    mean = {name: weight.detach() for name, weight in LinearModule().named_parameters()}
    for steps in range(1, 5):
        job = dataclasses.replace(make_job(tmp_path / str(steps), **config), steps=steps)
        now = trained(job)
        mean = {name: 0.75 * old + 0.25 * now[name] for name, old in mean.items()}
    job = dataclasses.replace(make_job(tmp_path / "average", **config, ema_decay=0.75), steps=4)
    exported = trained(job)
    for name, expected in mean.items():
        torch.testing.assert_close(exported[name], expected, rtol=1e-5, atol=1e-6)
    assert exported["seen"] == 0 + 1 + 2 + 3, "buffers are not averaged"


def test_a_step_without_a_finite_gradient_is_skipped_and_counted(process_group: None, tmp_path: Path) -> None:
    job = make_job(tmp_path, LinearTask(spoil=(2, 7), bad_rank=0))
    weights = trained(job)
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    assert weights["seen"] == sum(range(STEPS)) - 2 - 7
    curves = read_curves(job.metrics_file)
    assert [value for _, value in curves["skipped"]] == [0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2]
    assert [step for step, _ in curves["loss"]] == [1, 2, 4, 5, 6, 7, 9, 10, 11, 12]


def test_a_loss_that_explodes_is_skipped_like_one_that_is_not_finite(process_group: None, tmp_path: Path) -> None:
    """Also after a restart, which knows the first losses from the checkpoint."""
    weights = []
    for number, task in enumerate((LinearTask(spoil=(10, 11), bad_rank=0), LinearTask(explode=(10, 11), bad_rank=0))):
        job = stopped_before_step(make_job(tmp_path / str(number), task), 9)
        weights.append(trained(job))
        assert read_curves(job.metrics_file)["skipped"][-1] == (STEPS, 2)
    assert all(torch.equal(weights[0][name], weight) for name, weight in weights[1].items())


def test_after_a_full_disk_a_training_resumes(process_group: None, tmp_path: Path) -> None:
    uninterrupted = trained(make_job(tmp_path / "a"))
    job = make_job(tmp_path / "b")
    file = job.checkpoints.at(8).folder / "training.json"
    full = dataclasses.replace(job, task=LinearTask(fill_at=6, marker=on_disk(file), seconds_a_step=0.1))
    with pytest.raises(StageError, match=r"^checkpoint .*/step-00000008 cannot be written \(its disk is full\): free "):
        run_worker(full, torch.device("cpu"))
    assert read_curves(job.metrics_file)["loss"][-1][0] < 12, "it goes no further than the next steps"
    assert job.checkpoints.latest() == job.checkpoints.at(4)
    resumed = trained(job)
    assert all(torch.equal(resumed[name], weight) for name, weight in uninterrupted.items())


def test_a_training_that_stays_not_finite_is_stopped(process_group: None, tmp_path: Path) -> None:
    job = make_job(tmp_path, LinearTask(spoil=(1, 4, 5, 6, 7, 8), bad_rank=0))
    run_worker(job, torch.device("cpu"))
    assert job.ending.read_text() == (
        "training linear was stopped at step 8 (numbers of seed 8), the 5th in a row whose loss has exploded or whose "
        "gradient is not finite: check these samples, or lower the trainer's learning_rate."
    )
    assert not job.weights.exists()


def test_all_metrics_are_logged(process_group: None, tmp_path: Path) -> None:
    job = make_job(tmp_path, LinearTask(seconds_a_step=0.1))
    trained(job)
    curves = read_curves(job.metrics_file)
    assert curves.keys() == {
        *("loss", "twice", "grad_norm", "learning_rate"),
        *("samples_per_second", "data_wait", "peak_memory_gib", "skipped"),
    }
    assert [value for _, value in curves["learning_rate"]][:5] == pytest.approx(
        [0.002, 0.004, 0.006, 0.008, 0.01], rel=0.4
    )
    assert all(0 < value <= 1 for _, value in curves["data_wait"])
    assert max(value for _, value in curves["data_wait"]) > 0.3, "a step waits 0.1 s and takes little else"
    assert all(value > 0 for key in ("grad_norm", "peak_memory_gib") for _, value in curves[key])
    left = [json.loads(line)["seconds_left"] for line in job.metrics_file.read_text().splitlines() if line]
    assert left[0] > 11 * 0.1
    assert left[-1] == 0


def test_a_fed_training_is_the_same_and_requests_the_remaining_steps(process_group: None, tmp_path: Path) -> None:
    asked, closed = [], []

    def feeder(feed: Feed, steps: range, rank: int, world: int) -> Generator[Prepared]:
        asked.append(steps)
        with closing(prepare_here(feed, steps, rank, world)) as stream:
            try:
                yield from stream
            finally:
                closed.append(steps)

    expected = trained(make_job(tmp_path / "a"))
    job = make_job(tmp_path / "b", FedLinearTask())
    stopping = dataclasses.replace(job, task=FedLinearTask(stop_at=6, marker=on_disk(job.stop_request)))
    run_worker(stopping, torch.device("cpu"), feeder)
    assert closed == [range(12)]
    job.stop_request.unlink()
    run_worker(job, torch.device("cpu"), feeder)
    assert asked == closed == [range(12), range(7, 12)]
    found = load_file(job.weights / "model.safetensors")
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_only_the_feed_counts_as_waiting(process_group: None, tmp_path: Path) -> None:
    shares: list[float] = []
    for task in (FedLinearTask(seconds_a_step=0.06), FedLinearTask(seconds_to_encode=0.06)):
        job = make_job(tmp_path / str(len(shares)), task)
        trained(job)
        shares.append(sorted(value for _, value in read_curves(job.metrics_file)["data_wait"])[STEPS // 2])
    assert shares[0] > 0.3
    assert shares[1] < 0.1


def test_the_last_checkpoints_and_the_best_are_kept(process_group: None, tmp_path: Path) -> None:
    job = make_job(tmp_path, checkpoint_every=1, keep_checkpoints=2)
    trained(job)
    losses = [value for _, value in read_curves(job.metrics_file)["loss"]]
    losses.pop()  # the last step has no checkpoint
    best = losses.index(min(losses)) + 1
    assert [checkpoint.step for checkpoint in job.checkpoints.complete()] == sorted({best, 10, 11})


@pytest.mark.parametrize(
    ("task", "changes", "difference"),
    [
        (LinearTask(), {"learning_rate": 0.02}, "learning_rate is 0.01 there and 0.02 now"),
        (LinearTask(), {"schedule": "constant"}, "schedule is 'cosine' there and 'constant' now"),
        (LinearTask(), {"precision": "bf16"}, "precision is 'fp32' there and 'bf16' now"),
        (LinearTask(), {"ema_decay": 0.9}, "ema_decay is None there and 0.9 now"),
        (LinearTask(batch_size=8), {}, "task.batch_size is 16 there and 8 now"),
    ],
    ids=lambda value: "",
)
def test_a_checkpoint_of_another_configuration_is_refused(
    process_group: None, stopped: Path, task: LinearTask, changes: dict[str, Any], difference: str
) -> None:
    with pytest.raises(
        StageError, match=r"step-00000007 is of another configuration \(" + difference + r"\): set it back"
    ):
        check_resume(make_job(stopped, task, **changes))
    check_resume(make_job(stopped, workers=7, zero_stage=3, accumulation=2, checkpoint_every=3))


def test_a_damaged_checkpoint_is_refused(process_group: None, tmp_path: Path) -> None:
    job = make_job(tmp_path)
    stopped_before_step(job, 6)
    share = job.checkpoints.at(7).folder / "rank-0-of-1.safetensors"
    share.write_bytes(share.read_bytes()[:-1] + b"?")
    with pytest.raises(
        StageError, match=r"rank-0-of-1.safetensors is damaged .*; delete .*/linear-checkpoints to train"
    ):
        check_resume(job)


@pytest.fixture(scope="module")
def stopped(process_group: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that was stopped after its step 7."""
    folder = tmp_path_factory.mktemp("stopped")
    stopped_before_step(make_job(folder), 6)
    return folder
