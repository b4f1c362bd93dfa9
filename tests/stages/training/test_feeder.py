"""The feeder against the same steps prepared in this process."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.state import list_actors

from model.training.adapter_examples import ExamplePictures, PlanRow
from model.training.task import Prepared
from stages.contract import StageError
from stages.training import feeder
from stages.training.feeder import _DataWorker, pack, stream, unpack
from tests.support.tiny_examples import NotedFeed, picture, rows

ARRAYS = st.sampled_from([np.uint8, np.bool_, np.float32, np.int64]).flatmap(
    lambda dtype: npst.arrays(dtype, npst.array_shapes(max_dims=4, max_side=5))
)


def make_feed(**changes: Any) -> ExamplePictures:
    settings: dict[str, Any] = {"rows": rows, "picture": picture, **changes}
    return ExamplePictures(reference_size=16, tiles=2, **settings)


def rows_with_a_broken_picture(step: int) -> list[PlanRow]:
    return [row._replace(target_id="broken") if (step, row.slot) == (7, 2) else row for row in rows(step)]


def assert_same(found: Prepared, expected: Prepared) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@given(st.lists(st.fixed_dictionaries({"a": ARRAYS, "b": ARRAYS}), min_size=1, max_size=4))
def test_unpacking_restores_what_was_packed(steps: list[Prepared]) -> None:
    for found, expected in zip(unpack(pack(steps)), steps, strict=True):
        assert_same(found, expected)
    broken = unpack(pack(steps, "the picture x is broken"))
    for expected in steps:
        assert_same(next(broken), expected)
    with pytest.raises(StageError, match=r"^the picture x is broken$"):
        next(broken)
    with pytest.raises(StageError, match=r"^at once$"):
        next(unpack(pack([], "at once")))


def test_data_workers_load_no_model_libraries() -> None:
    """Each training starts them, so their imports cost seconds and memory each time."""
    code = (
        "import sys, model.training.adapter_examples, stages.training.feeder, stages.data.plan; "
        "print([name for name in ('diffusers', 'transformers', 'deepspeed') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def picture_unless_broken(picture_id: str) -> bytes:
    if picture_id == "broken":
        raise StageError("frames is not a dataset; run the stage that writes it again.")
    return picture(picture_id)


def test_an_error_of_a_data_worker_arrives_as_a_sentence() -> None:
    feed = make_feed(rows=rows_with_a_broken_picture, picture=picture_unless_broken)
    steps = unpack(_DataWorker(feed, 0, 1)(pa.table({"first": [6], "end": [9]})))
    assert_same(next(steps), feed.prepare(6, 0, 1))
    with pytest.raises(StageError, match=r"^frames is not a dataset; run the stage that writes it again\.$"):
        next(steps)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps in a block, so that a few steps fill many."""
    monkeypatch.setattr(feeder, "_MAX_STEPS_PER_BLOCK", 2)


def data_workers(address: str) -> list[str]:
    """The living data workers of all streams."""
    actors = list_actors(address, filters=[("state", "!=", "DEAD")])
    return [actor.class_name for actor in actors if "_DataWorker" in actor.class_name]


def assert_none_left(address: str) -> None:
    deadline = time.monotonic() + 30
    while data_workers(address) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert data_workers(address) == []


@pytest.fixture
def no_cpus(ray_cluster: str) -> Iterator[str]:
    """All CPUs are taken, as training workers may have done."""
    group = placement_group([{"CPU": ray.cluster_resources()["CPU"]}])
    assert group.wait(60)
    yield ray_cluster
    remove_placement_group(group)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "rank", "world", "workers", "reference_is_target"),
    [(0, 0, 1, 1, False), (5, 1, 2, 2, False), (3, 3, 4, 1, True)],
)
def test_the_stream_is_what_this_process_prepares(
    first: int, rank: int, world: int, workers: int, reference_is_target: bool, small_blocks: None, no_cpus: str
) -> None:
    feed, steps = make_feed(reference_is_target=reference_is_target), range(first, 20)
    for step, found in zip(steps, stream(feed, steps, rank, world, workers=workers), strict=True):
        assert_same(found, feed.prepare(step, rank, world))
    assert_none_left(no_cpus)


@pytest.mark.slow
def test_a_broken_picture_is_named_when_its_step_is_due(ray_cluster: str, small_blocks: None) -> None:
    feed = make_feed(rows=rows_with_a_broken_picture)
    steps = stream(feed, range(2, 20), 0, 1, workers=1)
    for step in range(2, 7):
        assert_same(next(steps), feed.prepare(step, 0, 1))
    with pytest.raises(StageError, match=r"^step 7: picture broken of the plan: the picture is not a picture in a "):
        next(steps)
    assert_none_left(ray_cluster)


@pytest.mark.slow
def test_a_stream_prepares_a_few_steps_in_advance_and_ends_its_workers(
    ray_cluster: str, small_blocks: None, tmp_path: Path
) -> None:
    workers, taken = 2, 8
    steps = stream(NotedFeed(tmp_path), range(300), 0, 1, workers=workers)
    for step in range(taken):
        assert next(steps)["step"][0] == step
    assert len(data_workers(ray_cluster)) == workers
    time.sleep(2)
    ahead, begun = len(list(tmp_path.iterdir())) - taken, time.process_time()
    time.sleep(2)
    assert time.process_time() - begun < 0.5, "it waits without a pause"
    assert 0 < len(list(tmp_path.iterdir())) - taken == ahead <= 2 * (feeder._BLOCKS_PER_WORKER * workers + 3)
    steps.close()
    assert_none_left(ray_cluster)


def test_nothing_is_started_for_a_step_or_none(tmp_path: Path) -> None:
    assert list(stream(make_feed(), range(5, 5), 0, 1, workers=1)) == []
    (only,) = stream(make_feed(), range(5, 6), 0, 1, workers=1)
    assert_same(only, make_feed().prepare(5, 0, 1))
