"""The training loop of each worker: steps of a `TrainingTask` on a DeepSpeed engine, checkpoints, metrics.

`stages/training/trainer.py` starts the workers on Ray Train. Except for `train`, nothing here depends on Ray or on
what is trained. A step is a pure function of (seed, step, rank, world) and of the weights. So a training that was
interrupted and resumed has the same result as one that was not: exactly the same with the same workers and ZeRO stage,
and to rounding with others, if the task's batch does not depend on the number of workers.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.seeding import seed_of
from model.training.moving_average import MovingAverage
from model.training.task import DescribedTask, FedTask, Feed, Prepared, RatedTask, SamplingTask
from stages.local_copies import forget_copy
from stages.storage import is_remote, local_folder, remove, write_whole
from stages.storage_errors import store_errors_as_stage_errors
from stages.training.checkpoints import Checkpoint, CheckpointFolder, CheckpointWriter
from stages.training.engine import Engine, LossScale, learning_rate, micro_batches, on_device
from stages.training.job import TrainingJob
from stages.training.metrics import MetricsLogger
from stages.training.record import open_record, watch
from stages.training.state import gather_state, gathered, restore_average, restore_moments, restore_weights

#: This many skipped steps in a row end a training.
MAX_SKIPPED_STEPS = 5

#: A loss has exploded when it is this many times the mean loss of the first `FIRST_STEPS` steps. A smaller factor would
#: be wrong: a diffusion model's loss varies much between timesteps, and gradient clipping bounds each step.
EXPLOSION_FACTOR = 100.0
FIRST_STEPS = 10

#: Streams what a task's feed prepares for these steps: (feed, steps, rank, world). Closing it ends its processes.
Feeder = Callable[[Feed, range, int, int], Generator[Prepared]]


def train(settings: dict[str, Any]) -> None:
    """The train loop of Ray Train: `settings["job"]` is a `TrainingJob`."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # from DeepSpeed
    job: TrainingJob = settings["job"]
    with store_errors_as_stage_errors(job.folder):
        _train(job)


def _train(job: TrainingJob) -> None:
    import ray.train
    import ray.train.torch

    cores = job.cores or os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // ray.train.get_context().get_local_world_size()))
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # torch.distributed sends Python objects from there
    if job.data_workers:
        from stages.training.feeder import stream

        run_worker(job.on_this_machine(), device, partial(stream, workers=job.data_workers))
    else:
        run_worker(job.on_this_machine(), device)


def prepare_here(feed: Feed, steps: range, rank: int, world: int) -> Generator[Prepared]:
    """The feeder without data workers: this process prepares each step when it is due."""
    for step in steps:
        yield feed.prepare(step, rank, world)


def run_worker(job: TrainingJob, device: torch.device, feeder: Feeder = prepare_here) -> None:
    """Train as a worker of torch's process group; rank 0 exports the weights, or writes why the training stopped."""
    rank = dist.get_rank()
    if rank == 0:
        remove(job.ending)
    torch.manual_seed(job.seed)
    module = job.task.module()
    dimensionless = [parameter for parameter in module.parameters() if parameter.dim() == 0]
    _reshape(dimensionless, (1,))  # DeepSpeed cannot broadcast them; CLIP's logit scale is one
    checkpoint, tensors = _latest(job.checkpoints)
    if checkpoint:
        restore_weights(module, tensors)
    rates = job.task.rates(module) if isinstance(job.task, RatedTask) else None
    engine = Engine(module, job.config, device, rates)
    average = MovingAverage(engine.trained, job.config.ema_decay) if job.config.ema_decay is not None else None
    progress = _Progress()
    if checkpoint:
        progress = _Progress.read(checkpoint, engine)
        restore_moments(engine, tensors, progress.updates)
        if average:
            restore_average(average, tensors)
        tensors.clear()
    with (
        open_record(job.metrics_file) if rank == 0 else nullcontext() as record,
        watch(job.stop_request) if rank == 0 else nullcontext(_never) as stop_asked,
    ):
        metrics = MetricsLogger(steps=job.steps, device=device, record=record)
        ending = _Worker(job, engine, average, device, metrics, progress, stop_asked).run(feeder)
    if ending is None:
        with _exportable(module, dimensionless, average):
            if rank == 0:
                with local_folder(job.weights) as folder:
                    job.task.export(module, folder)
    elif rank == 0:
        write_whole(job.ending, ending)


def _never() -> bool:
    return False


@dataclass
class _Progress:
    """The progress of a training.

    Attributes:
        step: Steps done.
        updates: Steps that changed the weights.
        skipped: Steps that did not, because the loss exploded or the gradient was not finite.
        skipped_in_a_row: The skipped steps since the last update.
        first_losses: Mean losses over all workers of the first steps, to recognize an explosion.
        losses: This worker's losses since the last checkpoint.
    """

    step: int = 0
    updates: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    first_losses: list[float] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)

    @property
    def max_loss(self) -> float:
        """A larger loss has exploded."""
        if len(self.first_losses) < FIRST_STEPS:
            return math.inf
        return EXPLOSION_FACTOR * sum(abs(loss) for loss in self.first_losses) / FIRST_STEPS

    @classmethod
    def read(cls, checkpoint: Checkpoint, engine: Engine) -> _Progress:
        state = checkpoint.state()
        if engine.loss_scale:
            engine.loss_scale = LossScale(**state["loss_scale"])
        return cls(**{key: state[key] for key in ("step", "updates", "skipped", "skipped_in_a_row", "first_losses")})


class _Batch(NamedTuple):
    tensors: dict[str, Tensor]
    waited: float  # for its data, seconds


@dataclass(frozen=True)
class _Worker:
    job: TrainingJob
    engine: Engine
    average: MovingAverage | None
    device: torch.device
    metrics: MetricsLogger
    progress: _Progress
    stop_asked: Callable[[], bool]  # on rank 0

    @property
    def rank(self) -> int:
        return dist.get_rank()

    def run(self, feeder: Feeder) -> str | None:
        """Do the remaining steps; returns why the training stopped before the last one, else None."""
        with closing(self._batches(range(self.progress.step, self.job.steps), feeder)) as batches:
            return self._run(batches)

    def _batches(self, steps: range, feeder: Feeder) -> Generator[_Batch]:
        """This worker's batches. The time in which a `FedTask` encodes its data does not count as waiting."""
        task, rank, world = self.job.task, self.rank, dist.get_world_size()
        if not isinstance(task, FedTask):
            for step in steps:
                start = time.perf_counter()
                yield _Batch(task.batch(step, rank, world), time.perf_counter() - start)
            return
        with closing(feeder(task.feed, steps, rank, world)) as stream:
            for step in steps:
                start = time.perf_counter()
                prepared = next(stream)
                waited = time.perf_counter() - start
                yield _Batch(task.encode(prepared, step, rank, world), waited)

    def _run(self, batches: Iterator[_Batch]) -> str | None:
        job = self.job
        record = self.metrics.record  # a checkpoint's metrics are there before it
        writer = CheckpointWriter(
            job.checkpoints, self.rank, dist.get_world_size(), record.flush if record else lambda: None
        )
        for step in range(self.progress.step, job.steps):
            self._step(step, batches)
            writer.check()
            if self.progress.skipped_in_a_row == MAX_SKIPPED_STEPS:
                writer.wait()
                return _divergence(job, step)
            done = step + 1
            self._sample(done)
            stopping = self._rank_0_says(self.stop_asked()) and done < job.steps
            if stopping or (done % job.config.checkpoint_every == 0 and done < job.steps):
                self._save(writer)
            if stopping:
                writer.wait()
                return f"training {job.name} was stopped after step {done} of {job.steps}; the same command goes on."
        writer.wait()
        return None

    def _step(self, step: int, batches: Iterator[_Batch]) -> None:
        """One step of the optimizer."""
        job, progress = self.job, self.progress
        torch.manual_seed(seed_of(job.seed, step, self.rank))
        batch, waited = next(batches)
        samples = len(next(iter(batch.values())))
        batch = on_device(batch, self.device)
        scalars = self.engine.backward(micro_batches(batch, job.config.accumulation), progress.max_loss)
        rate = learning_rate(step, job.steps, job.config)
        norm = self.engine.step(rate)
        progress.step = step + 1
        if norm is None:
            progress.skipped += 1
            progress.skipped_in_a_row += int(self.engine.cannot_lower_scale)
            scalars = {}
        else:
            progress.updates += 1
            progress.skipped_in_a_row = 0
            progress.losses.append(scalars["loss"])
            if len(progress.first_losses) < FIRST_STEPS:
                progress.first_losses.append(self._mean([scalars["loss"]]) or 0.0)
            scalars |= {"grad_norm": torch.tensor(norm), "learning_rate": torch.tensor(rate)}
            if self.average:
                self.average.update()
            job.task.after_step(self.engine.module, step)
        self.metrics.add(step, scalars, samples=samples, waited=waited, skipped=progress.skipped)

    def _sample(self, done: int) -> None:
        """Have a `SamplingTask` write its sample pictures when they are due."""
        task = self.job.task
        if self.rank or not isinstance(task, SamplingTask) or task.sample_every is None or done % task.sample_every:
            return
        with local_folder(self.job.samples) as folder:
            task.sample(self.engine.module, done, folder)

    def _save(self, writer: CheckpointWriter) -> None:
        """Have every worker write its share of the state: of N workers, each writes every N-th tensor."""
        progress, scale = self.progress, self.engine.loss_scale
        loss = self._mean(progress.losses)
        progress.losses.clear()
        mine: dict[str, Tensor] = {}
        world = dist.get_world_size()
        for number, (name, tensor) in enumerate(gather_state(self.engine, progress.updates, self.average)):
            if number % world == self.rank:
                mine[name] = tensor.to("cpu", copy=True).contiguous()
        state = {
            "step": progress.step,
            "updates": progress.updates,
            "skipped": progress.skipped,
            "skipped_in_a_row": progress.skipped_in_a_row,
            "first_losses": list(progress.first_losses),  # a copy, because the writer runs beside the next steps
            "loss": loss,
            "loss_scale": dataclasses.asdict(scale) if scale else None,
            "config": self.job.identity(),
        }
        writer.write(progress.step, mine, state if self.rank == 0 else None)

    def _mean(self, losses: list[Tensor]) -> float | None:
        """The mean over all workers; None without losses."""
        total = torch.stack(losses).float().sum() if losses else torch.zeros((), device=self.device)
        both = torch.stack([total, torch.tensor(float(len(losses)), device=self.device)])
        dist.all_reduce(both)
        return (both[0] / both[1]).item() if both[1] else None

    def _rank_0_says(self, value: bool) -> bool:
        """The value on rank 0, for all workers."""
        flag = torch.tensor([float(value and self.rank == 0)], device=self.device)
        dist.all_reduce(flag)
        return bool(flag)


def _divergence(job: TrainingJob, step: int) -> str:
    samples = f" ({job.task.describe(step)})" if isinstance(job.task, DescribedTask) else ""
    return (
        f"training {job.name} was stopped at step {step}{samples}, the {MAX_SKIPPED_STEPS}th in a row whose loss has "
        "exploded or whose gradient is not finite: check these samples, or lower the trainer's learning_rate."
    )


def _latest(checkpoints: CheckpointFolder) -> tuple[Checkpoint | None, dict[str, Tensor]]:
    """The checkpoint to resume from, the same on all workers, and its tensors; incomplete ones are removed.

    Raises:
        StageError: The checkpoint is damaged.
    """
    chosen: list[Checkpoint | None] = [None]
    if dist.get_rank() == 0:
        checkpoints.remove_incomplete()
        chosen = [checkpoints.latest()]
    dist.broadcast_object_list(chosen)
    if chosen[0] is None:
        return None, {}
    local = chosen[0].local()
    if dist.get_rank() == 0 or is_remote(chosen[0].folder):  # each machine has read its own copy
        local.check()
    tensors = dict(local.tensors())
    dist.barrier()
    forget_copy(chosen[0].folder, local.folder)
    return chosen[0], tensors


def _reshape(parameters: list[nn.Parameter], shape: tuple[int, ...]) -> None:
    for parameter in parameters:
        parameter.grad = None
        parameter.data = parameter.data.view(shape)


@contextmanager
def _exportable(module: nn.Module, dimensionless: list[nn.Parameter], average: MovingAverage | None) -> Iterator[None]:
    """Put the module in its exported form: whole parameters, and the averaged weights when there are any."""
    with gathered(list(module.parameters())):
        if average:
            average.apply()
        _reshape(dimensionless, ())
        yield
