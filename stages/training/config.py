"""The settings of the trainer."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Lt
from pydantic import model_validator
from pydantic.dataclasses import dataclass

from model.settings import STRICT, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Share
from stages.compute_config import Precision, precision_problem
from stages.settings import Operation


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainerConfig:
    """Ray Train with DeepSpeed, the same for everything that is trained."""

    workers: Operation[PositiveInt] = 2
    """Processes that share each step's batch; the batch must be a multiple of workers times accumulation."""
    min_workers: Operation[PositiveInt | None] = None
    """It goes on with as few as this when a cluster has no more for it; null: it waits for all."""
    use_gpu: Operation[bool] = False
    """A GPU for each worker."""
    zero_stage: Operation[Literal[0, 1, 2, 3]] = 1
    """DeepSpeed's ZeRO stage."""
    precision: Precision = "fp32"
    """Of the forward pass, by autocast; the weights stay fp32."""
    accumulation: Operation[PositiveInt] = 1
    """Micro batches that a worker's batch is cut into, one after the other: less memory."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: for matrices, with AdamW for the other weights; needs zero_stage 0."""
    learning_rate: PositiveFloat = 1e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    """Of the learning rate after the warm-up."""
    warmup_steps: NonNegativeInt = 20
    final_share: Share = 0.02
    """The share of the learning rate that is left at the end of the cosine."""
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.99
    """AdamW's; 0.999 forgets too slowly for runs of some hundred steps."""
    weight_decay: NonNegativeFloat = 0.01
    gradient_clip: PositiveFloat = 1.0
    ema_decay: Annotated[float, Ge(0), Lt(1)] | None = None
    """The exponential moving average of the weights is exported instead; null: off."""
    checkpoint_every: Operation[PositiveInt] = 100
    """Steps between two checkpoints."""
    keep_checkpoints: Operation[PositiveInt] = 2
    """Number of last checkpoints that are kept, besides the one with the lowest loss."""
    max_failures: Operation[NonNegativeInt] = 1
    """How often a training goes on after a worker has died, without a new checkpoint in between."""

    @model_validator(mode="after")
    def _fits_together(self) -> TrainerConfig:
        if problem := precision_problem(self.precision, self.use_gpu):
            raise ValueError(problem)
        if self.optimizer == "muon" and self.zero_stage != 0:
            raise ValueError(
                f"optimizer=muon needs whole matrices on each worker, which zero_stage={self.zero_stage} does not "
                "leave there; set zero_stage to 0, or optimizer to adamw"
            )
        if self.ema_decay is not None and self.zero_stage == 3:
            raise ValueError(
                "ema_decay needs whole weights on each worker, which zero_stage=3 does not leave there; set zero_stage "
                "to at most 2, or ema_decay to null"
            )
        return self

    def batch_problem(self, batch_size: int, section: str) -> str | None:
        """Why a step's batch cannot be shared out evenly among the workers and their micro batches; None: it can."""
        if batch_size % (self.workers * self.accumulation) == 0:
            return None
        return (
            f"must be a multiple of {section}.workers x {section}.accumulation = {self.workers} x {self.accumulation}, "
            f"not {batch_size}"
        )

    def worker_counts(self, batch_size: int) -> list[int]:
        """The numbers of workers that a training may have, the largest first: all, or fewer that can share a batch."""
        fewer = range(self.workers - 1, (self.min_workers or self.workers) - 1, -1)
        return [self.workers, *(count for count in fewer if batch_size % (count * self.accumulation) == 0)]
