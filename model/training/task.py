"""What a training problem looks like to the engine that runs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray
from torch import Tensor, nn

#: What a `Feed` has prepared, by name. The arrays may be read-only.
Prepared = Mapping[str, NDArray[Any]]


class TrainingTask(Protocol):
    """One training problem, independent of the engine (optimiser, precision, processes) that runs it.

    A task is a picklable dataclass of configurations and paths; it loads what it needs in `module`, once a worker.
    Everything random in it is a function of (step, rank, world): a resumed run repeats no sample and skips none.
    A checkpoint remembers its plain fields and is refused to a task with others; `field(compare=False)` is not looked
    at.
    """

    def module(self) -> nn.Module:
        """The module to train. Its `forward(batch)` returns scalars by name: "loss", and whatever is worth a curve.

        The loss is a mean over the examples, so that a batch can be cut into micro batches.
        """

    def batch(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        """This rank's share of the batch of `step` (counted from 0); the first tensor has a row for every example."""

    def after_step(self, module: nn.Module, step: int) -> None:
        """Called after the optimiser's step, for a moving average for instance; not after one that was skipped."""

    def export(self, module: nn.Module, folder: Path) -> None:
        """Write the trained weights (safetensors beside a config.json) into `folder`. Called on rank 0 only."""


class Feed(Protocol):
    """The part of a task's batches that needs no model: it reads, decodes and cuts what a step learns from.

    Picklable and light to load: it travels to processes that have no model and no accelerator.
    """

    def prepare(self, step: int, rank: int, world: int) -> Prepared:
        """This rank's share of `step`, a function of the arguments alone.

        Raises:
            ValueError: Something that the step needs is broken; names it and the step, in one sentence.
        """


@runtime_checkable
class FedTask(TrainingTask, Protocol):
    """A training problem with a `Feed`: its `batch` is `encode` of what `feed` prepares.

    An engine may so have the feed's part done ahead, in other processes.
    """

    @property
    def feed(self) -> Feed:
        """The part that needs no model."""

    def encode(self, prepared: Prepared, step: int, rank: int, world: int) -> dict[str, Tensor]:
        """The batch, as `TrainingTask.batch` gives it; `prepared` is `feed`'s for the same step, rank and world."""


@runtime_checkable
class SamplingTask(TrainingTask, Protocol):
    """A training problem that can show how far it is: pictures, or whatever else is worth a look.

    Attributes:
        sample_every: Steps between two looks; None: no look is wanted.
    """

    sample_every: int | None

    def sample(self, module: nn.Module, step: int, folder: Path) -> None:
        """Write into `folder`, which is there, what the module can do after `step` steps.

        Called on rank 0 only, so every parameter must be whole there: not with ZeRO stage 3. What follows in training
        does not depend on whether it was called.
        """


@runtime_checkable
class DescribedTask(Protocol):
    """A task that can say what a step was made of, for the message about a loss that is not finite."""

    def describe(self, step: int) -> str:
        """The samples of `step` over all ranks, such as "pictures 3f2a, 90bc"."""
