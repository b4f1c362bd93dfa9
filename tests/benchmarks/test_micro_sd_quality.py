"""Floors for the quality of the shipped weights, far below the figures of the model card; the measures themselves."""

from collections import Counter

import pytest
import torch

from model.micro_sd.weights import MicroStableDiffusion, load_micro_sd
from model.microworld.appearance import PLAIN, visible_appearances
from model.microworld.backgrounds import BACKGROUNDS
from model.microworld.captions import MAX_WORDS
from model.microworld.scenes import SceneBatch, SceneShares, draw_specs, render_scenes
from model.microworld.shapes import TRAINED_CATEGORIES
from tests.benchmarks.micro_sd_quality import (
    appearance_agreement,
    attention_quality,
    encoder_quality,
    generation_quality,
    painted_attention_quality,
    top_share_iou,
    two_object_quality,
)
from tests.benchmarks.support.micro_sd_pictures import AppearancePrompts, PromptSet, paint, two_object_prompts

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def models() -> MicroStableDiffusion:
    return load_micro_sd()


def test_prompts_name_every_class_equally_often() -> None:
    prompts = PromptSet.draw(240, seed=0)
    pairs = set(zip(prompts.category.tolist(), prompts.background.tolist(), strict=True))
    assert len(pairs) == len(TRAINED_CATEGORIES) * len(BACKGROUNDS)
    assert 80 < int((prompts.colour >= 0).sum()) < 160


def test_appearance_prompts_name_every_pattern_equally_often_and_are_read_whole() -> None:
    prompts = AppearancePrompts.draw(80, seed=0)
    assert set(Counter(prompts.pattern).values()) == {20}
    for text, category, pattern, colours in zip(
        prompts.texts, prompts.category, prompts.pattern, prompts.colours, strict=True
    ):
        words = text.split()
        assert {category, pattern, *colours} <= set(words)
        assert len(words) <= MAX_WORDS


def test_real_scenes_agree_with_their_own_appearance_and_not_with_another_s(models: MicroStableDiffusion) -> None:
    scenes = patterned_scenes(48)
    seen = visible_appearances([spec.subject for spec in scenes.specs])
    own = AppearancePrompts(
        texts=[],
        category=[spec.subject.instance.category for spec in scenes.specs],
        pattern=[appearance.pattern for appearance in seen],
        colours=[appearance.colours for appearance in seen],
    )
    other = AppearancePrompts(
        texts=[],
        category=own.category[1:] + own.category[:1],
        pattern=own.pattern[1:] + own.pattern[:1],
        colours=own.colours[1:] + own.colours[:1],
    )
    pictures = torch.from_numpy(scenes.image).permute(0, 3, 1, 2).float() / 127.5 - 1
    agreement = appearance_agreement(models.judge, pictures, own)
    assert agreement.keys() == {f"named_appearance_{name}" for name in ("category", "pattern", "colours")}
    assert min(agreement.values()) > 0.6
    assert max(appearance_agreement(models.judge, pictures, other).values()) < 0.5


def patterned_scenes(count: int) -> SceneBatch:
    specs = draw_specs("test", 4 * count, seed=5, categories=TRAINED_CATEGORIES, shares=SceneShares(two_objects=0.0))
    seen = visible_appearances([spec.subject for spec in specs])
    return render_scenes([spec for spec, own in zip(specs, seen, strict=True) if own.pattern != PLAIN][:count])


def test_two_object_prompts_name_two_different_categories() -> None:
    texts, named = two_object_prompts(300)
    assert (named[:, 0] != named[:, 1]).all()
    assert len({tuple(pair) for pair in named.tolist()}) == len(TRAINED_CATEGORIES) * (len(TRAINED_CATEGORIES) - 1)
    for text, pair in zip(texts, named, strict=True):
        assert all(TRAINED_CATEGORIES[category] in text.split() for category in pair)


def test_iou_of_perfect_and_opposite_maps() -> None:
    truth = torch.zeros(2, 16, 16, dtype=torch.bool)
    truth[:, 4:8, 4:8] = True
    assert top_share_iou(truth.float(), truth) == 1
    assert top_share_iou(-truth.float(), truth) == 0


def test_a_picture_does_not_depend_on_its_batch(models: MicroStableDiffusion) -> None:
    prompts = ["a photo of a red ball on the beach", "a photo of a car in the snow"]
    together, alone = paint(models, prompts, seed=1, steps=2), paint(models, prompts[:1], seed=1, steps=2)
    assert torch.allclose(together[:1], alone, atol=1e-3)


def test_pictures_have_the_background_of_their_prompt(models: MicroStableDiffusion) -> None:
    assert generation_quality(models, 12, steps=8)["background"] > 0.8


def test_the_noun_s_attention_lies_on_the_object(models: MicroStableDiffusion) -> None:
    attention = attention_quality(models, 32, timesteps=(300,))
    assert attention["cross_attention_iou_t300"] > 0.5
    assert attention["cross_times_self_iou_t300"] > 0.6


def test_encoders_and_judge_generalise_to_unseen_instances(models: MicroStableDiffusion) -> None:
    encoders = encoder_quality(models, 80)
    assert encoders["vae_psnr"] > 23
    assert encoders["judge_background"] > 0.9
    assert encoders["judge_category"] > 0.8
    assert encoders["judge_mask_iou"] > 0.7
    assert encoders["judge_pattern_patterned"] > 0.4
    assert encoders["judge_colours_patterned"] > 0.4
    assert encoders["dino_retrieval"] > 0.8


def test_pictures_show_two_objects_and_the_judge_finds_both_in_real_scenes(models: MicroStableDiffusion) -> None:
    measured = two_object_quality(models, 8, steps=8)
    assert measured["two_objects"] > 0.2  # two of twelve by chance: 1 in 66
    assert measured["judge_two_objects"] > 0.7


def test_the_noun_s_attention_lies_on_the_object_during_generation(models: MicroStableDiffusion) -> None:
    assert painted_attention_quality(models, 6, timesteps=(300,), steps=8)["painted_cross_attention_iou_t300"] > 0.4
