"""The trainer against a plain loop on one process, through kills, restarts and damage."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import make_context
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from training_tasks import LinearTask

from model.seeding import seed_of
from stages.config import TrainerConfig
from stages.stage import StageContext, StageError
from stages.trainer import Curves, fit, plot_curves, read_curves
from stages.training_loop import learning_rate

CONFIG = TrainerConfig(precision="fp32", checkpoint_every=10, learning_rate=1e-2, weight_decay=0.1, gradient_clip=0.5)
STEPS = 40
SEED = 3


def plain_loop(task: LinearTask, config: TrainerConfig, steps: int, seed: int) -> tuple[dict[str, Tensor], list[float]]:
    """What `fit` has to compute, on one process: gradients averaged over the workers' shares, clipped, AdamW."""
    torch.manual_seed(seed)
    module = task.module()
    optimizer = torch.optim.AdamW(module.parameters(), betas=(0.9, config.beta2), weight_decay=config.weight_decay)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        for rank in range(config.workers):
            torch.manual_seed(seed_of(seed, step, rank))
            scalars = module(task.batch(step, rank, config.workers))
            (scalars["loss"] / config.workers).backward()
            if rank == 0:
                losses.append(scalars["loss"].item())
        torch.nn.utils.clip_grad_norm_(module.parameters(), config.gradient_clip)
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps, config)
        optimizer.step()
        task.after_step(module, step)
    return module.state_dict(), losses


def fit_linear(task: LinearTask, config: TrainerConfig, context: StageContext) -> tuple[Path, Curves]:
    return fit(task, steps=STEPS, config=config, context=context, name="linear", seed=SEED, batch_setting="a.b")


def assert_same(weights: Path, expected: dict[str, Tensor]) -> None:
    found = load_file(weights / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)


@given(st.integers(1, 500), st.integers(0, 50))
def test_learning_rate_warms_up_and_decays(steps: int, warm_up: int) -> None:
    config = dataclasses.replace(CONFIG, warmup_steps=warm_up)
    rates = [learning_rate(step, steps, config) for step in range(steps)]
    assert all(0 < rate <= config.learning_rate for rate in rates)
    after = rates[max(0, warm_up - 1) :]
    assert after == sorted(after, reverse=True)


def test_curves_leave_out_torn_and_repeated_lines(tmp_path: Path) -> None:
    record = tmp_path / "run.jsonl"
    record.write_text(
        '\n{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "lo\n{"step": 2, "loss": 2.0}\n'
        '{"step": 3, "loss": 1.0, "gain": 0.5}\n{"step": 4, "loss"'
    )
    curves = read_curves(record)
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
    heard = [(e["step"], e["value"]) for e in events if e["event"] == "metric" and e["key"] == "linear/loss"]
    assert heard == curves["loss"]
    assert events[0]["event"] == "progress"
    assert (events[-1]["done"], events[-1]["total"]) == (STEPS, STEPS)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_refused(
    killed_worker: tuple[StageContext, Path, list[Mapping[str, Any]]], tmp_path: Path
) -> None:
    context = make_context(tmp_path)
    shutil.copytree(killed_worker[0].scratch, context.scratch, dirs_exist_ok=True)
    run = context.scratch / "train" / "linear"
    snapshot = json.loads((run / "checkpoint_manager_snapshot.json").read_text())
    damaged = run / snapshot["latest_checkpoint_result"]["checkpoint_dir_name"] / "deepspeed/mp_rank_00_model_states.pt"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    with pytest.raises(StageError, match=r"mp_rank_00_model_states.pt is damaged .* delete .*/linear to train"):
        fit_linear(LinearTask(), CONFIG, context)


@pytest.mark.slow
def test_another_number_of_workers_is_refused(
    killed_worker: tuple[StageContext, Path, list[Mapping[str, Any]]],
) -> None:
    config = dataclasses.replace(CONFIG, workers=1)
    with pytest.raises(StageError, match=r"was written by 2 workers, not 1: use 2, or delete"):
        fit_linear(LinearTask(), config, killed_worker[0])


DRIVER = """
import json, sys
from pathlib import Path
import ray
from helpers import make_context
from stages.config import TrainerConfig
from stages.trainer import fit
from training_tasks import LinearTask
address, folder, config, steps, seed = sys.argv[1:]
ray.init(address=address, logging_level="ERROR")
config = TrainerConfig(**json.loads(config))
task = LinearTask(seconds_a_step=0.1)
context = make_context(Path(folder))
fit(task, steps=int(steps), config=config, context=context, name="linear", seed=int(seed), batch_setting="a.b")
"""


@pytest.mark.slow
def test_a_killed_driver_goes_on_from_the_last_checkpoint(ray_cluster: str, tmp_path: Path) -> None:
    record = tmp_path / "scratch" / "train" / "linear.jsonl"
    config = dataclasses.replace(CONFIG, zero_stage=2)
    arguments = [ray_cluster, str(tmp_path), json.dumps(dataclasses.asdict(config)), str(STEPS), str(SEED)]
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, *arguments])
    try:
        deadline = time.monotonic() + 120
        while not record.exists() or len(read_curves(record).get("loss", [])) < 25:
            assert driver.poll() is None, "the driver ended too early"
            assert time.monotonic() < deadline, "training did not get to step 25 in 120 s"
            time.sleep(0.05)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    context = make_context(tmp_path)
    weights, _ = fit_linear(LinearTask(), config, context)
    assert_same(weights, plain_loop(LinearTask(), config, STEPS, SEED)[0])
    steps = [json.loads(line)["step"] for line in record.read_text().splitlines() if line.endswith("}")]
    assert steps.count(5) == 1, "the second driver began at step 0"


@pytest.mark.slow
def test_too_little_memory_names_the_setting_to_lower(ray_cluster: str, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"^training linear ran out of memory: lower a\.b, or train on a machine"):
        fit_linear(
            LinearTask(starve_at=5), dataclasses.replace(CONFIG, max_failures=0, workers=1), make_context(tmp_path)
        )


@pytest.mark.slow
def test_a_failing_task_ends_in_its_own_sentence(ray_cluster: str, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, max_failures=0)
    with pytest.raises(StageError, match=r"^training linear failed: the picture 'abc' is not a picture$"):
        fit_linear(LinearTask(fail_at=5), config, make_context(tmp_path))
