"""What each Ray Train worker does: a DeepSpeed engine around a `TrainingTask`, checkpoints, a record of losses.

`stages/trainer.py` starts the workers. Nothing here depends on what is trained: a step is a pure function of
(seed, step, rank, world) and of the weights, so a run that was cut off and went on ends where an undisturbed one ends.

Covers ZeRO stages 0 to 3 on gloo and nccl with the same number of workers throughout. Does not cover: gradient
accumulation, and a resume with another number of workers (ZeRO cuts the optimizer's state by rank; `stages/trainer.py`
refuses it).
"""

from __future__ import annotations

import json
import math
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor, nn

from model.checksums import file_checksum, folder_checksums
from model.seeding import seed_of
from model.training import SamplingTask, TrainingTask
from stages.config import TrainerConfig

#: DeepSpeed's name for the one state that a checkpoint folder holds.
_TAG = "deepspeed"
_STATE_FILE = "training.json"
#: A run writes about this many points of every curve.
_CURVE_POINTS = 200


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """Everything a worker needs to know.

    Attributes:
        task: What is trained; picklable.
        steps: Steps of the optimizer in all.
        config: How it is trained.
        seed: Of the initial weights and of every random number drawn while training.
        cores: Cores of a machine, shared by the workers on it.
        record: JSON lines file for the losses; rank 0 appends to it.
        weights: Folder that rank 0 exports the trained weights into.
    """

    task: TrainingTask
    steps: int
    config: TrainerConfig
    seed: int
    cores: int
    record: Path
    weights: Path


class _Autocast(nn.Module):
    """Runs a module's forward pass in bf16 where autocast allows it; the weights stay as they are."""

    def __init__(self, inner: nn.Module, device_type: str, enabled: bool) -> None:
        super().__init__()
        self.inner = inner
        self.device_type = device_type
        self.enabled = enabled

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.autocast(self.device_type, torch.bfloat16, enabled=self.enabled):
            return self.inner(batch)


def learning_rate(step: int, steps: int, config: TrainerConfig) -> float:
    """Linear warm-up times half a cosine that ends at `final_share`. `step` counts from 0."""
    warm_up = min(1.0, (step + 1) / max(1, config.warmup_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return config.learning_rate * warm_up * (config.final_share + (1 - config.final_share) * cosine)


def deepspeed_config(config: TrainerConfig) -> dict[str, Any]:
    """DeepSpeed's configuration. Autocast is ours and not DeepSpeed's, which would average the gradients in bf16."""
    return {
        "train_micro_batch_size_per_gpu": 1,  # a step's batch is the task's affair; DeepSpeed only counts with it
        "gradient_clipping": config.gradient_clip,
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,  # torch's AdamW; DeepSpeed's own would be compiled on first use
        "steps_per_print": 2**31,
    }


def train(settings: dict[str, Any]) -> None:
    """The train loop of Ray Train: `settings["job"]` is a `TrainingJob`."""
    import ray.train
    import ray.train.torch

    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's affair
    job: TrainingJob = settings["job"]
    place = ray.train.get_context()
    torch.set_num_threads(max(1, job.cores // place.get_local_world_size()))
    torch.manual_seed(job.seed)
    device = ray.train.torch.get_device()
    module = job.task.module()
    dimensionless = [parameter for parameter in module.parameters() if parameter.dim() == 0]
    _reshape(dimensionless, (1,))  # DeepSpeed cannot broadcast those, such as CLIP's logit scale
    engine = _engine(module, job.config, device)
    worker = _Worker(job, engine, module, device, place.get_world_rank(), place.get_world_size())
    start = _restore(engine)
    with _recorder(job, worker.rank, worker.world) as recorder:
        for step in range(start, job.steps):
            scalars, samples = worker.step(step)
            if recorder is not None:
                recorder.add(step, samples, scalars)
            if worker.rank == 0:
                _look(job, module, step + 1)
            if (step + 1) % job.config.checkpoint_every == 0 and step + 1 < job.steps:
                _save(engine, step + 1, worker.rank, worker.world)
    with _gathered(module, job.config.zero_stage):
        _reshape(dimensionless, ())
        if worker.rank == 0:
            job.task.export(module, job.weights)


def _look(job: TrainingJob, module: nn.Module, done: int) -> None:
    """Let the task show what the module can do after so many steps, when it wants to. On rank 0."""
    task = job.task
    if isinstance(task, SamplingTask) and task.sample_every is not None and done % task.sample_every == 0:
        folder = job.weights.with_name(job.weights.name.removesuffix("-weights") + "-samples")
        folder.mkdir(exist_ok=True)
        task.sample(module, done, folder)


@dataclass(frozen=True)
class _Worker:
    job: TrainingJob
    engine: Any
    module: nn.Module
    device: torch.device
    rank: int
    world: int

    def step(self, step: int) -> tuple[dict[str, Tensor], int]:
        """One step of the optimizer; returns the task's scalars and how many samples this worker has seen."""
        job = self.job
        torch.manual_seed(seed_of(job.seed, step, self.rank))
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate(step, job.steps, job.config)
        batch = job.task.batch(step, self.rank, self.world)
        batch = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        scalars = self.engine(batch)
        self.engine.backward(scalars["loss"])
        self.engine.step()
        job.task.after_step(self.module, step)
        return scalars, len(next(iter(batch.values())))


def _engine(module: nn.Module, config: TrainerConfig, device: torch.device) -> Any:
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel("WARNING")
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else compiled on first use; needs a compiler
    trainable = [p for p in module.parameters() if p.requires_grad]
    betas = (0.9, config.beta2)
    optimizer = torch.optim.AdamW(trainable, config.learning_rate, betas, weight_decay=config.weight_decay, fused=True)
    engine, *_ = deepspeed.initialize(
        model=_Autocast(module, device.type, config.precision == "bf16"),
        optimizer=optimizer,
        config=deepspeed_config(config),
        dist_init_required=False,  # Ray Train has made the process group
    )
    return engine


def _reshape(parameters: list[nn.Parameter], shape: tuple[int, ...]) -> None:
    for parameter in parameters:
        parameter.grad = None
        parameter.data = parameter.data.view(shape)


@contextmanager
def _gathered(module: nn.Module, zero_stage: int) -> Iterator[None]:
    """ZeRO-3 keeps every parameter in pieces: put them together on all workers for the export."""
    if zero_stage < 3:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(module.parameters())):
        yield


# --- checkpoints ---------------------------------------------------------------------------------------------------


def _save(engine: Any, step: int, rank: int, world: int) -> None:
    """Every worker writes its share, and the checksums of its share, into one checkpoint."""
    import ray.train

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        engine.save_checkpoint(name, tag=_TAG)
        if rank == 0:
            (folder / _STATE_FILE).write_text(json.dumps({"step": step, "world": world}))
        (folder / f"checksums-{rank}.json").write_text(json.dumps(folder_checksums(folder)))
        ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(name))


def _restore(engine: Any) -> int:
    """Load the run's latest checkpoint, when there is one; returns the number of steps that are done."""
    import ray.train

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as name:
        check_files(Path(name))
        engine.load_checkpoint(name, tag=_TAG)
        return int(read_state(Path(name))["step"])


def read_state(folder: Path) -> dict[str, int]:
    """How far the run of a checkpoint was ("step") and by how many workers it was written ("world")."""
    state: dict[str, int] = json.loads((folder / _STATE_FILE).read_text())
    return state


def check_files(folder: Path) -> None:
    """Compare every file of a checkpoint with the checksum that was taken when it was written.

    DeepSpeed's files are pickles: nothing of a checkpoint is loaded before this check has passed.

    Raises:
        ValueError: A file is missing or is not what was written; one sentence that names it.
    """
    lists = sorted(folder.glob("checksums-*.json"))
    for sums in lists:
        try:
            recorded = json.loads(sums.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"checkpoint file {sums} is damaged (it is not JSON)") from error
        for name, expected in recorded.items():
            file = folder / name
            if not file.is_file() or file_checksum(file) != expected:
                raise ValueError(f"checkpoint file {file} is damaged (its checksum is not the one in {sums.name})")
    if not (folder / _STATE_FILE).is_file() or len(lists) != read_state(folder)["world"]:
        raise ValueError(f"checkpoint {folder} is incomplete")


# --- losses --------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Recorder:
    """Averages scalars over a few steps and appends them, as one JSON line, to the run's record."""

    stream: TextIO
    every: int
    world: int
    steps: int
    _sums: dict[str, list[Tensor]] = field(default_factory=dict)
    _samples: int = 0
    _since: float = field(default_factory=time.perf_counter)

    def add(self, step: int, samples: int, scalars: Mapping[str, Tensor]) -> None:
        for name, value in scalars.items():
            self._sums.setdefault(name, []).append(value.detach())
        self._samples += samples * self.world
        done = step + 1
        if done % self.every and done != self.steps:
            return
        means = {name: float(torch.stack(values).float().mean()) for name, values in self._sums.items()}
        now = time.perf_counter()
        line = {"step": done, "samples_per_second": self._samples / (now - self._since), **means}
        self.stream.write(json.dumps(line) + "\n")
        self.stream.flush()
        self._sums, self._samples, self._since = {}, 0, now


@contextmanager
def _recorder(job: TrainingJob, rank: int, world: int) -> Iterator[_Recorder | None]:
    if rank != 0:
        yield None
        return
    with job.record.open("a") as stream:
        stream.write("\n")  # ends a line that a kill has cut
        yield _Recorder(stream=stream, every=max(1, job.steps // _CURVE_POINTS), world=world, steps=job.steps)
