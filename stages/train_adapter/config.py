"""The settings of the stage `train_adapter`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal

from annotated_types import MinLen
from pydantic import model_validator
from pydantic.dataclasses import dataclass

from model.methods.names import MethodName
from model.settings import STRICT, NonNegativeInt, PositiveFloat, PositiveInt, Share
from stages.settings import Operation, Template
from stages.training.config import TrainerConfig

#: What a method brings with it when it is chosen: values by dotted key. An explicit setting wins.
METHOD_DEFAULTS: Mapping[MethodName, Mapping[str, Any]] = {
    "realcustom++": {},
    "realcustom": {
        "curriculum.multiview_probability": 0.0,
        "curriculum.max_crop_ratio": 1.0,
        "inference.mask_steps": None,
        "inference.mask_cross_downscales": [1, 2, 4],
        "inference.mask_self_downscales": [],
    },
}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainAdapterConfig:
    """What an adapter is trained on the plan for: RealCustom (Sec. 3.2) or RealCustom++ (Sec. III-C)."""

    trainer: TrainerConfig = field(
        default_factory=lambda: TrainerConfig(optimizer="muon", zero_stage=0, learning_rate=1e-2)
    )
    data_workers: Operation[NonNegativeInt] = 1
    """Processes that read, decode and cut pictures, for each of the trainer's workers; 0: the worker itself."""
    method: MethodName = "realcustom++"
    """realcustom brings its own defaults for curriculum and inference; see the end of this page."""
    cross_layer: Literal["concat", "add"] | None = "concat"
    """RealCustom++: how the shallow features join the deep ones (Eq. 9; Table VIII); null: not at all."""
    cross_scale: Literal["concat", "add"] | None = "add"
    """RealCustom++: how the high-resolution features join the deep ones (Eq. 9; Table IX); null: not at all."""
    score_fusion: Literal["scheduled", "textual", "visual", "mean"] | None = "scheduled"
    """RealCustom: how the scores of the image tokens become one (Eq. 8; Table 3); null: no scores, all tokens."""
    sample_every: Operation[PositiveInt | None] = 110
    """Steps between two sets of sample pictures; null: none."""
    sample_prompts: Operation[Annotated[list[Template], MinLen(1)]] = field(
        default_factory=lambda: [
            "a photo of a {word} on the beach",
            "a photo of a {word} in the snow",
            "a photo of a {word} in the forest",
            "a photo of a {word} on a wooden floor",
        ]
    )
    """One sample picture each, of a subject of the view pairs; {word} is its category."""
    gradient_checkpointing: Operation[bool] = False
    """The UNet's activations are computed twice: less memory, more time."""
    min_snr_gamma: PositiveFloat | None = None
    """Weighs the loss by min(SNR, gamma); 5 is usual; null: all timesteps alike."""
    noises_per_example: PositiveInt = 8
    """Timesteps and noises drawn for each example, which share its encoded reference."""
    drop_text: Share = 0.05
    """Share of the examples without text."""
    drop_image: Share = 0.05
    """Share of the examples without reference."""
    drop_both: Share = 0.05
    """Share of the examples with neither."""

    @model_validator(mode="after")
    def _fits_together(self) -> TrainAdapterConfig:
        dropped = self.drop_text + self.drop_image + self.drop_both
        if dropped > 1 + 1e-9:
            raise ValueError(
                f"drop_text, drop_image and drop_both are {self.drop_text:g}, {self.drop_image:g} and "
                f"{self.drop_both:g}; together they may be 1 at most"
            )
        if self.sample_every is not None and self.trainer.zero_stage == 3:
            raise ValueError(
                "sample pictures need a whole adapter on one worker, and trainer.zero_stage=3 keeps it in pieces; set "
                "sample_every to null, or trainer.zero_stage to at most 2"
            )
        return self
