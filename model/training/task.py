"""The interface between a training problem and the engine that runs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray
from torch import Tensor, nn

#: What a `Feed` has prepared, by name. The arrays may be read-only.
Prepared = Mapping[str, NDArray[Any]]


class TrainingTask(Protocol):
    """One training problem, independent of the engine (optimizer, precision, processes) that runs it.

    A task is a picklable dataclass of settings and paths; `module` loads the models, once in each worker. Everything
    random is a function of (step, rank, world): a resumed run repeats no sample and skips none. A checkpoint stores the
    task's plain fields, except those with `field(compare=False)`, and can be resumed only by a task with the same ones.
    """

    def module(self) -> nn.Module:
        """The module to train. Its `forward(batch)` returns scalars by name: "loss", and others that become curves.

        The loss is a mean over the examples, so that a batch can be split into micro batches.
        """

    def batch(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        """This rank's share of the batch of `step` (from 0); the first tensor has one row for each example."""

    def after_step(self, module: nn.Module, step: int) -> None:
        """Called after each step of the optimizer that is not skipped."""

    def export(self, module: nn.Module, folder: Path) -> None:
        """Write the trained weights (safetensors beside a config.json) into `folder`. Called on rank 0 only."""


class Feed(Protocol):
    """The part of a task's batches that needs no model: it reads, decodes and crops a step's pictures.

    Picklable and quick to import: it runs in processes without a model or an accelerator.
    """

    def prepare(self, step: int, rank: int, world: int) -> Prepared:
        """This rank's share of `step`, a function of the arguments alone.

        Raises:
            ModelError: an input of the step is damaged; names the input and the step.
        """


@runtime_checkable
class FedTask(TrainingTask, Protocol):
    """A training problem with a `Feed`: `batch` is `encode` of what `feed` prepares.

    An engine can run the feed ahead, in other processes.
    """

    @property
    def feed(self) -> Feed:
        """The part that needs no model."""

    def encode(self, prepared: Prepared, step: int, rank: int, world: int) -> dict[str, Tensor]:
        """The batch of `TrainingTask.batch`; `prepared` is the feed's for the same step, rank and world."""


@runtime_checkable
class SamplingTask(TrainingTask, Protocol):
    """A training problem that can show its progress in pictures.

    Attributes:
        sample_every: Steps between two calls of `sample`; None: no calls.
    """

    sample_every: int | None

    def sample(self, module: nn.Module, step: int, folder: Path) -> None:
        """Write pictures of what the module generates after `step` steps into `folder`, which exists.

        Called on rank 0 only, which must have all parameters: not with ZeRO stage 3. It does not affect the training.
        """


@runtime_checkable
class RatedTask(Protocol):
    """A task whose parameters do not all learn at the same rate."""

    def rates(self, module: nn.Module) -> Mapping[str, float]:
        """The factor of the learning rate by the parameter's name, where it is not 1."""


@runtime_checkable
class DescribedTask(Protocol):
    """A task that can describe a step, for the message about a loss that is not finite."""

    def describe(self, step: int) -> str:
        """The samples of `step` over all ranks, such as "pictures 3f2a, 90bc"."""
