"""What a variant of `adapter_ablations` changes in the plan, the batch and the loss."""

from __future__ import annotations

from dataclasses import fields

import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from pipelines.config.loading import load_config
from tests.benchmarks.support.ablation_variants import (
    CHANGES_OF_DEFAULT_RUN,
    SINGLE_CHANGES,
    VARIANTS,
    Variant,
    biased_timesteps,
    changed_training,
    subject_weights,
)
from tests.benchmarks.support.graphed_step import GraphedStep
from tests.benchmarks.support.rendered_world import RenderedWorld, WorldSize, render_world

EVERY_TIMESTEP = torch.arange(1000)


def handmade_world() -> RenderedWorld:
    side = [64]
    sizes = dict.fromkeys(("height", "width", "original_height", "original_width"), 2 * side)
    samples = pa.table({"sample_id": ["scene-0", "scene-1"], "caption": ["a mug", "a duck"], **sizes})
    pairs = pa.table(
        {
            "reference_frame_id": ["view-0"],
            "target_frame_id": ["view-1"],
            "category": ["hat"],
            "height": side,
            "width": side,
        }
    )
    return RenderedWorld(pictures={}, samples=samples, pairs=pairs)


@pytest.mark.parametrize(
    "variant",
    [change for change in (*SINGLE_CHANGES, *CHANGES_OF_DEFAULT_RUN) if change.name != "noises_timesteps_loss"],
)
def test_a_single_change_is_one_setting(variant: Variant) -> None:
    own = [field.name for field in fields(Variant) if field.name not in ("name", "change")]
    changed = changed_training(variant.name)
    assert sum(getattr(variant, name) != getattr(changed, name) for name in own) == 1


def test_the_default_run_s_training_has_the_settings_of_the_default_run() -> None:
    config, variant = load_config("micro"), VARIANTS["default_run"]
    curriculum, training = config.curriculum, config.train_adapter
    assert (variant.steps, variant.batch_size) == (curriculum.steps, curriculum.batch_size)
    assert (variant.max_crop_ratio, variant.multiview) == (curriculum.max_crop_ratio, curriculum.multiview_probability)
    assert (variant.optimizer, variant.learning_rate) == (training.trainer.optimizer, training.trainer.learning_rate)
    assert (variant.noises, variant.cross_scale) == (training.noises_per_example, training.cross_scale)


def test_uniform_timesteps_stay() -> None:
    assert torch.equal(biased_timesteps(EVERY_TIMESTEP, 1.0, 1000), EVERY_TIMESTEP)


@pytest.mark.parametrize("power", [2.0, 3.0])
def test_biased_timesteps_have_the_distribution_t_to_the_power(power: float) -> None:
    found = biased_timesteps(EVERY_TIMESTEP, power, 1000)
    assert found.min() >= 0
    assert found.max() <= 999
    for bound in (250, 500, 900):
        assert (found < bound).float().mean() == pytest.approx((bound / 1000) ** power, abs=2e-3)


def test_weights_are_in_the_ratio_of_one_to_the_outside_s_with_a_mean_of_one() -> None:
    masks = torch.zeros(2, 8, 8)
    masks[0, :, :4] = 1
    weights = subject_weights(masks, (2, 2), 0.1)
    assert weights.shape == (2, 1, 2, 2)
    torch.testing.assert_close(weights[0, 0, :, 0] / weights[0, 0, :, 1], torch.tensor([10.0, 10.0]))
    torch.testing.assert_close(weights.mean((1, 2, 3)), torch.ones(2))
    torch.testing.assert_close(weights[1], torch.ones(1, 2, 2))  # no subject: all places alike
    assert torch.equal(subject_weights(masks, (2, 2), 1.0), torch.ones(2, 1, 2, 2))


def test_a_batch_with_noises_has_the_weights_of_its_examples() -> None:
    variant = VARIANTS["noises_timesteps_loss"]
    masks = torch.zeros(2, 8, 8)
    masks[1, :4] = 1
    batch = {"latents": torch.zeros(8, 4, 4, 4), "timesteps": torch.full((8,), 250), "noise": torch.ones(8)}
    found = variant.adjust(batch, masks, 1000)
    assert found["timesteps"].tolist() == [500] * 8
    assert torch.equal(found["weights"], subject_weights(masks, (4, 4), 0.1).repeat_interleave(4, dim=0))
    assert found["noise"] is batch["noise"]


@pytest.mark.parametrize(
    ("name", "largest", "view_pairs"),
    [
        ("standard", 10**0.5, 0.5),
        ("crops_1.5", 1.5, 0.5),
        ("no_crops", 1.0, 0.5),
        ("half_view_pairs", 10**0.5, 0.5),
        ("no_view_pairs", 10**0.5, 0.0),
    ],
)
def test_crops_and_view_pairs_of_a_plan(name: str, largest: float, view_pairs: float) -> None:
    recipe = VARIANTS[name].recipe(0.1)
    plan = handmade_world().plan(recipe, seed=0)
    assert (len(plan), {len(rows) for rows in plan}) == (70, {32})
    ratios = [row.crop_ratio for row in plan[-1]]
    assert 1 <= min(ratios) <= max(ratios) <= largest + 1e-6
    assert max(ratios) == pytest.approx(largest, rel=0.1)
    rows = [row for step in plan for row in step]
    assert sum(row.source == "multiview" for row in rows) / len(rows) == pytest.approx(view_pairs, abs=0.05)
    first_half = [row.source == "multiview" for step in plan[:35] for row in step]
    growing = VARIANTS[name].multiview is None
    assert sum(first_half) / len(first_half) == pytest.approx(view_pairs / 2 if growing else view_pairs, abs=0.06)


def test_ten_times_the_examples() -> None:
    examples = {
        name: VARIANTS[name].recipe(1).steps * VARIANTS[name].batch_size for name in ("standard", "examples_x10")
    }
    assert examples == {"standard": 22_400, "examples_x10": 224_000}


def test_a_rendered_world_has_all_ordered_pairs_of_views_and_the_targets_masks() -> None:
    world = render_world(WorldSize(scenes=400, objects=40, views=3).scaled(0.05), 0)
    assert world.samples.num_rows == 20
    assert world.pairs.num_rows == 2 * 6
    for pair in world.pairs.to_pylist():
        reference, target = (int(pair[key].removeprefix("view-")) for key in ("reference_frame_id", "target_frame_id"))
        assert reference != target
        assert reference // 3 == target // 3
    rows = world.plan(VARIANTS["half_view_pairs"].recipe(0.01), 0)[0]
    masks = world.masks(rows)
    assert masks.shape == (32, 64, 64)
    assert masks.max() == 1
    assert world.picture(rows[0].reference_id).startswith(b"\x89PNG")
    captions = {row.caption for row in rows if row.source == "image_text"}
    assert captions <= set(world.samples["caption"].to_pylist())


def test_a_step_without_a_graph_gives_the_gradient_of_its_batch_alone() -> None:
    weight = nn.Parameter(torch.tensor([2.0]))

    def loss(batch: dict[str, Tensor]) -> Tensor:
        return (weight * batch["x"]).sum()

    step = GraphedStep(loss, [weight], {"x": torch.zeros(2)})
    for values in ([1.0, 2.0], [5.0, 5.0]):
        assert step({"x": torch.tensor(values)}).item() == 2 * sum(values)
        assert weight.grad is not None
        assert weight.grad.item() == sum(values)
