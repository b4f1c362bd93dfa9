"""Training problem of the autoencoder: multi-scale reconstruction with a small KL term, whitened latents."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from model.micro_sd.architectures import build_vae
from model.micro_sd.data import draw_indices, images_at, open_pool, seeded_generator
from model.micro_sd.recipe import PartRecipe, VaeLoss
from model.training.precision import mixed_precision

_WHITENING_SCENES = 512


def _gradient_error(first: Tensor, second: Tensor) -> Tensor:
    """Mean absolute difference of the horizontal and vertical image gradients."""
    horizontal = F.l1_loss(first.diff(dim=-1), second.diff(dim=-1))
    return horizontal + F.l1_loss(first.diff(dim=-2), second.diff(dim=-2))


class VaeModule(nn.Module):
    """An autoencoder with its loss."""

    def __init__(self, vae: AutoencoderKL, weights: VaeLoss) -> None:
        super().__init__()
        self.vae = vae
        self.weights = weights

    def reconstruction_loss(self, output: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """The multi-scale loss, and the squared error for the log."""
        squared = F.mse_loss(output, image)
        coarse = squared.new_zeros(())
        for k in (2, 4, 8):
            coarse = coarse + F.mse_loss(F.avg_pool2d(output, k), F.avg_pool2d(image, k))
        w = self.weights
        loss = F.l1_loss(output, image) + w.squared * squared + w.coarse * coarse
        return loss + w.gradient * _gradient_error(output, image), squared.detach()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss of the reconstruction from a sampled latent, and the KL term."""
        image = batch["image"]  # (B, 3, H, W) in [-1, 1]
        with mixed_precision(image.device):
            posterior = self.vae.encode(image).latent_dist
            latent = posterior.mean + posterior.std * batch["noise"]
            output = self.vae.decode(latent).sample.float()
        loss, squared = self.reconstruction_loss(output, image)
        kl = posterior.kl().float().mean() / batch["noise"][0].numel()
        return {"loss": loss + self.weights.kl * kl, "squared": squared, "kl": kl.detach()}


@torch.no_grad()
def fold_whitening(vae: AutoencoderKL, images: Tensor) -> None:
    """Rescale the 1 x 1 convolutions around the latent to mean 0 and variance 1 by channel; outputs stay the same."""
    latent = torch.cat([vae.encode(chunk).latent_dist.mode() for chunk in torch.split(images, 64)])
    mean, std = latent.mean((0, 2, 3)), latent.std((0, 2, 3))
    before, after, channels = vae.quant_conv, vae.post_quant_conv, len(mean)
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight *= std.view(1, -1, 1, 1)
    before.bias[:channels] = (before.bias[:channels] - mean) / std
    before.weight[:channels] /= std.view(-1, 1, 1, 1)
    before.bias[channels:] -= 2 * std.log()  # the log variance moves with the scale


@dataclass(frozen=True, kw_only=True)
class VaeTask:
    """Autoencoder training on pool scenes."""

    pool_folder: str
    recipe: PartRecipe
    loss: VaeLoss

    def module(self) -> VaeModule:
        """Build an autoencoder, initialised from the recipe's seed."""
        torch.manual_seed(self.recipe.seed)
        return VaeModule(build_vae(), self.loss)

    def batch(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        """Pictures and the noise that samples their latents."""
        pool, recipe = open_pool(Path(self.pool_folder)), self.recipe
        index = draw_indices(recipe.seed, step, rank, world, len(pool), recipe.batch)
        generator = seeded_generator(recipe.seed, step, rank)
        image = images_at(pool, index)
        latent_size = image.shape[-1] // 4
        return {"image": image, "noise": torch.randn(len(index), 4, latent_size, latent_size, generator=generator)}

    def after_step(self, module: nn.Module, step: int) -> None:
        """Do nothing."""

    def export(self, module: nn.Module, folder: Path) -> None:
        """Save the whitened autoencoder in diffusers' format."""
        assert isinstance(module, VaeModule)
        vae = module.vae.float().cpu().eval()
        pool = open_pool(Path(self.pool_folder))
        fold_whitening(vae, images_at(pool, np.arange(min(_WHITENING_SCENES, len(pool)))))
        vae.save_pretrained(folder)
