from __future__ import annotations

import pytest

from model.errors import GenerationError
from model.guidance.schedule import MaskSchedule, subject_steps


def test_subject_steps() -> None:
    assert subject_steps(25, 0.0, 1.0) == range(25)
    assert subject_steps(10, 0.25, 0.7) == range(3, 7)
    assert subject_steps(3, 1 / 3, 2 / 3) == range(1, 2)


@pytest.mark.parametrize("interval", [(0.5, 0.5), (0.6, 0.4), (-0.1, 1.0), (0.0, 1.1), (0.01, 0.09)])
def test_intervals_without_a_step(interval: tuple[float, float]) -> None:
    with pytest.raises(GenerationError, match=r"visual_guidance_start .* visual_guidance_end .* 10 steps"):
        subject_steps(10, *interval)


@pytest.mark.parametrize(
    ("acting", "mask_steps", "every", "steps", "guided", "extrapolated"),
    [
        (range(25), 12, 1, range(12), set(range(12)), {}),
        (range(25), 8, 2, range(8), {0, 2, 4, 6}, {3: 1 / 2, 5: 1 / 2, 7: 1 / 2}),
        (range(5, 25), 12, 3, range(5, 12), {5, 8, 11}, {9: 1 / 3, 10: 2 / 3}),
        (range(25), 5, 6, range(5), {0}, {}),
        (range(15, 25), 12, 1, range(15, 16), {15}, {}),
    ],
)
def test_mask_schedule(
    acting: range, mask_steps: int, every: int, steps: range, guided: set[int], extrapolated: dict[int, float]
) -> None:
    schedule = MaskSchedule.of(acting, mask_steps, every)
    assert (schedule.steps, set(schedule.guided)) == (steps, guided)
    found = {step: schedule.since_guided(step) for step in range(30) if schedule.extrapolates(step)}
    assert found == pytest.approx(extrapolated)


def test_schedules_without_a_step() -> None:
    with pytest.raises(GenerationError, match="mask_steps is 0"):
        MaskSchedule.of(range(25), 0, 1)
    with pytest.raises(GenerationError, match="mask_every is 0"):
        MaskSchedule.of(range(25), 12, 0)
