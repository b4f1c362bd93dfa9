from __future__ import annotations

import pytest

from stages.contract import StageError
from stages.training.elasticity import PATIENCE_SECONDS, check_room, fitting, wait_for_room


class Cluster:
    """Room that changes with time, which passes only when somebody sleeps."""

    def __init__(self, *rooms: tuple[float, int]) -> None:
        self.rooms, self.now, self.said = rooms, 0.0, list[int]()

    def room(self) -> int:
        return [room for since, room in self.rooms if since <= self.now][-1]

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def wait(self, counts: list[int], stopped_at: float = 10_000.0) -> int:
        return wait_for_room(
            counts,
            self.room,
            self.said.append,
            lambda: self.now >= stopped_at,
            clock=lambda: self.now,
            sleep=self.sleep,
        )


@pytest.mark.parametrize(
    ("rooms", "counts", "count", "waited"),
    [
        ([(0, 4)], [4], 4, 0),
        ([(0, 9)], [4, 2, 1], 4, 0),
        ([(0, 2), (30, 4)], [4], 4, 30),
        ([(0, 0), (3000, 4)], [4], 4, 3000),  # without min_workers it waits for all
        ([(0, 2)], [4, 2, 1], 2, PATIENCE_SECONDS),
        ([(0, 3)], [4, 2, 1], 2, PATIENCE_SECONDS),  # three cannot share its batch
        ([(0, 1)], [4, 2, 1], 1, PATIENCE_SECONDS),
        ([(0, 2), (20, 4)], [4, 2, 1], 4, 20),
        ([(0, 2), (20, 1)], [4, 2], None, None),  # too few, for ever
        ([(0, 1), (100, 2)], [4, 2], 2, 100),
        ([(0, 0), (100, 4)], [4, 2], 4, 100),
        ([(0, 2), (40, 0), (80, 2)], [4, 2], 2, 80),
    ],
)
def test_how_long_a_training_waits_and_with_how_many_it_starts(
    rooms: list[tuple[float, int]], counts: list[int], count: int | None, waited: float | None
) -> None:
    cluster = Cluster(*rooms)
    if count is None:
        with pytest.raises(StageError, match="stopped while it waited"):
            cluster.wait(counts)
        return
    assert cluster.wait(counts) == count
    assert cluster.now == waited
    assert bool(cluster.said) == (waited != 0)


def test_a_training_that_waits_can_be_stopped() -> None:
    cluster = Cluster((0, 0))
    with pytest.raises(StageError, match="stopped"):
        cluster.wait([2], stopped_at=10)
    assert cluster.now == 10


@pytest.mark.parametrize(("counts", "there", "expected"), [([4, 2], 3, 2), ([4, 2], 1, None), ([1], 0, None)])
def test_the_workers_that_fit(counts: list[int], there: int, expected: int | None) -> None:
    assert fitting(counts, there) == expected


@pytest.mark.parametrize(
    ("counts", "there", "kind", "words"),
    [
        ([8], 4, "GPU", ["a.trainer.workers=8", "8 GPUs", "has 4", "compute.workers", "at most 4"]),
        ([8], 0, "GPU", ["8 GPUs", "has 0", "compute.use_gpu to false"]),
        ([8, 4, 2], 1, "CPU", ["a.trainer.workers=8", "2 CPUs", "at most 1"]),
    ],
)
def test_a_local_ray_without_room_is_refused(counts: list[int], there: int, kind: str, words: list[str]) -> None:
    with pytest.raises(StageError) as caught:
        check_room(counts, there, kind, "a.trainer")
    assert all(word in str(caught.value) for word in words)
    check_room(counts, counts[-1], kind, "a.trainer")
