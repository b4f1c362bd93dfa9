"""The one engine for everything that is trained: Ray Train workers with DeepSpeed, checkpoints, resume, live curves.

A stage calls `fit`. The loop itself is in `stages/training_loop.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model.training import TrainingTask
from stages.config import TrainerConfig
from stages.stage import Reporter, StageContext, StageError
from stages.training_loop import TrainingJob, check_files, read_state, train

#: Points of a curve by its name: (step, value).
Curves = dict[str, list[tuple[int, float]]]

_POLL_SECONDS = 0.5


def fit(
    task: TrainingTask,
    *,
    steps: int,
    config: TrainerConfig,
    context: StageContext,
    name: str,
    seed: int,
    batch_setting: str,
) -> tuple[Path, Curves]:
    """Train `task` for `steps` steps of AdamW and return the folder with its exported weights and its curves.

    While it trains, progress and curves go to `context.report` (keys `name/loss`, ...). Checkpoints lie in
    `context.scratch`: a later call with the same scratch, name and arguments goes on from the last one. A worker that
    dies is replaced `config.max_failures` times. `batch_setting` is the configuration's key to lower when a batch does
    not fit into memory.

    Raises:
        StageError: The last checkpoint is damaged or of another number of workers, a worker failed too often, or
            memory is too little for a batch.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    storage = (context.scratch / "train").resolve()
    storage.mkdir(parents=True, exist_ok=True)
    _check_resume(storage / name, config.workers, context.report)
    job = TrainingJob(
        task=task,
        steps=steps,
        config=config,
        seed=seed,
        cores=context.config.run.cpus or os.cpu_count() or 1,
        record=storage / f"{name}.jsonl",
        weights=storage / f"{name}-weights",
    )
    trainer = TorchTrainer(
        train,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=config.use_gpu),
        torch_config=TorchConfig(backend="nccl" if config.use_gpu else "gloo"),
        run_config=RunConfig(
            name=name,
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    context.report.progress(0, steps, f"{name}: starting {config.workers} workers")
    with _following(job.record, steps, name, context.report):
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise StageError(_sentence(name, error, batch_setting)) from error
    return job.weights, read_curves(job.record)


def _check_resume(run: Path, workers: int, report: Reporter) -> None:
    """Look at the checkpoint that Ray Train would go on from, before it starts any worker."""
    from ray.train import Result

    snapshot = run / "checkpoint_manager_snapshot.json"
    if not snapshot.is_file():
        return
    try:
        json.loads(snapshot.read_text())
    except json.JSONDecodeError:  # Ray does not write it atomically; a kill at that moment leaves half of it
        report.warning(f"{snapshot} was cut off by a kill; training starts from its beginning.")
        shutil.rmtree(run)
        return
    checkpoint = Result.from_path(str(run)).checkpoint
    if checkpoint is None:
        return
    remedy = f"delete {run} to train from the beginning"
    try:
        check_files(Path(checkpoint.path))
    except ValueError as error:
        raise StageError(f"{error}; {remedy}.") from error
    world = read_state(Path(checkpoint.path))["world"]
    if world != workers:
        raise StageError(f"{checkpoint.path} was written by {world} workers, not {workers}: use {world}, or {remedy}.")


def _sentence(name: str, error: Exception, batch_setting: str) -> str:
    """What went wrong in the workers, as one sentence. A dead worker takes the others' connections with it."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    if any(_lacks_memory(failure) for failure in [*failures.values(), error]):
        return f"training {name} ran out of memory: lower {batch_setting}, or train on a machine with more memory."
    causes = [_last_line(failure) for failure in failures.values()] or [_last_line(error)]
    own = [cause for cause in causes if "gloo" not in cause.lower() and "nccl" not in cause.lower()]
    return f"training {name} failed: {(own or causes)[0]}"


def _lacks_memory(error: Exception) -> bool:
    """Whether an allocation failed (torch on CPU or GPU, NumPy), or Ray ended a worker for want of memory."""
    text = f"{type(error).__name__} {error}"
    signs = ("can't allocate memory", "OutOfMemoryError", "out of memory", "_ArrayMemoryError", "running low on memory")
    return any(sign in text for sign in signs)


def _last_line(error: Exception) -> str:
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return kind + (lines[-1] if lines else "no message")


def absolute_location(location: str) -> str:
    """The place of a backbone for Ray's workers, which have another working directory; a hub id stays as it is."""
    return str(Path(location).resolve()) if Path(location).is_dir() else location


# --- progress and curves -------------------------------------------------------------------------------------------


@contextmanager
def _following(record: Path, steps: int, name: str, report: Reporter) -> Iterator[None]:
    """Pass on to `report`, in a thread, what rank 0 appends to `record`, from its first line on."""
    ended = threading.Event()

    def follow() -> None:
        last = 0
        while True:
            over = ended.wait(_POLL_SECONDS)
            for line in _records(record, after=last):
                last = line["step"]
                _emit(line, steps, name, report)
            if over:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _emit(line: dict[str, Any], steps: int, name: str, report: Reporter) -> None:
    step = line["step"]
    for key, value in line.items():
        if key != "step":
            report.metric(f"{name}/{key}", value, step)
    report.progress(step, steps, f"{name}: loss {line['loss']:.4f}, {line['samples_per_second']:.0f} samples/s")


def _records(record: Path, after: int = 0) -> Iterator[dict[str, Any]]:
    """The lines of a run's record with rising steps; what a resumed run wrote a second time is left out."""
    if not record.is_file():
        return
    for text in record.read_text().splitlines(keepends=True):
        if not text.endswith("}\n"):  # blank, cut off by a kill, or being written
            continue
        line = json.loads(text)
        if line["step"] > after:
            after = line["step"]
            yield line


def read_curves(record: Path) -> Curves:
    """All curves of a run's record."""
    curves: Curves = {}
    for line in _records(record):
        for key, value in line.items():
            if key != "step":
                curves.setdefault(key, []).append((line["step"], float(value)))
    return curves


def plot_curves(curves: Curves, keys: list[str], title: str, file: Path) -> None:
    """Draw the curves `keys`, one panel each, into a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(keys), 3.2), layout="constrained")
    for axes, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        steps, values = zip(*curves.get(key, [(0, float("nan"))]), strict=True)
        axes.plot(steps, values, linewidth=1)
        axes.set(xlabel="step", title=key)
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(file, dpi=100)
