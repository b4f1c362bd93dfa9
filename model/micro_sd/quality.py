"""Measures a weights folder with the independent judge, on scenes and prompts that no model was trained on.

    python -m model.micro_sd.quality model/micro_sd/weights

About four minutes on two CPU cores with the default 512 prompts.
"""

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.micro_sd.attention import record_attention, use_default_attention
from model.micro_sd.clip import class_captions, image_features, text_features, tokenize
from model.micro_sd.weights import WEIGHTS_FOLDER, MicroStableDiffusion, load_micro_sd
from model.microworld.backgrounds import BACKGROUNDS
from model.microworld.captions import CaptionShares, plain_caption
from model.microworld.instances import COLOUR_NAMES, make_instance
from model.microworld.scenes import SceneBatch, SceneShares, draw_specs, render_scenes
from model.microworld.shapes import TRAINED_CATEGORIES

GUIDANCE = 5.0
STEPS = 25
TIMESTEPS = (1, 100, 300, 500, 700)  # noise levels at which cross-attention is measured
_CHUNK = 32
_PLAIN = SceneShares(
    two_objects=0.0,
    captions=CaptionShares(generic_noun=0, colour=0, pattern=0, size=0, pose=0, filler=0, usual_phrase=1.0),
)


@dataclass(frozen=True)
class PromptSet:
    """Prompts and the classes that they ask for, each (N,); colour is -1 where the prompt names none."""

    texts: list[str]
    category: Tensor
    background: Tensor
    colour: Tensor

    @classmethod
    def draw(cls, count: int, seed: int) -> "PromptSet":
        """Every category and background equally often; every other prompt names a colour."""
        rng = np.random.default_rng(seed)
        number = np.arange(count)
        category = number % len(TRAINED_CATEGORIES)
        background = (number // len(TRAINED_CATEGORIES) + 3 * category) % len(BACKGROUNDS)
        colour = np.where(rng.random(count) < 0.5, rng.integers(len(COLOUR_NAMES), size=count), -1)
        texts = [
            plain_caption(TRAINED_CATEGORIES[c], BACKGROUNDS[b], COLOUR_NAMES[k] if k >= 0 else None)
            for c, b, k in zip(category, background, colour, strict=True)
        ]
        return cls(texts, torch.from_numpy(category), torch.from_numpy(background), torch.from_numpy(colour))


def _chunks(count: int, size: int = _CHUNK) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def paint(
    models: MicroStableDiffusion, prompts: list[str], seed: int, guidance: float = GUIDANCE, steps: int = STEPS
) -> Tensor:
    """Pictures (N, 3, 64, 64) in [-1, 1]; each has its own noise, which does not depend on N."""
    pipeline = models.pipeline()
    noise = torch.stack(
        [torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(seed + i)) for i in range(len(prompts))]
    )
    pictures = [
        pipeline(
            prompts[part],
            latents=noise[part],
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=64,
            width=64,
            output_type="pt",
        ).images
        for part in _chunks(len(prompts))
    ]
    return torch.cat(pictures) * 2 - 1


def _share(right: Tensor) -> float:
    return float(right.float().mean())


@torch.no_grad()
def generation_quality(models: MicroStableDiffusion, count: int, seed: int = 0, steps: int = STEPS) -> dict[str, float]:
    """Shares of pictures in which the judge sees what the prompt asked for, and CLIP's text-image agreement."""
    prompts = PromptSet.draw(count, seed)
    pictures = paint(models, prompts.texts, seed, steps=steps)
    verdict = models.judge(pictures)
    named = prompts.colour >= 0
    agreement = image_features(models.clip, pictures) * text_features(models.clip, tokenize(prompts.texts))
    return {
        "background": _share(verdict.background.argmax(1) == prompts.background),
        "category": _share(verdict.category.argmax(1) == prompts.category),
        "colour": _share(verdict.colour.argmax(1)[named] == prompts.colour[named]),
        "clip_t": float(agreement.sum(1).mean()),
    }


def _images(scenes: SceneBatch) -> Tensor:
    return torch.from_numpy(scenes.image).permute(0, 3, 1, 2).float() / 127.5 - 1


def _cover(scenes: SceneBatch, cell: int) -> Tensor:
    """Share (N, 64 / cell, 64 / cell) of each cell that the subject covers."""
    return F.avg_pool2d(torch.from_numpy(scenes.mask)[:, None].float() / 255, cell)[:, 0]


def top_share_iou(maps: Tensor, truth: Tensor) -> float:
    """Mean intersection over union of each map's strongest cells, as many as truly covered, with the true cells."""
    values = []
    for row, true in zip(maps.flatten(1), truth.flatten(1), strict=True):
        chosen = torch.zeros_like(true)
        chosen[row.topk(int(true.sum())).indices] = True
        values.append(float((chosen & true).sum() / (chosen | true).sum()))
    return sum(values) / len(values)


@torch.no_grad()
def attention_quality(
    models: MicroStableDiffusion, count: int, seed: int = 17, timesteps: tuple[int, ...] = TIMESTEPS
) -> dict[str, float]:
    """IoU of the noun's 16 x 16 cross-attention, alone and times self-attention, with the mask of noised scenes."""
    scenes = render_scenes(draw_specs("test", count, seed, categories=TRAINED_CATEGORIES, shares=_PLAIN))
    captions = [spec.caption for spec in scenes.specs]
    ids = tokenize([caption.text for caption in captions])
    nouns = torch.tensor([models.tokenizer.convert_tokens_to_ids(caption.noun) for caption in captions])
    position = (ids == nouns[:, None]).int().argmax(1)
    states = models.text_encoder(input_ids=ids).last_hidden_state
    latent = models.vae.encode(_images(scenes)).latent_dist.mode() * models.vae.config.scaling_factor
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
    truth = _cover(scenes, 4) > 0.5
    record = record_attention(models.unet)
    result = {}
    for t in timesteps:
        models.unet(models.scheduler.add_noise(latent, noise, torch.tensor(t)), t, states)
        cross = record.cross_map(position, 16)
        result[f"cross_attention_iou_t{t}"] = top_share_iou(cross, truth)
        result[f"cross_times_self_iou_t{t}"] = top_share_iou(record.spread(cross), truth)
    use_default_attention(models.unet)
    return result


@torch.no_grad()
def encoder_quality(models: MicroStableDiffusion, count: int, seed: int = 5) -> dict[str, float]:
    """Reconstruction of unseen scenes, zero-shot classes, and retrieval of an instance among 100 from another view."""
    specs = draw_specs("test", count, seed, views=2, categories=TRAINED_CATEGORIES, shares=_PLAIN)
    scenes = render_scenes(specs)
    images = _images(scenes)
    restored = models.vae.decode(models.vae.encode(images).latent_dist.mode()).sample.clamp(-1, 1)
    pairs, _, _ = class_captions()
    best = (image_features(models.clip, images) @ text_features(models.clip, tokenize(pairs)).T).argmax(1)
    category = torch.tensor([TRAINED_CATEGORIES.index(spec.subject.instance.category) for spec in specs])
    background = torch.tensor([BACKGROUNDS.index(spec.ground.name) for spec in specs])
    colour = torch.tensor([COLOUR_NAMES.index(make_instance(spec.subject.instance).colour) for spec in specs])
    verdict = models.judge(images)
    predicted, true = verdict.mask[:, 0] > 0, _cover(scenes, 4) > 0.5
    overlap = (predicted & true).sum((1, 2)) / (predicted | true).sum((1, 2)).clamp(min=1)
    return {
        "vae_psnr": 10 * math.log10(4 / float(F.mse_loss(restored, images))),
        "clip_category": _share(best // len(BACKGROUNDS) == category),
        "clip_background": _share(best % len(BACKGROUNDS) == background),
        "clip_retrieval": _retrieval(_object_features(models, images, _cover(scenes, 8))),
        "judge_category": _share(verdict.category.argmax(1) == category),
        "judge_colour": _share(verdict.colour.argmax(1) == colour),
        "judge_background": _share(verdict.background.argmax(1) == background),
        "judge_mask_iou": float(overlap.mean()),
        "judge_retrieval": _retrieval(verdict.identity),
    }


def _object_features(models: MicroStableDiffusion, images: Tensor, cover: Tensor) -> Tensor:
    """Unit mean (N, 128) of the image encoder's patch states over the object."""
    states = models.clip.vision_model(pixel_values=images).last_hidden_state[:, 1:]
    weight = cover.flatten(1)[..., None]
    return F.normalize((states * weight).sum(1) / weight.sum(1), dim=-1)


def _retrieval(features: Tensor, gallery: int = 100) -> float:
    """Share of instances found by their other view among `gallery`; rows 2i and 2i + 1 show the same instance."""
    first, second = features[: 2 * gallery : 2], features[1 : 2 * gallery : 2]
    return _share((first @ second.T).argmax(1) == torch.arange(len(first)))


def measure_quality(folder: Path, prompts: int = 512, scenes: int = 512) -> dict[str, float]:
    """All measurements of a weights folder."""
    models = load_micro_sd(folder)
    measured = generation_quality(models, prompts)
    measured |= attention_quality(models, min(scenes, 128))
    return measured | encoder_quality(models, scenes)


def main() -> None:
    """Prints the measurements as JSON."""
    parser = argparse.ArgumentParser(description="Measure the quality of a micro Stable Diffusion weights folder.")
    parser.add_argument("folder", type=Path, nargs="?", default=WEIGHTS_FOLDER)
    parser.add_argument("--prompts", type=int, default=512, help="pictures painted and judged")
    arguments = parser.parse_args()
    print(json.dumps(measure_quality(arguments.folder, arguments.prompts), indent=2))


if __name__ == "__main__":
    main()
