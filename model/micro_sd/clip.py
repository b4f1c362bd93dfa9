"""Training problem of the contrastive text and image encoders.

The losses: the CLIP loss (Radford et al. 2021) on captions; zero-shot classification of category x background against
the world's own captions; the same for category and colour on object-centred crops (the object fills few patches of a
scene, and the caption loss alone leaves the category at chance level); dense classification of patches; and an identity
loss that attracts two views of one instance.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel, PreTrainedTokenizerFast

from model.micro_sd.architectures import IMAGE_SIZE, PATCH_SIZE, WIDTH, build_clip, build_tokenizer
from model.micro_sd.contrastive import instance_loss, object_mean
from model.micro_sd.data import crop_around, draw_indices, images_at, masks_at, open_pool
from model.micro_sd.recipe import PartRecipe
from model.microworld.backgrounds import BACKGROUNDS
from model.microworld.captions import GENERIC_NOUN, plain_caption
from model.microworld.instances import COLOUR_NAMES
from model.microworld.shapes import CATEGORIES, TRAINED_CATEGORIES
from model.training.precision import mixed_precision

_MAX_LOGIT_SCALE = 50.0


@functools.cache
def _tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def tokenize(captions: list[str]) -> Tensor:
    """Token ids (B, 16), padded with the end token."""
    tokenizer = _tokenizer()
    encoded = tokenizer(
        captions, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    ids: Tensor = encoded["input_ids"]
    return ids


def class_captions() -> tuple[list[str], list[str], list[str]]:
    """Captions of category x background (background fastest), of each category alone, of each colour alone."""
    scenes = [plain_caption(category, background) for category in TRAINED_CATEGORIES for background in BACKGROUNDS]
    categories = [f"a photo of a {category}" for category in TRAINED_CATEGORIES]
    colours = [f"a photo of {'an' if colour == 'orange' else 'a'} {colour} {GENERIC_NOUN}" for colour in COLOUR_NAMES]
    return scenes, categories, colours


def text_features(clip: CLIPModel, ids: Tensor) -> Tensor:
    """Unit embeddings (B, 128) of token ids (B, 16)."""
    return F.normalize(clip.text_projection(clip.text_model(input_ids=ids).pooler_output).float(), dim=-1)


def image_features(clip: CLIPModel, image: Tensor) -> Tensor:
    """Unit embeddings (B, 128) of images (B, 3, 64, 64) in [-1, 1]."""
    return F.normalize(clip.visual_projection(clip.vision_model(pixel_values=image).pooler_output).float(), dim=-1)


def _matching_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Symmetric cross-entropy; the target is uniform over equal captions."""
    same = (ids[:, None] == ids[None]).all(-1).float()
    share = same / same.sum(1, keepdim=True)
    return -0.5 * ((share * logits.log_softmax(1)).sum(1) + (share * logits.T.log_softmax(1)).sum(1)).mean()


class ClipModule(nn.Module):
    """CLIP with the losses, and the heads that only training needs."""

    class_ids: Tensor  # (scenes + categories + colours, 16)

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip
        self.identity_head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH))
        self.dense_head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, len(CATEGORIES) + len(BACKGROUNDS)))
        scenes, categories, colours = class_captions()
        self.splits = (len(scenes), len(categories), len(colours))
        self.register_buffer("class_ids", tokenize([*scenes, *categories, *colours]), persistent=False)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss and its parts of B scenes, their captions and crops of other views of the same objects."""
        scene, crop = batch["image"], batch["crop"]  # (B, 3, 64, 64)
        count = len(scene)
        with mixed_precision(scene.device):
            seen = self.clip.vision_model(pixel_values=torch.cat([scene, crop]))
            images = F.normalize(self.clip.visual_projection(seen.pooler_output).float(), dim=-1)
            texts = text_features(self.clip, torch.cat([batch["ids"], self.class_ids]))
        scale = self.clip.logit_scale.exp().clamp(max=_MAX_LOGIT_SCALE).float()
        captions, scenes, categories, colours = torch.split(texts, [count, *self.splits])
        losses = {
            "caption": _matching_loss(scale * images[:count] @ captions.T, batch["ids"]),
            "scene": F.cross_entropy(scale * images[:count] @ scenes.T, batch["scene"]),
            "category": F.cross_entropy(scale * images[count:] @ categories.T, batch["category"]),
            "colour": 0.5 * F.cross_entropy(scale * images[count:] @ colours.T, batch["colour"]),
        }
        patches = seen.last_hidden_state[:, 1:].float()
        cover = F.avg_pool2d(batch["cover"], PATCH_SIZE).flatten(1)  # (2 B, patches)
        losses["identity"] = self._identity_loss(patches, cover, batch["instance"])
        losses["dense"] = self._dense_loss(patches, cover, batch)
        return {"loss": sum(losses.values(), start=scale.new_zeros(())), **{k: v.detach() for k, v in losses.items()}}

    def _identity_loss(self, patches: Tensor, cover: Tensor, instance: Tensor) -> Tensor:
        """InfoNCE between the object's mean patch in the scene and in the other view's crop."""
        first, second = F.normalize(self.identity_head(object_mean(patches, cover)), dim=-1).chunk(2)
        return instance_loss(first, second, instance)

    def _dense_loss(self, patches: Tensor, cover: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Classify patches: the object's category where it covers the patch, else the background."""
        inside, outside = cover > 0.4, (cover < 0.1) & ~batch["crowded"][:, None]
        label = torch.where(inside, batch["dense_category"][:, None], len(CATEGORIES) + batch["background"][:, None])
        weight = inside.float() + 0.3 * outside.float()
        error = F.cross_entropy(self.dense_head(patches).transpose(1, 2), label, reduction="none")
        return (error * weight).sum() / weight.sum()


@dataclass(frozen=True, kw_only=True)
class ClipTask:
    """Contrastive training on pool scenes."""

    pool_folder: str
    recipe: PartRecipe

    def module(self) -> ClipModule:
        """Build both towers, initialised from the recipe's seed."""
        torch.manual_seed(self.recipe.seed)
        return ClipModule(build_clip())

    def batch(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        """Scenes with captions and classes; crops come from the partner scenes."""
        pool, recipe = open_pool(Path(self.pool_folder)), self.recipe
        index = draw_indices(recipe.seed, step, rank, world, len(pool), recipe.batch)
        other = pool.partner(index)
        mask, other_mask = masks_at(pool, index), masks_at(pool, other)
        view = torch.cat([images_at(pool, other), other_mask], 1)
        crop = crop_around(view, other_mask, IMAGE_SIZE)
        category, background = torch.from_numpy(pool.category[index]), torch.from_numpy(pool.background[index])
        other_background = torch.from_numpy(pool.background[other])
        crowded = torch.from_numpy(pool.neighbour[[*index, *other]] >= 0)
        trained = torch.tensor([TRAINED_CATEGORIES.index(CATEGORIES[i]) for i in category])
        return {
            "image": images_at(pool, index),
            "crop": crop[:, :3],
            "cover": torch.cat([mask, crop[:, 3:]]),
            "ids": tokenize([pool.captions[i] for i in index]),
            "scene": trained * len(BACKGROUNDS) + background,
            "category": trained,
            "colour": torch.from_numpy(pool.colour[index]),
            "instance": torch.from_numpy(index // 2),
            "dense_category": category.repeat(2),
            "background": torch.cat([background, other_background]),
            "crowded": crowded,
        }

    def after_step(self, module: nn.Module, step: int) -> None:
        """Do nothing."""

    def export(self, module: nn.Module, folder: Path) -> None:
        """Save the two towers in transformers' format."""
        assert isinstance(module, ClipModule)
        module.clip.float().cpu().eval().save_pretrained(folder)
