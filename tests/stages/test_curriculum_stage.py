"""The plan: its columns and their sources, reproducible rows, and errors of missing inputs and settings."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from model.training.curriculum import draw_step
from model.training.target_sizes import Phase, TargetSizes, aspect_buckets, nearest_buckets
from stages.contract import StageError
from stages.curriculum import stage as curriculum
from stages.curriculum.config import CurriculumConfig
from stages.curriculum.stage import plan_steps, recipe_of, summarize
from stages.data.datasets import read_dataset, write_dataset
from stages.data.schemas import FRAMES, PAIRS, PLAN, SAMPLES
from tests.support.contexts import make_context

SAMPLE_ROWS = pa.table(
    {
        "sample_id": [f"s{n}" for n in range(7)],
        "caption": [f"caption {n}" for n in range(7)],
        "height": [64] * 7,
        "width": [64] * 7,
        "original_height": [100 + n for n in range(7)],
        "original_width": [200 + n for n in range(7)],
    }
)
PAIR_ROWS = pa.table(
    {
        "reference_frame_id": ["r0", "r1", "r2"],
        "target_frame_id": ["t0", "t1", "t2"],
        "category": ["mug", "duck", "hat"],
        "height": [64, 64, 64],
        "width": [80, 81, 82],
    }
)
SQUARES = TargetSizes(phases=(Phase(0, 64),))


def test_rows_against_the_draws_one_by_one() -> None:
    recipe = recipe_of(CurriculumConfig(steps=20, batch_size=5))
    plan = plan_steps([3, 19, 0], SAMPLE_ROWS, PAIR_ROWS, recipe, SQUARES, seed=4)
    assert plan.schema.equals(PLAN)
    rows = iter(plan.to_pylist())
    for step in (3, 19, 0):
        draws = draw_step(recipe, step, 4)
        for slot in range(5):
            row = next(rows)
            if draws.source[slot] < recipe.multiview_share(step):
                index = int(draws.choice[slot] * 3)
                category = PAIR_ROWS["category"][index].as_py()
                expected = ("multiview", f"r{index}", f"t{index}", f"a photo of a {category}")
                original = (64, 80 + index)
            else:
                index = int(draws.choice[slot] * 7)
                expected = ("image_text", f"s{index}", f"s{index}", f"caption {index}")
                original = (100 + index, 200 + index)
            assert (row["step"], row["slot"]) == (step, slot)
            assert (row["source"], row["reference_id"], row["target_id"], row["caption"]) == expected
            places = [row[name] for name in ("crop_x", "crop_y", "target_crop_x", "target_crop_y")]
            assert places == pytest.approx(draws.crop_position[slot].tolist(), abs=1e-6)
            assert (row["height"], row["width"]) == (64, 64)
            assert (row["original_height"], row["original_width"]) == original
            assert row["crop_ratio"] == pytest.approx(draws.crop_ratio[slot], abs=1e-6)


SHAPES = [(64, 64), (64, 96), (96, 64), (64, 200), (48, 64), (90, 90), (1, 9)]  # height, width
MIXED_SAMPLES = SAMPLE_ROWS.set_column(2, "height", pa.array([shape[0] for shape in SHAPES])).set_column(
    3, "width", pa.array([shape[1] for shape in SHAPES])
)
BUCKETS = TargetSizes(phases=(Phase(0, 32), Phase(1200, 64)), bucket_multiple=8)


def test_a_step_has_one_bucket_of_its_phase_and_every_picture_its_own() -> None:
    recipe = recipe_of(CurriculumConfig(steps=2400, batch_size=3))
    steps = range(1100, 1300)
    rows = plan_steps(steps, MIXED_SAMPLES, PAIR_ROWS, recipe, BUCKETS, seed=4).to_pylist()
    shapes = {f"s{n}": shape for n, shape in enumerate(SHAPES)} | {f"t{n}": (64, 80 + n) for n in range(3)}
    seen = set()
    for number, step in enumerate(steps):
        of_step = rows[3 * number : 3 * number + 3]
        buckets = aspect_buckets(32 if step < 1200 else 64, 8)
        (size,) = {(row["height"], row["width"]) for row in of_step}
        for row in of_step:
            (nearest,) = nearest_buckets([shapes[row["target_id"]][0]], [shapes[row["target_id"]][1]], buckets)
            assert buckets[nearest] == size
            assert (row["target_crop_x"], row["target_crop_y"]) == (0.5, 0.5)
        seen.add(size)
    assert {(32, 32), (64, 64), (32, 128), (64, 64), (56, 72)} <= seen
    alone = plan_steps([1201], MIXED_SAMPLES, PAIR_ROWS, recipe, BUCKETS, seed=4).to_pylist()
    assert alone == rows[303:306]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_buckets_leave_every_example_as_likely(share: float) -> None:
    """A sample with (1 - share) / 7, a pair with share / 3."""
    recipe = recipe_of(CurriculumConfig(steps=2400, batch_size=4, multiview_probability=share))
    plan = plan_steps(range(1200, 2400), MIXED_SAMPLES, PAIR_ROWS, recipe, BUCKETS, seed=0)
    counts = Counter(plan["target_id"].to_pylist())
    expected = {f"s{n}": (1 - share) / 7 for n in range(7)} | {f"t{n}": share / 3 for n in range(3)}
    for name, likely in expected.items():
        assert counts[name] / 4800 == pytest.approx(likely, abs=0.06)


def test_a_pair_whose_frame_is_lost_is_named(tmp_path: Path) -> None:
    folders = inputs(tmp_path)
    frames = read_dataset(tmp_path / "multiview" / "frames", FRAMES)
    write_dataset(tmp_path / "multiview" / "frames", frames.filter(pc.field("frame_id") != "t1"), FRAMES)
    with pytest.raises(StageError, match=r"^frame t1 of a view pair is not in .*frames; run the stage multiview again"):
        curriculum.map_examples(folders, tmp_path)


def test_the_plan_of_realcustom() -> None:
    recipe = recipe_of(CurriculumConfig(steps=20, batch_size=5, multiview_probability=0.0, max_crop_ratio=1.0))
    plan = plan_steps([19], SAMPLE_ROWS, PAIR_ROWS, recipe, SQUARES, seed=4).to_pylist()
    assert all(row["source"] == "image_text" and row["reference_id"] == row["target_id"] for row in plan)
    assert [row["crop_ratio"] for row in plan] == [1.0] * 5


def test_the_summary_of_a_step_by_hand() -> None:
    plan = pa.table(
        {"source": ["multiview", "image_text", "image_text", "image_text"], "crop_ratio": [1.0, 3.0, 2.0, 1.5]}
    )
    assert summarize(plan, 2).to_pylist() == [
        {"multiview_share": 0.5, "mean_crop_ratio": 2.0, "crop_ratio": 1.0},
        {"multiview_share": 0.0, "mean_crop_ratio": 1.75, "crop_ratio": 2.0},
    ]


def inputs(folder: Path, samples: int = 4, pairs: int = 3) -> dict[str, Path]:
    sample: dict[str, Any] = {
        "url": "u", "picture": b"", "width": 1, "height": 1, "original_width": 1, "original_height": 1,
    }  # fmt: skip
    table = pa.Table.from_pylist(
        [sample | {"sample_id": f"s{n}", "caption": f"caption {n}"} for n in range(samples)], schema=SAMPLES
    )
    write_dataset(folder / "filter" / "samples", table, SAMPLES)
    of_pairs = [PAIR_ROWS.slice(n, 1).to_pylist()[0] for n in range(pairs)]
    frames = [
        {"frame_id": row[f"{role}_frame_id"], "category": "c", "instance": "i", "picture": b"", **size}
        for row in of_pairs
        for role, size in (
            ("reference", {"height": 7, "width": 9}),
            ("target", {n: row[n] for n in ("height", "width")}),
        )
    ]
    write_dataset(folder / "multiview" / "frames", pa.Table.from_pylist(frames, schema=FRAMES), FRAMES)
    rows = [
        {
            "pair_id": f"p{n}",
            "instance": "i",
            "angle_degrees": 30.0,
            **{name: row[name] for name in PAIR_ROWS.column_names[:3]},
        }
        for n, row in enumerate(of_pairs)
    ]
    write_dataset(folder / "multiview" / "pairs", pa.Table.from_pylist(rows, schema=PAIRS), PAIRS)
    return {"filter": folder / "filter", "multiview": folder / "multiview"}


@pytest.mark.slow
def test_the_stage_plans_every_step_in_order_and_always_the_same(tmp_path: Path, ray_cluster: str) -> None:
    changes = {"steps": 6000, "batch_size": 64, "max_crop_ratio": math.sqrt(10)}  # three parts
    context = make_context(tmp_path / "a", inputs=inputs(tmp_path), curriculum=changes)
    result = curriculum.run(context)
    plan = read_dataset(context.output / "plan", PLAN)
    assert result.rows == {"plan": 384_000}
    assert np.array_equal(plan["step"].to_numpy(), np.arange(384_000) // 64)
    assert np.array_equal(plan["slot"].to_numpy(), np.arange(384_000) % 64)
    assert result.metrics["multiview_share"] == pytest.approx(0.5, abs=0.01)
    assert result.metrics["mean_crop_ratio"] == pytest.approx(1 + (math.sqrt(10) - 1) / 4, abs=0.01)
    assert (context.output / "plan.png").stat().st_size > 1000
    # Any part of it is what a single process draws for these steps alone.
    recipe = recipe_of(context.config.curriculum)
    for first in (0, 2047, 5999):
        samples = read_dataset(tmp_path / "filter" / "samples", SAMPLES, SAMPLE_ROWS.column_names)
        alone = plan_steps([first], samples, PAIR_ROWS, recipe, SQUARES, context.config.run.seed)
        assert plan.slice(first * 64, 64) == alone
    other = make_context(tmp_path / "c", inputs=context.inputs, curriculum=changes, run={"seed": 1})
    curriculum.run(other)
    assert read_dataset(other.output / "plan", PLAN) != plan


@pytest.mark.parametrize(
    ("samples", "pairs", "message"), [(0, 3, "no samples from the stage filter"), (4, 0, "no view pairs")]
)
def test_without_samples_or_pairs_there_is_no_plan(samples: int, pairs: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=message):
        curriculum.run(make_context(tmp_path / "out", inputs=inputs(tmp_path, samples, pairs)))
