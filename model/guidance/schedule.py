"""In which denoising steps the subjects act, and where the masks of a step come from (RealCustom++ Sec. III-D1)."""

import math
from dataclasses import dataclass

from model.guidance.subjects import GenerationError


def acting_steps(steps: int, start: float, end: float) -> range:
    """The steps that lie wholly between two shares of all, as diffusers counts them for ControlNets.

    Raises:
        GenerationError: there are none.
    """
    acting = range(math.ceil(start * steps - 1e-6), math.floor(end * steps + 1e-6))
    if not 0 <= start < end <= 1 or not acting:
        raise GenerationError(f"from {start} to {end} of {steps} steps there is no step for the subjects to act in.")
    return acting


@dataclass(frozen=True)
class MaskSchedule:
    """Steps in which masks are found; later steps keep the last ones (early stop).

    Exact masks come from the guidance branch. The fast ones between them cost no pass of the UNet: they are
    extrapolated from its last two maps. Until there are two, the first masks are kept.
    """

    steps: range = range(0)
    guided: range = range(0)  # those of them in which the guidance branch runs

    @classmethod
    def of(cls, acting: range, mask_steps: int | None, every: int) -> "MaskSchedule":
        """Masks until T_stop (None: in all steps), exact in every k-th step.

        Subjects that begin to act later than T_stop get their masks in their first step.

        Raises:
            GenerationError: no step is left.
        """
        if mask_steps is not None and mask_steps < 1:
            raise GenerationError(
                f"mask_steps is {mask_steps}: the mask needs the guidance branch for at least 1 step."
            )
        if every < 1:
            raise GenerationError(f"mask_every is {every}: it must be at least 1.")
        steps = acting if mask_steps is None else acting[: max(1, mask_steps - acting.start)]
        return cls(steps, steps[::every])

    def extrapolates(self, step: int) -> bool:
        """Whether the masks of a step are the fast ones."""
        return step in self.steps and step not in self.guided and step > self.steps.start + self.guided.step

    def since_guided(self, step: int) -> float:
        """The share that a step has gone of the way from the last guided step to the next, in [0, 1)."""
        return (step - self.steps.start) % self.guided.step / self.guided.step
