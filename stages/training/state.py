"""The state of a training as whole tensors by name, independent of ZeRO's partitioning.

The names: "weight/N" for each parameter and buffer in the module's state dict; of the trained parameters "exp_avg/N"
and "exp_avg_sq/N" for AdamW's moments, "momentum_buffer/N" for Muon's, and "mean/N" for the moving average. A gathered
state can be restored on another number of workers and in another ZeRO stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.training.moving_average import MovingAverage
from stages.contract import StageError
from stages.training.engine import Engine


def gathered(tensors: list[Tensor]) -> AbstractContextManager[Any]:
    """A context in which those of `tensors` that ZeRO-3 has partitioned are whole on all workers."""
    import deepspeed

    cut = [tensor for tensor in tensors if hasattr(tensor, "ds_id")]
    return deepspeed.zero.GatheredParameters(cut) if cut else nullcontext()


def gather_state(engine: Engine, updates: int, average: MovingAverage | None) -> Iterator[tuple[str, Tensor]]:
    """The state, one tensor at a time; all workers must iterate over it.

    A tensor is valid until the next one is requested. `updates` is the number of the optimizer's steps.
    """
    for name, tensor in _module_tensors(engine.module).items():
        with gathered([tensor]):
            yield f"weight/{name}", tensor.detach()
    if updates:
        _link_moments(engine)
    for name, weight in engine.trained.items() if updates else ():
        for moment in engine.state_names[name]:
            yield f"{moment}/{name}", _moment(engine, weight, moment)
    for name, mean in average.mean.items() if average else ():
        yield f"mean/{name}", mean


def restore_weights(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load weights and buffers into a module, before an engine partitions it.

    Raises:
        StageError: The state belongs to another model; one sentence.
    """
    for name, tensor in _module_tensors(module).items():
        found = tensors.get(f"weight/{name}")
        if found is None or found.shape != tensor.shape:
            there = "missing" if found is None else f"of shape {list(found.shape)}"
            raise StageError(f"it is of another model: {name} is {there}, where {list(tensor.shape)} is needed")
        tensor.detach().copy_(found)


def restore_moments(engine: Engine, tensors: Mapping[str, Tensor], updates: int) -> None:
    """Set the optimizer's moments to those after `updates` steps."""
    if not updates:
        return
    for piece, names in _pieces(engine):
        moments = {moment: torch.zeros_like(piece) for moment in names}
        count = torch.full((), float(updates), device=piece.device)
        engine.optimizer.state[piece] = {"step": count, **moments}
    _link_moments(engine)
    for name, weight in engine.trained.items():
        for moment in engine.state_names[name]:
            _set_moment(engine, weight, moment, tensors[f"{moment}/{name}"])


def restore_average(average: MovingAverage, tensors: Mapping[str, Tensor]) -> None:
    """Set the moving averages."""
    for name, mean in average.mean.items():
        mean.copy_(tensors[f"mean/{name}"])


def _module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Each parameter and buffer of `state_dict`; tied ones once."""
    saved = set(module.state_dict(keep_vars=True))
    both = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor for name, tensor in both if name in saved}


def _pieces(engine: Engine) -> list[tuple[Tensor, tuple[str, ...]]]:
    """The tensors that the optimizer updates, with the names of its moments.

    They are the parameters, or this worker's flat partitions of them.
    """
    if engine.zero_stage == 0:
        return [(weight, engine.state_names[name]) for name, weight in engine.trained.items()]
    zero = engine.deepspeed.optimizer
    pieces = zero.fp32_partitioned_groups_flat if engine.zero_stage == 3 else zero.single_partition_of_fp32_groups
    names = next(iter(engine.state_names.values()))  # all have AdamW's
    return [(piece, names) for piece in pieces]


def _link_moments(engine: Engine) -> None:
    """Let parameters find AdamW's moments in the partitions of ZeRO 1 and 2.

    DeepSpeed does so after the first step of the first group of parameters, when the other groups have none yet.
    """
    if engine.zero_stage in (1, 2):
        zero = engine.deepspeed.optimizer
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _moment(engine: Engine, weight: nn.Parameter, moment: str) -> Tensor:
    if engine.zero_stage == 0:
        state: Tensor = engine.optimizer.state[weight][moment]
        return state
    from deepspeed.utils import safe_get_full_optimizer_state

    return safe_get_full_optimizer_state(weight, moment)


def _set_moment(engine: Engine, weight: nn.Parameter, moment: str, value: Tensor) -> None:
    if engine.zero_stage == 0:
        engine.optimizer.state[weight][moment].copy_(value)
    elif engine.zero_stage < 3:
        from deepspeed.utils import safe_set_full_optimizer_state

        safe_set_full_optimizer_state(weight, value.to(weight.device), moment)
    else:
        from deepspeed.utils import safe_set_local_optimizer_state

        piece = weight.ds_tensor.numel()  # type: ignore[attr-defined]
        padded = nn.functional.pad(value.flatten(), (0, piece * dist.get_world_size() - value.numel()))
        mine = padded.narrow(0, piece * dist.get_rank(), piece).to(weight.device)
        safe_set_local_optimizer_state(weight, mine, moment)
