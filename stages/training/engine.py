"""A DeepSpeed engine around a module: steps of an optimizer that are the same for every ZeRO stage and precision.

DeepSpeed's settings are `infra/deepspeed/zero{0,1,2,3}.json`; "auto" in them stands for the pipeline's own values. The
weights are fp32. For bf16 and fp16 the forward pass runs under torch's autocast instead of DeepSpeed's own half
precision, which would sum the gradients in half precision too. fp16 scales the loss dynamically. If the gradient is
not finite on one worker, the step changes the weights on none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.contract import StageError
from stages.training.config import TrainerConfig
from stages.training.optimizer import new_optimizer, state_names

DEEPSPEED = Path(__file__).resolve().parents[2] / "infra" / "deepspeed"

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def deepspeed_config(config: TrainerConfig) -> dict[str, Any]:
    """DeepSpeed's settings for a ZeRO stage, with the pipeline's values in place of "auto".

    DeepSpeed's micro batch size stays 1, because the task makes the batches. The optimizers are torch's, which need no
    compiler.
    """
    settings: dict[str, Any] = json.loads((DEEPSPEED / f"zero{config.zero_stage}.json").read_text())
    values = {"gradient_accumulation_steps": config.accumulation, "gradient_clipping": config.gradient_clip}
    return {key: values[key] if value == "auto" else value for key, value in settings.items()}


def learning_rate(step: int, steps: int, config: TrainerConfig) -> float:
    """Linear warm-up times half a cosine that ends at `final_share`, or times 1. `step` counts from 0."""
    warm_up = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.schedule == "constant":
        return config.learning_rate * warm_up
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return config.learning_rate * warm_up * (config.final_share + (1 - config.final_share) * cosine)


def on_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """A batch on the device. A copy to a GPU runs beside other work only if it is from pinned memory."""
    if device.type == "cuda":
        batch = {name: tensor if tensor.is_cuda else tensor.pin_memory() for name, tensor in batch.items()}
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def micro_batches(batch: Mapping[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """Cut a batch into `count` equal parts along its examples, the first dimension of its first tensor.

    Each part gets the whole of a tensor whose first dimension has another length.

    Raises:
        StageError: The number of examples is not divisible by `count`.
    """
    examples = len(next(iter(batch.values())))
    if examples % count:
        raise StageError(
            f"{examples} examples a worker cannot be cut into {count} equal micro batches: set the trainer's "
            f"accumulation to a divisor of {examples}."
        )
    size = examples // count
    return [
        {
            name: tensor[number * size : (number + 1) * size] if tensor.shape[:1] == (examples,) else tensor
            for name, tensor in batch.items()
        }
        for number in range(count)
    ]


@dataclass
class LossScale:
    """The factor of the loss that keeps small gradients from vanishing in fp16 (Micikevicius et al. 2018, Sec. 3.2).

    Halved after a gradient that is not finite, doubled after 2000 that are: the constants of `torch.amp.GradScaler`.
    """

    scale: float = 2.0**16
    finite_steps: int = 0

    def update(self, finite: bool) -> None:
        """Adapt the scale to a step's gradient."""
        self.finite_steps = self.finite_steps + 1 if finite else 0
        if not finite:
            self.scale = max(1.0, self.scale / 2)
        elif self.finite_steps == 2000:
            self.scale, self.finite_steps = 2 * self.scale, 0


class _Autocast(nn.Module):
    """Runs a module's forward pass under autocast; the weights keep their precision."""

    def __init__(self, inner: nn.Module, device_type: str, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.inner = inner
        self.device_type = device_type
        self.dtype = dtype

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.autocast(self.device_type, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            return self.inner(batch)


class Engine:
    """Trains `module`. Every worker must call each method.

    Args:
        module: Its parameters that require gradients are trained.
        config: Of the trainer.
        device: Where it is trained.
        rates: The factor of the learning rate by the parameter's name, where it is not 1.

    Attributes:
        deepspeed: DeepSpeed's engine.
        loss_scale: For fp16; None for other precisions.
        state_names: Weight's name -> the tensors that the optimizer keeps of it.
    """

    def __init__(
        self, module: nn.Module, config: TrainerConfig, device: torch.device, rates: Mapping[str, float] | None = None
    ) -> None:
        import deepspeed
        from deepspeed.utils import logger

        logger.setLevel("ERROR")  # the metrics count skipped steps
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = (
            False  # otherwise compiled on first use, which needs a compiler
        )
        self.module = module
        self.zero_stage = config.zero_stage
        self.loss_scale = LossScale() if config.precision == "fp16" else None
        self.trained = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        self.optimizer, self.factors = new_optimizer(self.trained, config, rates or {})
        self.state_names = {name: state_names(weight, config) for name, weight in self.trained.items()}
        self.deepspeed, *_ = deepspeed.initialize(
            model=_Autocast(module, device.type, _AUTOCAST.get(config.precision)),
            optimizer=self.optimizer,
            config=deepspeed_config(config),
            dist_init_required=False,  # the process group is there
        )

    @property
    def cannot_lower_scale(self) -> bool:
        """Whether a lower loss scale cannot make the gradient finite."""
        return self.loss_scale is None or self.loss_scale.scale == 1.0

    def backward(self, batches: Sequence[dict[str, Tensor]], max_loss: float = math.inf) -> dict[str, Tensor]:
        """Forward and backward pass of a step's micro batches; returns the mean of each output of the module.

        A loss above `max_loss` gets a gradient that is not finite, so that all workers skip the step.
        """
        scalars: dict[str, list[Tensor]] = {}
        self._set_loss_scale()
        for number, batch in enumerate(batches):
            self.deepspeed.set_gradient_accumulation_boundary(number == len(batches) - 1)
            returned = self.deepspeed(batch)
            # DeepSpeed scales the loss itself, but not in stage 0.
            factor = self.loss_scale.scale if self.loss_scale and self.zero_stage == 0 else 1.0
            loss = returned["loss"]
            exploded = torch.where(loss.detach() > max_loss, torch.nan, 1.0).to(loss.dtype)
            self.deepspeed.backward(loss * factor * exploded)
            for name, value in returned.items():
                scalars.setdefault(name, []).append(value.detach())
        return {name: torch.stack(values).mean() for name, values in scalars.items()}

    def step(self, rate: float) -> float | None:
        """One step of the optimizer at a learning rate.

        Returns:
            The norm of the gradient over all workers, before clipping. None when it is not finite and the step is
            skipped.
        """
        for group, factor in zip(self.deepspeed.optimizer.param_groups, self.factors, strict=True):
            group["lr"] = rate * factor
        norm = self._step_without_zero() if self.zero_stage == 0 else self._step_with_zero()
        if self.loss_scale:
            self.loss_scale.update(norm is not None)
        return norm

    def _set_loss_scale(self) -> None:
        if self.loss_scale and self.zero_stage > 0:
            self.deepspeed.optimizer.override_loss_scale(self.loss_scale.scale)

    def _step_with_zero(self) -> float | None:
        """DeepSpeed checks the gradient and takes its norm over the pieces of all workers."""
        self.deepspeed.step()
        return float(self.deepspeed.get_global_grad_norm()) if self.deepspeed.was_step_applied() else None

    def _step_without_zero(self) -> float | None:
        """Without ZeRO there is no check, but each worker has the whole gradient."""
        gradients = [weight.grad for weight in self.trained.values() if weight.grad is not None]
        if self.loss_scale:
            torch._foreach_mul_(gradients, 1 / self.loss_scale.scale)
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if not math.isfinite(norm):
            self.deepspeed.zero_grad()
            return None
        self.deepspeed.step()
        return norm
