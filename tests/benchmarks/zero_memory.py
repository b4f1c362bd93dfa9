"""Memory per worker by ZeRO stage, compared with the formulas: weights, gradients and optimizer state.

    python -m tests.benchmarks.zero_memory          # 100 million trained parameters

Hardware and time: two cores, 5 GB of memory; some minutes.

Two processes on gloo train a perceptron in fp32 on the project's engine (`stages/training/engine.py`,
`infra/deepspeed/`). It follows a frozen perceptron of the same size that is not a submodule, like the backbone before
the adapter. Memory is measured after the first of two micro batches of the second step: at that time stage 1 holds
whole gradients, which it releases with the last micro batch. The benchmark reports the bytes of all living tensors,
and the growth of the process (RSS) since before the models were built, both without the frozen weights and divided by
the number of trained parameters. The tensors are exact; the process also contains buckets, allocators and libraries.

The formulas (Rajbhandari et al., "ZeRO", 2020, Sec. 3 and 5) with N workers, in bytes per trained parameter:

    fp32        weights 4, gradients 4, AdamW's moments 8; from stage 1 on, DeepSpeed keeps a copy of the weights with
                the moments, 4. Stage 1 partitions moments and copy, stage 2 also gradients, stage 3 also weights.
    DeepSpeed   its estimate for mixed precision without offloading, 2 + 18 / N in stage 2 and 18 / N in stage 3
                (`estimate_zero2_model_states_mem_needs`, `estimate_zero3_model_states_mem_needs`).

Neither includes DeepSpeed's buckets, which do not grow with the model: `reduce_bucket_size` is 50 million numbers, and
stage 3 holds one bucket.
"""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipelines.execution.environment import set_environment
from stages.training.config import TrainerConfig
from stages.training.engine import Engine
from tests.benchmarks.support.command_line import benchmark_parser

ZeroStage = Literal[0, 1, 2, 3]
STAGES: tuple[ZeroStage, ...] = (0, 1, 2, 3)
WORKERS = 2
_BATCH = 2


class Perceptron(nn.Module):
    """`layers` square layers after a frozen network; like a `TrainingTask`'s module it returns its loss."""

    def __init__(self, width: int, layers: int, frozen: nn.Sequential) -> None:
        super().__init__()
        self.trained = square_layers(width, layers)
        self._frozen = [frozen]  # in a list, so that it is not a submodule

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The mean square of the output."""
        return {"loss": self.trained(self._frozen[0](batch["x"])).square().mean()}


def square_layers(width: int, layers: int) -> nn.Sequential:
    """Build linear layers without bias."""
    return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory of one worker in bytes, without the frozen weights.

    Attributes:
        tensors: All living tensors.
        process: Growth of the process.
    """

    tensors: int
    process: int


@dataclass(frozen=True, kw_only=True)
class Model:
    """Sizes of the trained and of the frozen part."""

    width: int
    layers: int
    frozen_layers: int

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return self.layers * self.width**2

    @property
    def frozen_bytes(self) -> int:
        """Bytes of the frozen weights."""
        return 4 * self.frozen_layers * self.width**2


def living_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of these tensors' storages, each counted once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def living_tensors() -> list[Tensor]:
    """All tensors that Python's garbage collector knows, and their gradients, which it may not know yet."""
    gc.collect()
    # type(), not isinstance: isinstance would import lazy modules, and other subclasses, such as those of
    # torch.compile, may have no storage.
    found = [
        thing for thing in gc.get_objects() if type(thing) in (Tensor, nn.Parameter) and thing.device.type == "cpu"
    ]
    return found + [tensor.grad for tensor in found if tensor.is_leaf and tensor.grad is not None]


def work(rank: int, store: str, stage: ZeroStage, model: Model, pipe: Any) -> None:
    """Train in one worker; rank 0 sends its measurement through `pipe`."""
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE=str(WORKERS))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORKERS)
    importlib.import_module("deepspeed")  # now, so that its own memory does not count

    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # caused by DeepSpeed
    process = psutil.Process()
    tensors_before, process_before = living_bytes(living_tensors()), process.memory_info().rss
    torch.manual_seed(0)
    frozen = square_layers(model.width, model.frozen_layers).requires_grad_(False)
    module = Perceptron(model.width, model.layers, frozen)
    config = TrainerConfig(workers=WORKERS, zero_stage=stage, accumulation=2)
    engine = Engine(module, config, torch.device("cpu"))
    batch = {"x": torch.ones(_BATCH, model.width)}
    engine.backward([batch, batch])
    engine.step(1e-4)
    engine.deepspeed.set_gradient_accumulation_boundary(False)
    engine.deepspeed.backward(engine.deepspeed(batch)["loss"])
    measured = Memory(
        tensors=living_bytes(living_tensors()) - tensors_before - model.frozen_bytes,
        process=process.memory_info().rss - process_before - model.frozen_bytes,
    )
    if rank == 0:
        pipe.send(measured)
    dist.barrier()
    dist.destroy_process_group()


def measure(stage: ZeroStage, model: Model) -> Memory:
    """Memory of the first worker; each worker is a new process."""
    spawning = multiprocessing.get_context("spawn")
    receiver, sender = spawning.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        workers = [spawning.Process(target=work, args=(rank, store, stage, model, sender)) for rank in range(WORKERS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    if any(worker.exitcode for worker in workers):
        raise RuntimeError(f"ZeRO stage {stage}: a worker failed")
    memory: Memory = receiver.recv()
    size = memory.tensors / model.parameters
    print(f"stage {stage}, {model.frozen_layers} frozen layers: {size:.2f} bytes of tensors per parameter", flush=True)
    return memory


def formula(stage: int, workers: int) -> float:
    """Bytes per trained parameter and worker: fp32 weights, gradients, AdamW's moments, DeepSpeed's fp32 copy."""
    weights, gradients, moments, copy = 4.0, 4.0, 8.0, 4.0 if stage else 0.0
    partitioned = {0: 0.0, 1: moments + copy, 2: moments + copy + gradients, 3: moments + copy + gradients + weights}
    return weights + gradients + moments + copy - partitioned[stage] * (1 - 1 / workers)


def deepspeed_estimate(stage: int, workers: int, parameters: int) -> float | None:
    """DeepSpeed's estimate, in bytes per parameter in mixed precision; None for the stages 0 and 1."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    options: dict[str, Any] = {"num_gpus_per_node": workers, "cpu_offload": False}
    if stage == 2:
        return float(estimate_zero2_model_states_mem_needs(parameters, **options)[1] / parameters)
    if stage == 3:  # without the layer that is gathered at the time
        return float(
            estimate_zero3_model_states_mem_needs(parameters, 0, cpu_offload_params=False, **options)[1] / parameters
        )
    return None


def markdown(model: Model, found: Mapping[ZeroStage, Memory], without_frozen: Mapping[ZeroStage, Memory]) -> str:
    """The table of bytes per trained parameter and worker."""
    lines = [
        "| ZeRO | formula, fp32 | tensors | tensors, none frozen | process | DeepSpeed's estimate, mixed precision |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for stage, memory in found.items():
        estimate = deepspeed_estimate(stage, WORKERS, model.parameters)
        cells = [f"{formula(stage, WORKERS):.1f}"]
        cells += [
            f"{size / model.parameters:.2f}" for size in (memory.tensors, without_frozen[stage].tensors, memory.process)
        ]
        lines.append(f"| {stage} | {' | '.join(cells)} | {'none' if estimate is None else f'{estimate:.1f}'} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--width", type=int, default=2500)
    parser.add_argument("--layers", type=int, default=16)
    options = parser.parse_args(arguments)
    set_environment("micro")
    model = Model(width=options.width, layers=options.layers, frozen_layers=options.layers)
    alone = Model(width=options.width, layers=options.layers, frozen_layers=0)
    found, without_frozen = ({stage: measure(stage, which) for stage in STAGES} for which in (model, alone))
    print(
        f"\n{model.parameters / 1e6:.1f} million trained parameters, {WORKERS} workers; bytes per trained parameter:\n"
    )
    print(markdown(model, found, without_frozen))


if __name__ == "__main__":
    main()
