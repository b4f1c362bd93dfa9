"""Metrics compared with slow, obvious implementations, and the coverage of the confidence intervals."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.pictures.tensors import to_tensor
from model.scoring.metrics import (
    ClipScorer,
    DinoScorer,
    Interval,
    JudgeScorer,
    PictureInput,
    background_change,
    bootstrap_interval,
    bootstrap_ratio,
    largest_iou,
    mask_iou,
    subject_similarity,
)
from tests.support.hub_cache import add_to_hub_cache, use_hub_cache
from tests.support.random_backbone import write_random_backbone


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def clip(backbone: Path) -> ClipScorer:
    return ClipScorer.from_pretrained(backbone / "clip", backbone / "tokenizer")


@pytest.fixture(scope="module")
def judge(backbone: Path) -> JudgeScorer:
    return JudgeScorer.from_pretrained(backbone / "judge")


def random_pictures(count: int, height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(count))


def naive_cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    dot = sum(a * b for a, b in zip(first.tolist(), second.tolist(), strict=True))
    return float(dot / math.sqrt(sum(a * a for a in first.tolist()) * sum(b * b for b in second.tolist())))


def test_subject_similarity_is_the_mean_cosine_to_every_view() -> None:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(3, 5, generator=generator)
    views = [torch.randn(count, 5, generator=generator) for count in (1, 4, 2)]
    found = subject_similarity(
        torch.nn.functional.normalize(pictures, dim=-1), [torch.nn.functional.normalize(view, dim=-1) for view in views]
    )
    expected = [
        sum(naive_cosine(picture, view) for view in own) / len(own)
        for picture, own in zip(pictures, views, strict=True)
    ]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_background_change_counts_outside_the_subject_only() -> None:
    plain, pictures = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    subject = torch.zeros(2, 4, 4, dtype=torch.bool)
    subject[0, :2] = True
    pictures[0, :, :2] = 1.0  # inside: does not count
    pictures[0, :, 2:] = 0.25
    pictures[1, :, 0, 0] = 1.0  # one position of sixteen
    assert background_change(pictures, plain, subject).tolist() == pytest.approx([0.25, 1 / 16])


def test_a_picture_that_is_all_subject_has_no_background_change() -> None:
    everything = torch.ones(1, 4, 4, dtype=torch.bool)
    assert background_change(torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), everything).tolist() == [0.0]


def test_text_alignment_is_the_cosine_of_transformers_own_embeddings(clip: ClipScorer) -> None:
    prompts = ["a photo of a mug in the snow", "a photo of a toy on the beach"]
    pictures = random_pictures(2)
    tokens = clip.tokenizer(prompts, padding="max_length", max_length=16, return_tensors="pt")
    with torch.no_grad():
        output = clip.clip(input_ids=tokens["input_ids"], pixel_values=pictures * 2 - 1)
    expected = [naive_cosine(output.text_embeds[row], output.image_embeds[row]) for row in range(2)]
    assert clip.text_alignment(pictures, prompts).tolist() == pytest.approx(expected, abs=1e-5)


def test_hub_ids_and_revisions_without_a_network(
    backbone: Path, clip: ClipScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CLIP's repository has its tokenizer beside it."""
    whole = Path(shutil.copytree(backbone / "clip", tmp_path / "clip"))
    shutil.copytree(backbone / "tokenizer", whole, dirs_exist_ok=True)
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (whole / "preprocessor_config.json").write_text(json.dumps(half))
    cache = use_hub_cache(monkeypatch, tmp_path / "cache")
    for revision in ("main", "v1"):
        add_to_hub_cache(cache, "org/clip", whole, revision)
    pictures = random_pictures(1)
    expected = clip.text_alignment(pictures, ["a mug"])
    for hub_id in ("org/clip", "org/clip@v1"):
        assert torch.equal(ClipScorer.from_pretrained(hub_id).text_alignment(pictures, ["a mug"]), expected)


def test_prompts_beyond_the_text_encoder_are_cut(clip: ClipScorer) -> None:
    assert clip.embed_prompts(["a mug " * 100]).shape == (1, 128)


def test_pictures_are_resized_cut_and_normalised() -> None:
    picture_input = PictureInput(side=8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    wide = torch.zeros(1, 3, 16, 32)
    wide[..., 8:24] = 1.0  # the middle is white
    assert picture_input(wide)[..., 2:6, 2:6].tolist() == torch.full((1, 3, 4, 4), 2.0).tolist()
    assert picture_input(random_pictures(2, 8, 8)).shape == (2, 3, 8, 8)


def test_dino_embeds_the_class_token() -> None:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    encoder = Dinov2Model(Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28))
    scorer = DinoScorer(encoder, PictureInput(side=28, mean=(0.5,) * 3, std=(0.5,) * 3))
    pictures = random_pictures(2, 28, 28)
    with torch.no_grad():
        token = encoder(pixel_values=pictures * 2 - 1).last_hidden_state[:, 0]
    assert torch.allclose(scorer.embed_subjects(pictures), torch.nn.functional.normalize(token, dim=-1), atol=1e-6)


def test_background_probability_is_that_of_each_picture_s_own_background(judge: JudgeScorer) -> None:
    pictures = random_pictures(3)
    backgrounds = ["snow", "beach", "snow"]
    logits = judge.assess(pictures).background
    for row, name in enumerate(backgrounds):
        names = ["beach", "desert", "snow", "grass", "night", "street", "forest", "ocean", "brick", "wood"]
        exponentials = [math.exp(value) for value in logits[row].tolist()]
        expected = exponentials[names.index(name)] / sum(exponentials)
        assert judge.background_probability(pictures, backgrounds)[row].item() == pytest.approx(expected, rel=1e-4)


def test_appearances_are_the_judge_s_likeliest_answers(judge: JudgeScorer) -> None:
    pictures = random_pictures(4, 96, 96)
    verdict, found = judge.assess(pictures), judge.appearances(pictures)
    colours = ["red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black", "none"]
    patterns = ["plain", "striped", "spotted", "checkered", "dipped"]
    for row, appearance in enumerate(found):
        for names, logits, answer in (
            (patterns, verdict.pattern, appearance.pattern),
            (colours[:-1], verdict.colour, appearance.colour),
            (colours, verdict.second_colour, appearance.second_colour),
        ):
            assert logits.shape == (4, len(names))
            assert answer == names[max(range(len(names)), key=logits[row].tolist().__getitem__)]
        assert appearance.colours == {appearance.colour, appearance.second_colour}


def test_the_judge_takes_pictures_of_any_size(judge: JudgeScorer) -> None:
    pictures = random_pictures(2, 128, 96)
    assert judge.subject_region(pictures).shape == (2, 128, 96)
    assert judge.embed_subjects(pictures).norm(dim=-1).tolist() == pytest.approx([1, 1], abs=1e-5)


def test_a_region_of_everything_changes_nothing_and_a_region_leaves_the_rest_out(judge: JudgeScorer) -> None:
    pictures = random_pictures(3)
    everywhere = torch.ones(3, 16, 16, dtype=torch.bool)
    assert torch.allclose(judge.embed_regions(pictures, everywhere), judge.embed_subjects(pictures), atol=1e-5)
    left = everywhere.clone()
    left[:, :, 8:] = False
    cover = judge.assess(pictures).mask.sigmoid()
    cover[..., 8:] = 0
    with torch.no_grad():
        expected = judge.judge(pictures * 2 - 1, cover).identity
    assert torch.allclose(judge.embed_regions(pictures, left), expected, atol=1e-5)
    finer = left.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.allclose(judge.embed_regions(pictures, finer), expected, atol=1e-5)


def test_the_object_mask_is_where_the_judge_s_probability_exceeds_a_half(judge: JudgeScorer) -> None:
    pictures = random_pictures(2)
    logits = judge.assess(pictures).mask[:, 0]
    assert judge.object_mask(pictures, (16, 16)).tolist() == (logits > 0).tolist()
    assert judge.object_mask(pictures, (4, 4)).shape == (2, 4, 4)


def test_the_iou_of_masks_is_that_of_their_positions() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(4, 5, 6, generator=generator) * (torch.rand(4, 5, 6, generator=generator) > 0.6)
    truth = torch.rand(4, 5, 6, generator=generator) > 0.5
    for row in range(4):
        chosen, wanted = (
            {position for position in np.ndindex(5, 6) if one[position] > 0}
            for one in (masks[row].numpy(), truth[row].numpy())
        )
        assert mask_iou(masks, truth)[row].item() == pytest.approx(len(chosen & wanted) / len(chosen | wanted))
        nested = min(len(chosen), len(wanted)) / max(len(chosen), len(wanted))
        assert largest_iou(masks, truth)[row].item() == pytest.approx(nested)
    assert (mask_iou(masks, truth) <= largest_iou(masks, truth)).all()


def test_a_picture_and_its_tensor_agree(clip: ClipScorer) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8))
    first = clip.embed_subjects(to_tensor([picture]))
    assert naive_cosine(first[0], first[0]) == pytest.approx(1)


@given(
    values=st.lists(st.floats(-1, 1), min_size=1, max_size=30),
    groups=st.integers(1, 10),
    seed=st.integers(0, 1000),
)
@settings(max_examples=50, deadline=None)
def test_an_interval_holds_its_mean_and_stays_within_the_values(values: list[float], groups: int, seed: int) -> None:
    clusters = [str(number % groups) for number in range(len(values))]
    found = bootstrap_interval(values, clusters, resamples=200, seed=seed)
    assert found.mean == pytest.approx(sum(values) / len(values))
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
    assert found == bootstrap_interval(values, clusters, resamples=200, seed=seed)


def test_an_interval_is_shown_with_its_mean_first() -> None:
    shown = Interval(mean=0.514, low=-0.4, high=0.625)
    assert f"{shown:.2f}" == "0.51 (-0.40 to 0.62)"
    assert f"{shown:+.1f}" == "+0.5 (-0.4 to +0.6)"


def test_the_bootstrap_agrees_with_drawing_subjects_one_by_one() -> None:
    values, clusters = [0.1, 0.2, 0.9, 0.8, 0.5], ["a", "a", "b", "b", "c"]
    draws = np.random.default_rng(3).integers(3, size=(500, 3))
    means = []
    for draw in draws:
        pool = [
            value for index in draw for value, cluster in zip(values, clusters, strict=True) if cluster == "abc"[index]
        ]
        means.append(sum(pool) / len(pool))
    found = bootstrap_interval(values, clusters, resamples=500, seed=3)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))


def test_a_ratio_is_that_of_the_sums_of_the_drawn_subjects() -> None:
    above, below, clusters = [1.0, 2.0, 3.0], [2.0, 2.0, 8.0], ["a", "b", "b"]
    draws = np.random.default_rng(3).integers(2, size=(500, 2))
    sums = np.array([[1.0, 2.0], [5.0, 10.0]])  # of a and of b
    ratios = [sums[draw, 0].sum() / sums[draw, 1].sum() for draw in draws]
    found = bootstrap_ratio(above, below, clusters, resamples=500, seed=3)
    assert found.mean == pytest.approx(6 / 12)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])))


def test_95_of_100_intervals_hold_the_true_mean() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(300):
        subjects = rng.normal(0.5, 0.2, size=30)
        values = np.repeat(subjects, 3) + rng.normal(0, 0.05, size=90)
        found = bootstrap_interval(values, [str(n // 3) for n in range(90)], resamples=400, seed=trial)
        held += found.low <= 0.5 <= found.high
    assert 0.90 <= held / 300 <= 0.98


def test_resampling_pictures_instead_of_subjects_would_be_too_narrow() -> None:
    subjects = np.repeat(np.random.default_rng(1).normal(size=12), 5)
    whole = bootstrap_interval(subjects, [str(n // 5) for n in range(60)])
    single = bootstrap_interval(subjects, [str(n) for n in range(60)])
    assert single.high - single.low < 0.7 * (whole.high - whole.low)


def test_no_values_are_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval([], [])
