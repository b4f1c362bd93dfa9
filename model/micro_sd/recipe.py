"""Every constant of the base model's training; its hash shows whether shipped weights still belong to the code."""

import hashlib
import json
from dataclasses import asdict, field
from typing import Annotated

from annotated_types import Ge, Gt, Lt
from pydantic.dataclasses import dataclass

from model.microworld.pool_config import PoolConfig
from model.settings import STRICT, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Seed, Share


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PartRecipe:
    """Optimisation of one part: AdamW, linear warm-up, cosine decay to `final_share` of the learning rate."""

    steps: PositiveInt
    batch: PositiveInt
    """Over all workers."""
    lr: PositiveFloat
    """Learning rate."""
    warmup: NonNegativeInt
    """Steps."""
    beta2: Annotated[float, Ge(0), Lt(1)] = 0.99
    weight_decay: NonNegativeFloat
    final_share: Share = 0.02
    clip_norm: PositiveFloat = 1.0
    seed: Seed


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VaeLoss:
    """Weights of the VAE's loss; the absolute error has weight 1."""

    squared: NonNegativeFloat = 4.0
    coarse: NonNegativeFloat = 4.0
    """Squared error of the 2, 4 and 8 times pooled picture: keeps hues."""
    gradient: NonNegativeFloat = 0.5
    kl: NonNegativeFloat = 1e-3


@dataclass(frozen=True, kw_only=True, config=STRICT)
class UNetTraining:
    """Constants of diffusion training besides the optimiser."""

    caption_dropout: Share = 0.1
    ema_every: PositiveInt = 5
    """Steps between two updates of the moving average."""
    ema_share: Annotated[float, Gt(0), Lt(1)] = 0.02
    """Share of the new weights at each update."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Recipe:
    """How the shipped weights were made."""

    pool: PoolConfig = field(default_factory=lambda: PoolConfig(two_objects=0.35))
    judge_pool: PoolConfig = field(
        default_factory=lambda: PoolConfig(split="judge", count=49_152, seed=3, two_objects=0.3)
    )
    vae: PartRecipe = field(
        default_factory=lambda: PartRecipe(steps=6000, batch=12, lr=2e-3, warmup=50, weight_decay=1e-4, seed=101)
    )
    vae_loss: VaeLoss = field(default_factory=VaeLoss)
    clip: PartRecipe = field(
        default_factory=lambda: PartRecipe(
            steps=1400, batch=48, lr=1e-3, warmup=100, beta2=0.98, weight_decay=0.05, seed=102
        )
    )
    dino: PartRecipe = field(
        default_factory=lambda: PartRecipe(
            steps=900, batch=96, lr=1.5e-3, warmup=100, beta2=0.98, weight_decay=0.05, seed=107
        )
    )
    judge: PartRecipe = field(
        default_factory=lambda: PartRecipe(steps=2600, batch=48, lr=2e-3, warmup=50, weight_decay=0.02, seed=103)
    )
    unet: PartRecipe = field(
        default_factory=lambda: PartRecipe(steps=9600, batch=32, lr=1.2e-3, warmup=150, weight_decay=0.01, seed=104)
    )
    unet_training: UNetTraining = field(default_factory=UNetTraining)

    def digest(self) -> str:
        """SHA-256 over all constants."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
