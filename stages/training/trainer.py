"""The trainer of every stage: Ray Train workers with DeepSpeed, checkpoints, resume, live metrics.

A stage calls `fit`. The training loop is in `stages/training/loop.py`.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from model.errors import ModelError
from model.training.task import SamplingTask, TrainingTask
from stages.contract import Reporter, StageContext, StageError
from stages.ray_tools.placement import node_selector
from stages.storage import StorePath, absolute, is_remote, remove, write_whole
from stages.storage_errors import storage_error
from stages.training.checkpoints import difference
from stages.training.config import TrainerConfig
from stages.training.elasticity import room_for_workers
from stages.training.job import TrainingJob
from stages.training.loop import train
from stages.training.metrics import BOOKKEEPING, progress_note
from stages.training.record import STORE_SECONDS, RecordReader
from stages.training.worker_environment import worker_environment

#: The points (step, value) of each metric.
Curves = dict[str, list[tuple[int, float]]]

_POLL_SECONDS = 0.5
#: Ray says it of a worker whose machine no longer answers.
_LOST_NODE = "node was terminated"
#: The project's own errors about configuration and data: sentences for the user; another attempt would fail again.
_USER_ERRORS = (ModelError, StageError)


def fit(
    task: TrainingTask,
    *,
    steps: int,
    config: TrainerConfig,
    context: StageContext,
    name: str,
    seed: int,
    section: str,
    batch_size: int,
    batch_setting: str,
    data_workers: int = 0,
    backbone_setting: str = "backbone.weights",
) -> tuple[StorePath, Curves]:
    """Train `task` for `steps` steps and return the folder with its exported weights and its metrics.

    Progress and metrics go to `context.report` during the training (keys `name/loss`, ...). Checkpoints are in
    `context.scratch`: a later call with the same scratch, name and arguments resumes from the last one, even with
    another number of workers. When a worker dies, all resume from the last checkpoint, at most `config.max_failures`
    times without a new checkpoint in between; on a cluster with fewer nodes than before perhaps with fewer workers (see
    `stages.training.elasticity`).
    SIGTERM ends the training with a checkpoint. `section` is the configuration's with `config`, `batch_setting` the key
    to lower when a step's batch of `batch_size` examples does not fit into memory. `data_workers` processes for each
    worker prepare the batches of a `FedTask`; with 0 the worker prepares them itself. `backbone_setting` is the one
    that a worker names which does not find the task's backbone.

    Raises:
        StageError: A local Ray is too small for the configuration; the last checkpoint is damaged or belongs to another
            configuration; a worker raised a ModelError or StageError, or died too often; a batch does not fit into
            memory, or a checkpoint on the disk; the loss exploded, or the gradient was not finite, in too many steps;
            the training was stopped by SIGTERM.
    """
    folder = absolute(context.scratch / "train")
    folder.mkdir(parents=True, exist_ok=True)
    job = TrainingJob(
        task=task,
        steps=steps,
        config=config,
        seed=seed,
        cores=context.config.run.cpus,
        folder=folder,
        name=name,
        data_workers=data_workers,
        backbone_setting=backbone_setting,
    )
    check_resume(job)
    remove(job.stop_request)
    counts = config.worker_counts(batch_size)
    with reporting(job, context.report), _stopped_by_sigterm(job):
        _run_workers(job, context.report, batch_setting, lambda: room_for_workers(job, counts, section, context.report))
    if job.ending.exists():
        raise StageError(job.ending.read_text())
    return job.weights, read_curves(job.metrics_file)


def _run_workers(job: TrainingJob, report: Reporter, batch_setting: str, find_room: Callable[[], int]) -> None:
    """Train on Ray workers, again when one has died. Ray's own `max_failures` would repeat permanent errors too.

    `find_room` returns for how many workers there is room.
    """
    from ray.exceptions import OutOfMemoryError
    from ray.train import RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    config, failures, reached = job.config, 0, _checkpoint_step(job)
    while True:
        workers = find_room()
        report.progress(0, job.steps, f"{job.name}: starting {workers} workers")
        trainer = TorchTrainer(
            train,
            train_loop_config={"job": job},
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=config.use_gpu, label_selector=node_selector(gpus=config.use_gpu)
            ),
            torch_config=TorchConfig(backend="nccl" if config.use_gpu else "gloo"),
            run_config=RunConfig(
                name=job.name,
                worker_runtime_env=worker_environment(use_gpu=config.use_gpu),
                **_ray_storage(job.folder),
            ),
        )
        try:
            trainer.fit()
            return
        except (TrainingFailedError, OutOfMemoryError) as error:  # the latter if the workers' controller was killed
            sentence = _error_message(job.name, error, batch_setting)
            before, reached = reached, _checkpoint_step(job)
            failures = 1 if reached > before else failures + 1
            if failures > config.max_failures or any(_is_permanent(failure) for failure in _failures(error)):
                raise StageError(sentence) from error
            report.warning(f"{sentence}; it resumes from its last checkpoint")


def _checkpoint_step(job: TrainingJob) -> int:
    """The step of the checkpoint that the training would go on from."""
    checkpoint = job.checkpoints.latest()
    return checkpoint.step if checkpoint else 0


def _ray_storage(folder: StorePath) -> dict[str, Any]:
    """Where Ray Train keeps its own notes. Checkpoints are the project's: any number of workers can read them."""
    if isinstance(folder, Path):
        return {"storage_path": str(folder)}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return {"storage_path": folder.path, "storage_filesystem": PyFileSystem(FSSpecHandler(folder.fs))}


def check_resume(job: TrainingJob) -> None:
    """Check the checkpoint that the workers would resume from, before they start.

    Raises:
        StageError: The checkpoint is damaged or belongs to another configuration; names the difference.
    """
    checkpoint = job.checkpoints.latest()
    if checkpoint is None:
        return
    remedy = f"delete {checkpoint.folder.parent} to train from the beginning"
    try:
        if not is_remote(checkpoint.folder):  # the workers compare their own copies of one in a store
            checkpoint.local().check()
        state = checkpoint.state()
    except StageError as error:
        raise StageError(f"{error}; {remedy}.") from error
    if found := difference(state["config"], job.identity()):
        raise StageError(f"{checkpoint.folder} is of another configuration ({found}): set it back, or {remedy}.")


@contextmanager
def _stopped_by_sigterm(job: TrainingJob) -> Iterator[None]:
    """Let SIGTERM ask the workers to write a checkpoint and stop.

    It may come twice: `ray job stop` and batch systems send it to this process, and so does the runner. A runner that
    has waited long enough sends SIGKILL.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)

    def ask(number: int, frame: FrameType | None) -> None:
        threading.Thread(target=write_whole, args=(job.stop_request, b"")).start()  # a store takes its time

    signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _error_message(name: str, error: Exception, batch_setting: str) -> str:
    """The error of the workers as one sentence. When one worker dies, the others lose their connections to it."""
    failures = _failures(error)
    if any(_lacks_memory(failure) for failure in [*failures, error]):
        return f"training {name} ran out of memory: lower {batch_setting}, or train on a machine with more memory."
    if any(_lacks_space(failure) for failure in failures):
        return f"training {name} failed because its disk is full: free some space, and run again to resume."
    causes = [_last_line(failure) for failure in failures]
    own = [cause for cause in causes if "gloo" not in cause.lower() and "nccl" not in cause.lower()]
    if not own:
        return f"training {name} failed: a worker or its machine was lost"
    if _LOST_NODE in own[0]:
        return f"training {name} failed: the machine of a worker was lost or cut off"
    return f"training {name} failed: {own[0]}"


def _failures(error: Exception) -> list[Exception]:
    """The workers' errors; the error itself when it is Ray's own."""
    return list(getattr(error, "worker_failures", {}).values()) or [error]


def _lacks_memory(error: Exception) -> bool:
    """Whether an allocation failed (torch on CPU or GPU, NumPy), or Ray killed a worker to free memory."""
    text = f"{type(error).__name__} {error}"
    signs = ("can't allocate memory", "OutOfMemoryError", "out of memory", "_ArrayMemoryError", "running low on memory")
    return any(sign in text for sign in signs)


def _lacks_space(error: Exception) -> bool:
    """Whether Python or safetensors could not write a file because its disk is full."""
    return "No space left on device" in str(error)


def _is_permanent(error: Exception) -> bool:
    """Whether another attempt would fail in the same way."""
    return isinstance(error, _USER_ERRORS) or _lacks_space(error)


def _last_line(error: Exception) -> str:
    kind = "" if isinstance(error, _USER_ERRORS) else f"{type(error).__name__}: "
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return kind + (lines[-1] if lines else "no message")


# --- progress and metrics ------------------------------------------------------------------------------------------


@contextmanager
def reporting(job: TrainingJob, report: Reporter) -> Iterator[None]:
    """Report, from a thread, what rank 0 appends to the metrics file and the samples that it writes."""
    ended = threading.Event()
    news = _News(job, report)
    seconds = STORE_SECONDS if is_remote(job.folder) else _POLL_SECONDS

    def poll() -> None:
        while not ended.wait(seconds):
            with _store_may_be_away(job):
                news.report_new(over=False)
        with _store_may_be_away(job):
            news.report_new(over=True)

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def _store_may_be_away(job: TrainingJob) -> Iterator[None]:
    """The training itself fails when the store stays away."""
    try:
        yield
    except Exception as error:  # each object store has exceptions of its own
        if not is_remote(job.folder) or storage_error(error, str(job.folder)) is None:
            raise


class _News:
    """Reports each line of metrics and each sample of a training once."""

    def __init__(self, job: TrainingJob, report: Reporter) -> None:
        self._job, self._report = job, report
        self._lines = RecordReader(job.metrics_file)
        self._step = self._shown = 0

    def report_new(self, *, over: bool) -> None:
        job = self._job
        for line in self._lines.read():
            self._step = line["step"]
            _emit(line, job, self._report)
        complete = self._step if over else self._step - 1  # the last step's sample may still be being written
        if not isinstance(job.task, SamplingTask) or job.task.sample_every is None:
            return
        samples: list[StorePath] = sorted(job.samples.glob("*.png"), key=str)
        for sample in samples:
            if self._shown < int(sample.stem) <= complete:
                self._shown = int(sample.stem)
                self._report.sample(f"{job.name}/samples", sample, self._shown)


def _emit(line: dict[str, Any], job: TrainingJob, report: Reporter) -> None:
    for key, value in line.items():
        if key not in BOOKKEEPING:
            report.metric(f"{job.name}/{key}", value, line["step"])
    report.progress(line["step"], job.steps, progress_note(job.name, line))


def read_curves(file: StorePath) -> Curves:
    """All metrics of a training's metrics file."""
    curves: Curves = {}
    for line in RecordReader(file).read():
        for key, value in line.items():
            if key not in BOOKKEEPING:
                curves.setdefault(key, []).append((line["step"], float(value)))
    return curves


def plot_curves(curves: Curves, keys: list[str], title: str, file: Path) -> None:
    """Plot the metrics `keys`, one panel each, into a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(keys), 3.2), layout="constrained")
    for axes, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        steps, values = zip(*curves.get(key, [(0, float("nan"))]), strict=True)
        axes.plot(steps, values, linewidth=1)
        axes.set(xlabel="step", title=key)
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(file, dpi=100)
