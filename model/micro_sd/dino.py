"""Training problem of the second image encoder (this world's DINO): instance discrimination.

It uses no captions or classes, only pairs of pictures of one instance and the masks of the object: two views of one
instance, with different backgrounds and light, attract each other and repel all others (InfoNCE, van den Oord et al.
2018; instances as classes, Wu et al. 2018). The loss applies to the class token and to the mean patch over the object,
so that the features of the whole picture and of its patches identify the instance.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Dinov2Model

from model.micro_sd.architectures import IMAGE_SIZE, PATCH_SIZE, build_dino
from model.micro_sd.contrastive import instance_loss, object_features
from model.micro_sd.data import crop_around, draw_indices, images_at, masks_at, open_pool, seeded_generator
from model.micro_sd.recipe import PartRecipe
from model.training.precision import mixed_precision

_NOISE = 0.05  # standard deviation at most; pictures lie in [-1, 1]


class DinoModule(nn.Module):
    """Encoder with its losses."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = build_dino()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss and its parts; rows i and B + i of `image` (2 B, 3, 64, 64) show the same instance."""
        image, cover = batch["image"], F.avg_pool2d(batch["cover"], PATCH_SIZE).flatten(1)
        with mixed_precision(image.device):
            states = self.encoder(pixel_values=image).last_hidden_state.float()  # (2 B, 1 + n, c)
        whole, other_whole = F.normalize(states[:, 0], dim=-1).chunk(2)
        part, other_part = object_features(states[:, 1:], cover).chunk(2)
        losses = {
            "whole": instance_loss(whole, other_whole, batch["instance"]),
            "object": instance_loss(part, other_part, batch["instance"]),
        }
        loss = losses["whole"] + losses["object"]
        return {"loss": loss, **{name: value.detach() for name, value in losses.items()}}


@dataclass(frozen=True, kw_only=True)
class DinoTask:
    """Instance discrimination on pool scenes."""

    pool_folder: str
    recipe: PartRecipe

    def module(self) -> DinoModule:
        """Build an encoder, initialised from the recipe's seed."""
        torch.manual_seed(self.recipe.seed)
        return DinoModule()

    def batch(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        """Noisy scenes and their partners; every other partner is cropped to its object, like a close-up reference."""
        pool, recipe = open_pool(Path(self.pool_folder)), self.recipe
        index = draw_indices(recipe.seed, step, rank, world, len(pool), recipe.batch)
        partner = pool.partner(index)
        second = torch.cat([images_at(pool, partner), masks_at(pool, partner)], 1)
        second[::2] = crop_around(second[::2], second[::2, 3:], IMAGE_SIZE)
        image = torch.cat([images_at(pool, index), second[:, :3]])
        generator = seeded_generator(recipe.seed, step, rank)
        strength = _NOISE * torch.rand(len(image), 1, 1, 1, generator=generator)
        return {
            "image": image + strength * torch.randn(image.shape, generator=generator),
            "cover": torch.cat([masks_at(pool, index), second[:, 3:]]),
            "instance": torch.from_numpy(np.asarray(index // 2)),
        }

    def after_step(self, module: nn.Module, step: int) -> None:
        """Do nothing."""

    def export(self, module: nn.Module, folder: Path) -> None:
        """Save the encoder in transformers' format."""
        assert isinstance(module, DinoModule)
        encoder: Dinov2Model = module.encoder.float().cpu().eval()
        encoder.save_pretrained(folder)
