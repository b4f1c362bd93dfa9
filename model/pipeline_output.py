"""What the pipeline returns."""

from dataclasses import dataclass, field

from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor


@dataclass
class RealCustomOutput(BaseOutput):
    """The result of a call of the pipeline."""

    images: list[Image.Image]  # B pictures
    masks: list[list[Tensor]]  # for each picture M_hat (S, G, G') of each step with new masks; empty without masks
    timings: dict[str, float]  # seconds: encode, guidance, generation, decode, total
    # With DCI, for each picture M_hat_a: downscale of a scale's grid -> (steps, G, G'), the mean over heads and layers.
    aggregation_masks: list[dict[int, Tensor]] = field(default_factory=list)
    timesteps: list[int] = field(default_factory=list)  # of the steps
    cut_off: list[str] = field(default_factory=list)  # for each picture the end of its prompt that is not read; ""
