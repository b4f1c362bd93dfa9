"""Reading the training plan, and refusing a plan that does not fit its data."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from stages.contract import StageError
from stages.data.datasets import PictureStore, write_part
from stages.data.plan import PlanPictures, PlanReader, check_plan
from stages.data.schemas import PLAN
from tests.support.tiny_plan import BATCH, STEPS, encoded_picture, filled, plan_row, write_tiny_plan


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_tiny_plan(folder)
    return folder


def pictures_of(data: Path) -> PlanPictures:
    samples = PictureStore(data / "filter" / "samples", "sample_id")
    return PlanPictures(samples, PictureStore(data / "multiview" / "frames", "frame_id"))


def test_plan_reader_gives_the_rows_of_a_step(data: Path) -> None:
    plan = PlanReader(data / "curriculum" / "plan")
    assert plan.steps == STEPS
    assert plan.batch_sizes() == {BATCH}
    for step in range(STEPS):
        expected = [plan_row(step, slot) for slot in range(BATCH)]
        assert [row.target_id for row in plan(step)] == [row["target_id"] for row in expected]
        assert [row.slot for row in plan(step)] == list(range(BATCH))


def test_plan_reader_starts_at_any_step_of_a_plan_with_several_parts(tmp_path: Path) -> None:
    for number, steps in enumerate([range(0, 4), range(4, 8), range(8, 9)]):
        rows = [plan_row(step, slot) for step in steps for slot in range(BATCH)]
        write_part(tmp_path / "plan", number, filled(PLAN, rows), PLAN)
    for step in (8, 3, 4, 7, 0):
        plan = pickle.loads(pickle.dumps(PlanReader(tmp_path / "plan")))
        assert [row.target_id for row in plan(step)] == [plan_row(step, slot)["target_id"] for slot in range(BATCH)]
        assert [row.slot for row in plan(8 - step)] == list(range(BATCH))
        assert plan.steps == 9
    assert plan.batch_sizes() == {BATCH}
    rows = [plan_row(9, slot) | {"reference_id": "a", "target_id": "a"} for slot in range(BATCH)]
    write_part(tmp_path / "own", 0, filled(PLAN, rows), PLAN)
    assert PlanReader(tmp_path / "own").references_are_targets
    assert not PlanReader(tmp_path / "plan").references_are_targets


def test_an_unknown_picture_of_the_plan_is_named(data: Path) -> None:
    samples = PictureStore(data / "filter" / "samples", "sample_id")
    frames = PictureStore(data / "multiview" / "frames", "frame_id")
    pictures = PlanPictures(samples, frames)
    assert pictures("sample-1") == encoded_picture(1)
    assert pictures("frame-2") == encoded_picture(102)
    with pytest.raises(StageError, match=r"picture sample-99 of the plan is neither in .*/samples nor in .*/frames"):
        pictures("sample-99")


def test_a_plan_that_fits_is_accepted(data: Path) -> None:
    check_plan(PlanReader(data / "curriculum" / "plan"), pictures_of(data))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            {"target_id": "sample-99"},
            r"^1 of 10 pictures of the plan, such as sample-99, are neither in .*/samples nor in",
        ),
        (
            {"reference_id": "gone"},
            r"^1 of 10 pictures of the plan, such as gone, are neither .*; run the stage curric",
        ),
        (
            {"source": "video"},
            r"/plan has the source 'video'; it must be image_text or multiview; run the stage curric",
        ),
        ({"step": 1}, r"/plan lacks step 4 and holds 8 of 9; run the stage curriculum again"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(change: dict[str, Any], match: str, data: Path, tmp_path: Path) -> None:
    """One row is changed in the second of three parts of the plan; step 4 has a single row."""
    for number, steps in enumerate([range(0, 4), range(4, 5), range(5, 9)]):
        rows = [plan_row(step, slot) for step in steps for slot in range(1 if step == 4 else BATCH)]
        if number == 1:
            rows = [row | change for row in rows]
        write_part(tmp_path / "plan", number, filled(PLAN, rows), PLAN)
    with pytest.raises(StageError, match=match):
        check_plan(PlanReader(tmp_path / "plan"), pictures_of(data))


@pytest.mark.parametrize("side", ["height", "width"])
def test_a_step_whose_targets_differ_in_size_is_refused(side: str, data: Path, tmp_path: Path) -> None:
    """A batch has one shape; steps may differ."""
    sized = [plan_row(step, slot) | {side: 32 if step == 1 else 64} for step in range(STEPS) for slot in range(BATCH)]
    write_part(tmp_path / "plan", 0, filled(PLAN, sized), PLAN)
    check_plan(PlanReader(tmp_path / "plan"), pictures_of(data))
    mixed = [row | ({side: 48} if (row["step"], row["slot"]) == (4, 2) else {}) for row in sized]
    write_part(tmp_path / "mixed", 0, filled(PLAN, mixed), PLAN)
    with pytest.raises(StageError, match=r"/mixed has targets of different sizes in step 4; run the stage curriculum"):
        check_plan(PlanReader(tmp_path / "mixed"), pictures_of(data))


def test_a_plan_that_lacks_a_part_is_refused(data: Path, tmp_path: Path) -> None:
    for number, steps in enumerate([range(0, 2), range(2, 5), range(5, STEPS)]):
        rows = [plan_row(step, slot) for step in steps for slot in range(BATCH)]
        write_part(tmp_path / "plan", number, filled(PLAN, rows), PLAN)
    for part, step in (("part-00001.parquet", 2), ("part-00000.parquet", 0)):
        shutil.copytree(tmp_path / "plan", tmp_path / part)
        (tmp_path / part / part).unlink()
        with pytest.raises(StageError, match=rf"lacks step {step} and holds \d of {STEPS}; run the stage curriculum"):
            check_plan(PlanReader(tmp_path / part), pictures_of(data))
