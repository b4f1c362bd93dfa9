"""Quality of the micro Stable Diffusion by the independent judge, on scenes and prompts that no model was trained on.

    python -m tests.benchmarks.micro_sd_quality                                # all figures of the model card
    python -m tests.benchmarks.micro_sd_quality --grid docs/micro_grid.png     # a picture of every class

Hardware and time: two cores; about six minutes with the default 512 prompts. Another weights folder than the shipped
one is an optional argument.
"""

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from model.micro_sd.architectures import PATCH_SIZE
from model.micro_sd.clip import class_captions, image_features, text_features, tokenize
from model.micro_sd.contrastive import object_features
from model.micro_sd.fingerprint import WeightsError
from model.micro_sd.judge import Judge
from model.micro_sd.weights import WEIGHTS_FOLDER, MicroStableDiffusion, load_micro_sd
from model.microworld.appearance import PLAIN, visible_appearances
from model.microworld.backgrounds import BACKGROUNDS
from model.microworld.captions import CaptionShares
from model.microworld.instances import COLOUR_NAMES, make_instance
from model.microworld.scenes import SceneBatch, SceneShares, draw_specs, render_scenes
from model.microworld.shapes import CATEGORIES, TRAINED_CATEGORIES
from model.scoring.metrics import JudgeScorer
from tests.benchmarks.support.attention_maps import record_attention, use_default_attention
from tests.benchmarks.support.command_line import benchmark_parser
from tests.benchmarks.support.micro_sd_pictures import (
    STEPS,
    AppearancePrompts,
    PromptSet,
    paint,
    paint_grid,
    two_object_prompts,
)

TIMESTEPS = (1, 100, 300, 500, 700)  # noise levels at which cross-attention is measured
_PLAIN = SceneShares(
    two_objects=0.0,
    captions=CaptionShares(generic_noun=0, colour=0, pattern=0, size=0, pose=0, filler=0, usual_phrase=1.0),
)
_PLAIN_PAIRS = dataclasses.replace(_PLAIN, two_objects=1.0)


def _share(right: Tensor) -> float:
    return float(right.float().mean())


@torch.no_grad()
def generation_quality(models: MicroStableDiffusion, count: int, seed: int = 0, steps: int = STEPS) -> dict[str, float]:
    """Shares of pictures in which the judge finds the classes of the prompt, and CLIP's text-image agreement."""
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


@torch.no_grad()
def named_appearance_quality(
    models: MicroStableDiffusion, count: int, seed: int = 0, steps: int = STEPS
) -> dict[str, float]:
    """Shares of pictures with the category, the pattern and both colours of prompts that name them all."""
    prompts = AppearancePrompts.draw(count, seed)
    return appearance_agreement(models.judge, paint(models, prompts.texts, seed, steps=steps), prompts)


@torch.no_grad()
def appearance_agreement(judge: Judge, pictures: Tensor, prompts: AppearancePrompts) -> dict[str, float]:
    """Shares of pictures (N, 3, H, W) in [-1, 1] in which the judge finds what the prompts name."""
    category = [TRAINED_CATEGORIES[index] for index in judge(pictures).category.argmax(1).tolist()]
    found = JudgeScorer(judge).appearances(pictures / 2 + 0.5)
    answers: dict[str, tuple[Sequence[object], Sequence[object]]] = {
        "category": (category, prompts.category),
        "pattern": ([own.pattern for own in found], prompts.pattern),
        "colours": ([own.colours for own in found], prompts.colours),
    }
    return {
        f"named_appearance_{name}": statistics.fmean(own == asked for own, asked in zip(seen, named, strict=True))
        for name, (seen, named) in answers.items()
    }


def _both_present(judge: Judge, pictures: Tensor, named: Tensor) -> tuple[float, float]:
    """Shares of pictures in which the judge finds both categories of `named` (N, 2).

    First: the two most probable of the twelve are the named ones. Second, a stricter measure for a cautious judge: each
    is more probably present than absent.
    """
    present = judge(pictures).present[:, [CATEGORIES.index(name) for name in TRAINED_CATEGORIES]]
    likeliest = present.topk(2, dim=1).indices.sort(1).values == named.sort(1).values
    return _share(likeliest.all(1)), _share((present > 0).gather(1, named).all(1))


@torch.no_grad()
def two_object_quality(models: MicroStableDiffusion, count: int, seed: int = 0, steps: int = STEPS) -> dict[str, float]:
    """Share of two-object prompts whose picture shows both, and the judge's share on real scenes of two objects."""
    texts, named = two_object_prompts(count)
    painted = _both_present(models.judge, paint(models, texts, seed, steps=steps), named)
    scenes = render_scenes(draw_specs("test", count, seed=23, categories=TRAINED_CATEGORIES, shares=_PLAIN_PAIRS))
    objects = [(spec.subject, spec.neighbour) for spec in scenes.specs]
    real = torch.tensor([[TRAINED_CATEGORIES.index(o.instance.category) for o in pair if o] for pair in objects])
    seen = _both_present(models.judge, _images(scenes), real)
    return {
        "two_objects": painted[0],
        "judge_two_objects": seen[0],
        "two_objects_above_zero": painted[1],
        "judge_two_objects_above_zero": seen[1],
    }


def _images(scenes: SceneBatch) -> Tensor:
    return torch.from_numpy(scenes.image).permute(0, 3, 1, 2).float() / 127.5 - 1


def _cover(scenes: SceneBatch, cell: int) -> Tensor:
    """Share (N, 64 / cell, 64 / cell) of each cell that the subject covers."""
    return F.avg_pool2d(torch.from_numpy(scenes.mask)[:, None].float() / 255, cell)[:, 0]


def top_share_iou(maps: Tensor, truth: Tensor) -> float:
    """Mean IoU of the covered cells with the same number of strongest cells of each map."""
    values = []
    for row, true in zip(maps.flatten(1), truth.flatten(1), strict=True):
        chosen = torch.zeros_like(true)
        chosen[row.topk(int(true.sum())).indices] = True
        values.append(float((chosen & true).sum() / (chosen | true).sum()))
    return sum(values) / len(values)


def _token_position(models: MicroStableDiffusion, ids: Tensor, words: list[str]) -> Tensor:
    """First position (N,) of each row's word in token ids (N, 16)."""
    tokens = torch.tensor([models.tokenizer.convert_tokens_to_ids(word) for word in words])
    return (ids == tokens[:, None]).int().argmax(1)


@torch.no_grad()
def attention_quality(
    models: MicroStableDiffusion, count: int, seed: int = 17, timesteps: tuple[int, ...] = TIMESTEPS
) -> dict[str, float]:
    """IoU of the noun's 16 x 16 cross-attention, alone and times self-attention, with the mask of noised scenes."""
    scenes = render_scenes(draw_specs("test", count, seed, categories=TRAINED_CATEGORIES, shares=_PLAIN))
    captions = [spec.caption for spec in scenes.specs]
    ids = tokenize([caption.text for caption in captions])
    position = _token_position(models, ids, [caption.noun for caption in captions])
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
def painted_attention_quality(
    models: MicroStableDiffusion,
    count: int,
    seed: int = 0,
    timesteps: tuple[int, ...] = (100, 300, 500),
    steps: int = STEPS,
) -> dict[str, float]:
    """The same IoU during generation, with the object that the judge finds in the finished picture."""
    prompts = PromptSet.draw(count, seed)
    named = [TRAINED_CATEGORIES[category] for category in prompts.category]
    position = _token_position(models, tokenize(prompts.texts), named)
    models.scheduler.set_timesteps(steps)
    nearest = {min(models.scheduler.timesteps.tolist(), key=lambda step: abs(step - t)): t for t in timesteps}
    record = record_attention(models.unet)
    maps: dict[int, list[Tensor]] = {t: [] for t in timesteps}

    def keep_map(step: int, part: slice) -> None:
        if step in nearest:
            both = record.cross_map(position[part].repeat(2), 16)  # unconditional rows come first
            maps[nearest[step]].append(both.chunk(2)[1])

    found = models.judge(paint(models, prompts.texts, seed, steps=steps, on_step=keep_map)).mask[:, 0] > 0
    use_default_attention(models.unet)
    seen = found.sum((1, 2)) > 0
    overlaps = {t: top_share_iou(torch.cat(rows)[seen], found[seen]) for t, rows in maps.items()}
    return {f"painted_cross_attention_iou_t{t}": overlap for t, overlap in overlaps.items()}


def seconds_per_picture(models: MicroStableDiffusion, repeats: int = 5) -> float:
    """Median time of one picture on all of torch's threads, after a warm-up."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        paint(models, ["a photo of a red mug on the beach"], seed=0)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


@torch.no_grad()
def encoder_quality(models: MicroStableDiffusion, count: int, seed: int = 5) -> dict[str, float]:
    """Reconstruction of unseen scenes, zero-shot classes, and retrieval of an instance among 100 by another view."""
    specs = draw_specs("test", count, seed, views=2, categories=TRAINED_CATEGORIES, shares=_PLAIN)
    scenes = render_scenes(specs)
    images = _images(scenes)
    restored = models.vae.decode(models.vae.encode(images).latent_dist.mode()).sample.clamp(-1, 1)
    pairs, _, _ = class_captions()
    best = (image_features(models.clip, images) @ text_features(models.clip, tokenize(pairs)).T).argmax(1)
    category = torch.tensor([TRAINED_CATEGORIES.index(spec.subject.instance.category) for spec in specs])
    background = torch.tensor([BACKGROUNDS.index(spec.background.name) for spec in specs])
    colour = torch.tensor([COLOUR_NAMES.index(make_instance(spec.subject.instance).colour) for spec in specs])
    cover = _cover(scenes, PATCH_SIZE).flatten(1)
    seen_by_clip, seen_by_dino = models.clip.vision_model(pixel_values=images), models.dino(pixel_values=images)
    verdict = models.judge(images)
    predicted, true = verdict.mask[:, 0] > 0, _cover(scenes, 4) > 0.5
    overlap = (predicted & true).sum((1, 2)) / (predicted | true).sum((1, 2)).clamp(min=1)
    return {
        "vae_psnr": 10 * math.log10(4 / float(F.mse_loss(restored, images))),
        "clip_category": _share(best // len(BACKGROUNDS) == category),
        "clip_background": _share(best % len(BACKGROUNDS) == background),
        "clip_retrieval": _retrieval(object_features(seen_by_clip.last_hidden_state[:, 1:], cover)),
        "dino_retrieval": _retrieval(object_features(seen_by_dino.last_hidden_state[:, 1:], cover)),
        "dino_whole_retrieval": _retrieval(F.normalize(seen_by_dino.pooler_output, dim=-1)),
        "judge_category": _share(verdict.category.argmax(1) == category),
        "judge_colour": _share(verdict.colour.argmax(1) == colour),
        **_appearance_quality(models.judge, scenes),
        "judge_background": _share(verdict.background.argmax(1) == background),
        "judge_mask_iou": float(overlap.mean()),
        "judge_retrieval": _retrieval(verdict.identity),
    }


def _appearance_quality(judge: Judge, scenes: SceneBatch) -> dict[str, float]:
    """Shares of scenes whose pattern and whose two colours the judge names, of patterned and of plain subjects."""
    truth = visible_appearances([spec.subject for spec in scenes.specs])
    found = JudgeScorer(judge).appearances(_images(scenes) / 2 + 0.5)
    same_pattern = torch.tensor([own.pattern == seen.pattern for own, seen in zip(truth, found, strict=True)])
    same_colours = torch.tensor([own.colours == seen.colours for own, seen in zip(truth, found, strict=True)])
    plain = torch.tensor([own.pattern == PLAIN for own in truth])
    return {
        f"judge_{answer}_{kind}": _share(same[rows])
        for kind, rows in (("patterned", ~plain), ("plain", plain))
        for answer, same in (("pattern", same_pattern), ("colours", same_colours))
    }


def _retrieval(features: Tensor, gallery: int = 100) -> float:
    """Share of instances found by their other view among `gallery`; rows 2i and 2i + 1 show the same instance."""
    first, second = features[: 2 * gallery : 2], features[1 : 2 * gallery : 2]
    return _share((first @ second.T).argmax(1) == torch.arange(len(first)))


def measure_quality(folder: Path, prompts: int = 512, scenes: int = 512) -> dict[str, float]:
    """Measure everything."""
    models = load_micro_sd(folder)
    measured = generation_quality(models, prompts)
    measured |= named_appearance_quality(models, prompts // 2)
    measured |= two_object_quality(models, prompts // 2)
    measured |= attention_quality(models, min(scenes, 128))
    measured |= painted_attention_quality(models, min(prompts, 128))
    measured |= encoder_quality(models, scenes)
    return measured | {"seconds_per_picture": seconds_per_picture(models)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the measurements as JSON, or write the grid."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=WEIGHTS_FOLDER)
    parser.add_argument("--prompts", type=int, default=512, help="pictures to generate")
    parser.add_argument("--grid", type=Path, help="write a PNG of every category with every background instead")
    options = parser.parse_args(arguments)
    try:
        if options.grid:
            paint_grid(load_micro_sd(options.folder)).save(options.grid)
        else:
            print(json.dumps(measure_quality(options.folder, options.prompts), indent=2))
    except WeightsError as error:
        raise SystemExit(f"{error}.") from error


if __name__ == "__main__":
    main()
