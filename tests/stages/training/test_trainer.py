"""The trainer against a plain loop on one process, through kills, restarts and damage."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import ray
import torch
from ray.exceptions import OutOfMemoryError
from ray.train.torch import TorchTrainer
from safetensors.torch import load_file
from torch import Tensor

from model.seeding import seed_of
from stages.contract import StageContext, StageError
from stages.local_copies import local_copy
from stages.training.config import TrainerConfig
from stages.training.engine import learning_rate
from stages.training.trainer import Curves, _error_message, fit, plot_curves, read_curves
from tests.support.contexts import make_context
from tests.support.training_tasks import LinearTask

CONFIG = TrainerConfig(precision="fp32", checkpoint_every=10, learning_rate=1e-2, weight_decay=0.1, gradient_clip=0.5)
STEPS = 40
SEED = 3
METRICS_FILE = Path("scratch/train/linear.jsonl")


def plain_loop(
    task: LinearTask, config: TrainerConfig, steps: int, seed: int, skipped: Sequence[int] = ()
) -> tuple[dict[str, Tensor], list[float]]:
    """What `fit` has to compute, on one process: gradients averaged over the workers' shares, clipped, AdamW."""
    torch.manual_seed(seed)
    module = task.module()
    optimizer = torch.optim.AdamW(module.parameters(), betas=(0.9, config.beta2), weight_decay=config.weight_decay)
    losses = []
    for step in sorted(set(range(steps)) - set(skipped)):
        optimizer.zero_grad()
        losses.append(0.0)
        for rank in range(config.workers):
            torch.manual_seed(seed_of(seed, step, rank))
            scalars = module(task.batch(step, rank, config.workers))
            (scalars["loss"] / config.workers).backward()
            losses[-1] += scalars["loss"].item() / config.workers
        torch.nn.utils.clip_grad_norm_(module.parameters(), config.gradient_clip)
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps, config)
        optimizer.step()
        task.after_step(module, step)
    return module.state_dict(), losses


def fit_linear(task: LinearTask, config: TrainerConfig, context: StageContext) -> tuple[Path, Curves]:
    weights, curves = fit(
        task,
        steps=STEPS,
        config=config,
        context=context,
        name="linear",
        seed=SEED,
        section="a.trainer",
        batch_size=config.workers,  # the task makes a batch for each worker
        batch_setting="a.b",
    )
    return local_copy(weights), curves


def assert_same(weights: Path, expected: dict[str, Tensor]) -> None:
    found = load_file(weights / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)


def test_curves_leave_out_torn_and_repeated_lines(tmp_path: Path) -> None:
    file = tmp_path / "run.jsonl"
    file.write_text(
        '\n{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "lo\n{"step": 2, "loss": 2.0}\n'
        '{"step": 3, "loss": 1.0, "gain": 0.5}\n{"step": 4, "loss"'
    )
    curves = read_curves(file)
    assert curves == {"loss": [(1, 3.0), (2, 2.0), (3, 1.0)], "gain": [(3, 0.5)]}
    plot_curves(curves, ["loss", "gain"], "a run", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def killed_worker(
    ray_cluster: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[StageContext, Path, list[Mapping[str, Any]]]:
    """A ZeRO-1 run whose second worker is ended by SIGKILL before step 25 and replaced."""
    events: list[Mapping[str, Any]] = []
    folder = tmp_path_factory.mktemp("killed_worker")
    context = make_context(folder, events=events)
    task = LinearTask(kill_at=25, marker=folder / "marker")
    weights, _ = fit_linear(task, CONFIG, context)
    assert (folder / "marker").exists()
    return context, weights, events


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(killed_worker: tuple[StageContext, Path, list[Mapping[str, Any]]]) -> None:
    context, weights, events = killed_worker
    expected, losses = plain_loop(LinearTask(), CONFIG, STEPS, SEED)
    assert_same(weights, expected)
    curves = read_curves(context.scratch / "train" / "linear.jsonl")
    assert [step for step, _ in curves["loss"]] == list(range(1, STEPS + 1))
    torch.testing.assert_close([value for _, value in curves["loss"]], losses, rtol=1e-4, atol=1e-5)
    reported = [(e["step"], e["value"]) for e in events if e["event"] == "metric" and e["key"] == "linear/loss"]
    assert reported == curves["loss"]
    (warning,) = [event["text"] for event in events if event["event"] == "warning"]
    assert re.fullmatch(r"training linear failed: .*; it resumes from its last checkpoint", warning)
    assert events[0]["event"] == "progress"
    assert (events[-1]["done"], events[-1]["total"]) == (STEPS, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "before", "after"), [(1, 2, 1), pytest.param(3, 1, 2, marks=pytest.mark.nightly)])
def test_another_number_of_workers_can_resume(
    ray_cluster: str, tmp_path: Path, stage: Literal[1, 3], before: int, after: int
) -> None:
    """The task's batch must not depend on how many share it: without noise."""
    config = dataclasses.replace(CONFIG, workers=before, zero_stage=stage, max_failures=0)
    context = make_context(tmp_path)
    with pytest.raises(StageError, match="is not a picture"):
        fit_linear(LinearTask(noise=0, fail_at=25), config, context)
    weights, _ = fit_linear(LinearTask(noise=0), dataclasses.replace(config, workers=after), context)
    assert_same(weights, plain_loop(LinearTask(noise=0), config, STEPS, SEED)[0])
    assert steps_of(tmp_path / METRICS_FILE).count(20) == 1, "the second training did not begin at step 20"


@pytest.mark.slow
def test_a_step_that_is_not_finite_on_one_worker_is_skipped_by_all(ray_cluster: str, tmp_path: Path) -> None:
    """The losses of the other steps are those of weights that no worker has changed in the skipped ones."""
    config = dataclasses.replace(CONFIG, zero_stage=2)
    skipped = (7, 8, 20)
    weights, curves = fit_linear(LinearTask(spoil=(7, 8), explode=(20,)), config, make_context(tmp_path))
    found = load_file(weights / "model.safetensors")
    assert all(torch.isfinite(weight).all() for weight in found.values())
    assert found["seen"] == sum(range(STEPS)) - sum(skipped)
    assert curves["skipped"][-1] == (STEPS, 3)
    expected, losses = plain_loop(LinearTask(), config, STEPS, SEED, skipped)
    assert_same(weights, expected)
    torch.testing.assert_close([value for _, value in curves["loss"]], losses, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_training_that_stays_not_finite_names_the_step_and_the_samples(ray_cluster: str, tmp_path: Path) -> None:
    message = r"^training linear was stopped at step 9 \(numbers of seed 9\), the 5th in a row whose loss has exploded"
    with pytest.raises(StageError, match=message):
        fit_linear(LinearTask(spoil=tuple(range(5, 40))), CONFIG, make_context(tmp_path))


@pytest.mark.slow
def test_more_workers_than_cpus_are_refused_at_once(ray_cluster: str, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, workers=10_000)
    available = int(ray.cluster_resources()["CPU"])
    with pytest.raises(StageError, match=f"^a.trainer.workers=10000 needs 10000 CPUs, but Ray has {available}: set "):
        fit_linear(LinearTask(), config, make_context(tmp_path))
    config = dataclasses.replace(CONFIG, use_gpu=True, workers=3000)
    with pytest.raises(StageError, match=r"^a.trainer.workers=3000 needs 3000 GPUs, but Ray has \d+: set "):
        fit_linear(LinearTask(), config, make_context(tmp_path))


DRIVER = """
import json, sys
from pathlib import Path
import ray
from tests.support.contexts import make_context
from stages.training.trainer import fit
from tests.support.training_tasks import LinearTask
from stages.storage import local_copy
from stages.training.config import TrainerConfig
address, folder, config, steps, seed = sys.argv[1:]
ray.init(address=address, logging_level="ERROR")
config = TrainerConfig(**json.loads(config))
task = LinearTask(seconds_a_step=0.1)
context = make_context(Path(folder))
own = {"section": "a.trainer", "batch_size": config.workers, "batch_setting": "a.b"}
fit(task, steps=int(steps), config=config, context=context, name="linear", seed=int(seed), **own)
"""


def driver_at_step(address: str, folder: Path, config: TrainerConfig, step: int) -> subprocess.Popen[str]:
    """A training in its own process that has reached `step`."""
    arguments = [address, str(folder), json.dumps(dataclasses.asdict(config)), str(STEPS), str(SEED)]
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, *arguments], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(read_curves(folder / METRICS_FILE).get("loss", [])) < step:
        if driver.poll() is not None or time.monotonic() > deadline:
            driver.kill()
            pytest.fail(f"training did not reach step {step} in 120 s: {driver.communicate()[1]}")
        time.sleep(0.05)
    return driver


def steps_of(file: Path) -> list[int]:
    return [json.loads(line)["step"] for line in file.read_text().splitlines() if line.endswith("}")]


@pytest.mark.nightly
@pytest.mark.slow
def test_a_killed_driver_resumes_from_the_last_checkpoint(ray_cluster: str, tmp_path: Path) -> None:
    """For one that is stopped see `tests/end_to_end/test_runs.py`."""
    config = dataclasses.replace(CONFIG, zero_stage=2)
    driver = driver_at_step(ray_cluster, tmp_path, config, 25)
    driver.kill()
    driver.communicate()
    weights, _ = fit_linear(LinearTask(), config, make_context(tmp_path))
    assert_same(weights, plain_loop(LinearTask(), config, STEPS, SEED)[0])
    assert steps_of(tmp_path / METRICS_FILE).count(20) == 1, "the second driver did not begin at a checkpoint"


@pytest.mark.slow
def test_too_little_memory_names_the_setting_to_lower(ray_cluster: str, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"^training linear ran out of memory: lower a\.b, or train on a machine"):
        fit_linear(
            LinearTask(starve_at=5), dataclasses.replace(CONFIG, max_failures=0, workers=1), make_context(tmp_path)
        )


@pytest.mark.slow
def test_a_controller_that_is_killed_for_its_memory_names_the_setting_too(
    ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray may choose it instead of the worker, which it cannot be made to here."""

    def fit(trainer: TorchTrainer) -> None:
        raise OutOfMemoryError("3 worker(s) were killed due to the node running low on memory.")

    monkeypatch.setattr(TorchTrainer, "fit", fit)
    with pytest.raises(StageError, match=r"^training linear ran out of memory: lower a\.b, or train on a machine"):
        fit_linear(LinearTask(), dataclasses.replace(CONFIG, max_failures=0, workers=1), make_context(tmp_path))


@pytest.mark.slow
def test_a_full_disk_ends_a_training_in_one_sentence(ray_cluster: str, tmp_path: Path) -> None:
    """On writing the weights; for a checkpoint see `test_loop.py`."""
    events: list[Mapping[str, Any]] = []
    file = tmp_path / "scratch/train/linear-weights/config.json"
    file.parent.mkdir(parents=True)
    file.symlink_to("/dev/full")  # every write to it fails as on a full disk
    with pytest.raises(StageError, match=r"^training linear failed because its disk is full: free some space, and run"):
        fit_linear(LinearTask(), dataclasses.replace(CONFIG, workers=1), make_context(tmp_path, events=events))
    assert "warning" not in {event["event"] for event in events}


@pytest.mark.slow
def test_a_failing_task_ends_in_its_own_sentence(ray_cluster: str, tmp_path: Path) -> None:
    """At once, because it would fail again, also when the other worker waits for the failed one."""
    config = dataclasses.replace(CONFIG, max_failures=3)
    events: list[Mapping[str, Any]] = []
    with pytest.raises(StageError, match=r"^training linear failed: the picture 'abc' is not a picture$"):
        fit_linear(LinearTask(fail_at=5, failing_ranks=(1,)), config, make_context(tmp_path, events=events))
    assert "warning" not in {event["event"] for event in events}
    assert steps_of(tmp_path / METRICS_FILE) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("causes", "sentence"),
    [
        (
            ["RuntimeError: [gloo/transport/tcp/pair.cc:553] Connection closed by peer"],
            "a worker or its machine was lost",
        ),
        (["NCCL error: remote process exited", "gloo: timed out"], "a worker or its machine was lost"),
        (["the actor's node was terminated unexpectedly: missing heartbeats"], "the machine of a worker was lost"),
        (["gloo: closed by peer", "the actor's node was terminated expectedly"], "the machine of a worker was lost"),
        (["gloo: closed by peer", "the batch is empty"], "RuntimeError: the batch is empty"),
    ],
)
def test_lost_workers_are_one_sentence(causes: list[str], sentence: str) -> None:
    error = RuntimeError("workers failed")
    error.worker_failures = {rank: RuntimeError(cause) for rank, cause in enumerate(causes)}  # type: ignore[attr-defined]
    assert sentence in _error_message("adapter", error, "curriculum.batch_size")
