"""Training problem of the diffusion model: velocity prediction on cached latents and text states."""

import copy
import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPModel

from model.micro_sd.architectures import build_scheduler, build_unet
from model.micro_sd.clip import tokenize
from model.micro_sd.data import draw_indices, images_at, open_pool, seeded_generator
from model.micro_sd.recipe import PartRecipe, UNetTraining
from model.training.precision import mixed_precision

_CHUNK = 256


@dataclass(frozen=True)
class LatentCache:
    """An encoded pool; text states are stored once per distinct caption, the empty caption first."""

    latent: NDArray[np.float16]  # (N, 4, 16, 16)
    caption: NDArray[np.int64]  # (N,) row of `states`
    states: NDArray[np.float16]  # (U, 16, 128)

    @classmethod
    def open(cls, folder: Path) -> "LatentCache":
        """Memory-map a cache that `encode_pool` wrote."""
        return cls(
            np.load(folder / "latent.npy", mmap_mode="r"),
            np.load(folder / "caption.npy"),
            np.load(folder / "states.npy", mmap_mode="r"),
        )


@functools.lru_cache(maxsize=2)
def _open_cache(folder: Path) -> LatentCache:
    return LatentCache.open(folder)


@torch.no_grad()
def encode_pool(pool_folder: Path, vae: AutoencoderKL, clip: CLIPModel, folder: Path) -> None:
    """Encode every scene of a pool, and write the cache into `folder`."""
    pool = open_pool(pool_folder)
    folder.mkdir(parents=True, exist_ok=True)
    texts = ["", *dict.fromkeys(pool.captions)]
    rows = {text: row for row, text in enumerate(texts)}
    np.save(folder / "caption.npy", np.array([rows[text] for text in pool.captions], dtype=np.int64))
    states = [
        clip.text_model(input_ids=tokenize(texts[start : start + _CHUNK])).last_hidden_state.half().numpy()
        for start in range(0, len(texts), _CHUNK)
    ]
    np.save(folder / "states.npy", np.concatenate(states))
    latents = []
    for start in range(0, len(pool), _CHUNK):
        image = images_at(pool, np.arange(start, min(start + _CHUNK, len(pool))))
        latent = vae.encode(image).latent_dist.mode()
        latents.append((latent * vae.config.scaling_factor).half().numpy())
    np.save(folder / "latent.npy", np.concatenate(latents))


class UNetModule(nn.Module):
    """A denoiser with its loss and its exponential moving average."""

    alphas_cumprod: Tensor  # (1000,)

    def __init__(self) -> None:
        super().__init__()
        self.unet = build_unet()
        self.average = copy.deepcopy(self.unet).requires_grad_(False)
        self.register_buffer("alphas_cumprod", build_scheduler().alphas_cumprod.clone(), persistent=False)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Velocity-prediction loss of B noised latents."""
        latent, noise, timestep = batch["latent"], batch["noise"], batch["timestep"]
        signal = self.alphas_cumprod[timestep].sqrt().view(-1, 1, 1, 1)
        sigma = (1 - self.alphas_cumprod[timestep]).sqrt().view(-1, 1, 1, 1)
        noisy = signal * latent + sigma * noise
        velocity = signal * noise - sigma * latent
        with mixed_precision(latent.device):
            predicted = self.unet(noisy, timestep, batch["states"]).sample
        return {"loss": F.mse_loss(predicted.float(), velocity)}

    @torch.no_grad()
    def update_average(self, share: float) -> None:
        """Move the average towards the current weights by `share`."""
        for mean, weight in zip(self.average.parameters(), self.unet.parameters(), strict=True):
            mean.lerp_(weight, share)


@dataclass(frozen=True, kw_only=True)
class UNetTask:
    """Diffusion training on an encoded pool."""

    cache_folder: str
    recipe: PartRecipe
    training: UNetTraining

    def module(self) -> UNetModule:
        """Build a denoiser, initialised from the recipe's seed."""
        torch.manual_seed(self.recipe.seed)
        return UNetModule()

    def batch(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        """Latents, text states, noise and timesteps; some captions are dropped for classifier-free guidance."""
        cache, recipe = _open_cache(Path(self.cache_folder)), self.recipe
        index = draw_indices(recipe.seed, step, rank, world, len(cache.latent), recipe.batch)
        generator = seeded_generator(recipe.seed, step, rank)
        latent = torch.from_numpy(cache.latent[index]).float()
        dropped = torch.rand(len(index), generator=generator) < self.training.caption_dropout
        caption = np.where(dropped.numpy(), 0, cache.caption[index])
        return {
            "latent": latent,
            "noise": torch.randn(latent.shape, generator=generator),
            "timestep": torch.randint(1000, (len(index),), generator=generator),
            "states": torch.from_numpy(cache.states[caption]).float(),
        }

    def after_step(self, module: nn.Module, step: int) -> None:
        """Update the moving average."""
        assert isinstance(module, UNetModule)
        if (step + 1) % self.training.ema_every == 0:
            module.update_average(self.training.ema_share)

    def export(self, module: nn.Module, folder: Path) -> None:
        """Save the averaged denoiser in diffusers' format."""
        assert isinstance(module, UNetModule)
        average: UNet2DConditionModel = module.average.float().cpu().eval()
        average.save_pretrained(folder)
