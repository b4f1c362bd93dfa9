"""Every constant of the base model's training; its hash tells whether shipped weights still belong to the code."""

import hashlib
import json
from dataclasses import asdict, dataclass, field

from model.microworld.pool_config import PoolConfig


@dataclass(frozen=True, kw_only=True)
class PartRecipe:
    """Optimisation of one part: AdamW, linear warm-up, cosine decay to `final_share` of the learning rate."""

    steps: int
    batch: int  # over all workers
    lr: float
    warmup: int
    beta2: float = 0.99
    weight_decay: float
    final_share: float = 0.02
    clip_norm: float = 1.0
    seed: int


@dataclass(frozen=True, kw_only=True)
class VaeLoss:
    """Weights of the VAE's loss; the absolute error has weight 1."""

    squared: float = 4.0
    coarse: float = 4.0  # squared error of the 2, 4 and 8 times pooled picture: keeps hues
    gradient: float = 0.5
    kl: float = 1e-3


@dataclass(frozen=True, kw_only=True)
class UNetTraining:
    """Constants of diffusion training besides the optimiser."""

    caption_dropout: float = 0.1
    ema_every: int = 5  # steps
    ema_share: float = 0.02  # of the new weights at each update


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the shipped weights were made."""

    pool: PoolConfig = field(default_factory=lambda: PoolConfig(two_objects=0.35))
    judge_pool: PoolConfig = field(
        default_factory=lambda: PoolConfig(split="judge", count=24_576, seed=3, two_objects=0.3)
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
        default_factory=lambda: PartRecipe(steps=1300, batch=48, lr=2e-3, warmup=50, weight_decay=0.02, seed=103)
    )
    unet: PartRecipe = field(
        default_factory=lambda: PartRecipe(steps=9600, batch=32, lr=1.2e-3, warmup=150, weight_decay=0.01, seed=104)
    )
    unet_training: UNetTraining = field(default_factory=UNetTraining)

    def digest(self) -> str:
        """SHA-256 over all constants."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
