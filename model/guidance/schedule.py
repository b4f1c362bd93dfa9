"""The denoising steps in which subjects take part, and those in which masks are found (RealCustom++ Sec. III-D1)."""

import math
from dataclasses import dataclass

from model.errors import GenerationError


def subject_steps(steps: int, start: float, end: float) -> range:
    """The steps that lie wholly between two shares of all steps, as diffusers counts them for ControlNets.

    Raises:
        GenerationError: there is no such step.
    """
    found = range(math.ceil(start * steps - 1e-6), math.floor(end * steps + 1e-6))
    if not 0 <= start < end <= 1 or not found:
        raise GenerationError(
            f"visual_guidance_start {start} and visual_guidance_end {end} leave the subjects none of {steps} steps."
        )
    return found


@dataclass(frozen=True)
class MaskSchedule:
    """The steps in which masks are found; later steps keep the last masks (early stop).

    In guided steps the guidance branch finds exact masks. In the steps between them the masks are extrapolated from the
    branch's last two maps, which needs no pass of the UNet; before there are two maps, the first masks are kept.
    """

    steps: range = range(0)
    guided: range = range(0)  # those of `steps` in which the guidance branch runs

    @classmethod
    def of(cls, subject_steps: range, mask_steps: int | None, every: int) -> "MaskSchedule":
        """Masks until T_stop (None: in all steps), exact in every k-th step.

        Args:
            subject_steps: the steps in which the subjects take part. If they start later than T_stop, masks are found
                in the first of them.
            mask_steps: T_stop; None: all steps.
            every: k.

        Raises:
            GenerationError: there is no step in which masks are found.
        """
        if mask_steps is not None and mask_steps < 1:
            raise GenerationError(f"mask_steps is {mask_steps}: masks need the guidance branch in at least 1 step.")
        if every < 1:
            raise GenerationError(f"mask_every is {every}: it must be at least 1.")
        last = subject_steps.stop if mask_steps is None else mask_steps
        steps = subject_steps[: max(1, last - subject_steps.start)]
        return cls(steps, steps[::every])

    def extrapolates(self, step: int) -> bool:
        """Whether the masks of a step are extrapolated."""
        return step in self.steps and step not in self.guided and step > self.steps.start + self.guided.step

    def since_guided(self, step: int) -> float:
        """How far a step is on the way from the last guided step to the next one, in [0, 1)."""
        return (step - self.steps.start) % self.guided.step / self.guided.step
