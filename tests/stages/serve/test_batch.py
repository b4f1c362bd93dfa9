"""Pictures that join the running batch and leave it, on a tiny real model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from model.painting.painter import RequestPainter
from stages.serve.batch import ContinuousBatch, Job, StepTimes, steps_until_done
from stages.serve.config import ServeConfig
from stages.serve.painting import (
    Accepted,
    Busy,
    Event,
    Painted,
    PaintersBusyError,
    PaintingTimeoutError,
    Preview,
    TooLong,
    paint_until,
)
from tests.support.local_painters import LocalPainters, noise_picture, tiny_painter
from tests.support.tiny_models import write_sd

CAT = {"picture": noise_picture(1), "word": "cat"}
ASKED = {"prompt": "a cat in a hat", "subjects": [CAT]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RequestPainter:
    return tiny_painter(write_sd(tmp_path_factory.mktemp("sd")))


def job(model: RequestPainter, **asked: Any) -> Job:
    return Job(index=0, request=model.prepare(**{**ASKED, **asked}).pictures[0], events=asyncio.Queue())


async def painted(of: Job) -> Painted:
    while not isinstance(event := await asyncio.wait_for(of.events.get(), 60), Painted):
        assert isinstance(event, Preview), event
    return event


def run(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return asyncio.run(work())


def test_a_picture_joins_the_batch_that_is_running(model: RequestPainter) -> None:
    async def work() -> tuple[Painted, Painted]:
        batch = ContinuousBatch(model, 4)
        first, second = (
            job(model, use_mask=False, **own) for own in ({"steps": 12, "previews": 2}, {"steps": 3, "seeds": [5]})
        )
        batch.add([first])
        assert isinstance(await first.events.get(), Preview)
        batch.add([second])
        done = await painted(second)
        assert first.running is not None
        assert not first.running.is_finished
        return await painted(first), done

    long, short = run(work)
    assert short.batch_size == 2
    assert 1 < long.batch_size < 2
    assert (long.steps, short.steps) == (12, 3)


def test_pictures_wait_for_a_place_in_their_order(model: RequestPainter) -> None:
    async def work() -> list[int]:
        batch = ContinuousBatch(model, 2)
        jobs = [job(model, seeds=[seed]) for seed in range(5)]
        batch.add(jobs)
        await asyncio.sleep(0)
        assert (batch.waiting, batch.free) == (3, 0)
        order: list[int] = []

        async def note(number: int) -> None:
            await painted(jobs[number])
            order.append(number)

        await asyncio.gather(*map(note, range(5)))
        assert (batch.waiting, batch.free) == (0, 2)
        return order

    assert run(work) == [0, 1, 2, 3, 4]


def test_a_picture_that_nobody_waits_for_leaves_at_the_next_step(model: RequestPainter) -> None:
    async def work() -> None:
        batch = ContinuousBatch(model, 1)
        gone, waiting, kept = job(model, steps=50, previews=3), job(model, steps=50), job(model)
        batch.add([gone, waiting, kept])
        await gone.events.get()
        batch.remove([gone, waiting])
        taken = gone.running.run.steps_taken
        await painted(kept)
        assert gone.running.run.steps_taken <= taken + 1
        assert waiting.running is None
        assert gone.events.empty()

    run(work)


def test_a_picture_that_cannot_be_painted_ends_alone(model: RequestPainter) -> None:
    async def work() -> None:
        batch = ContinuousBatch(model, 4)
        good, bad = job(model), job(model)
        bad.request = bad.request.__class__(**{**vars(bad.request), "size": (7, 7)})  # as `prepare` never lets it be
        batch.add([bad, good])
        assert isinstance(await bad.events.get(), Exception)
        await painted(good)

    run(work)


def test_a_step_that_fails_ends_its_pictures_and_not_the_server(
    model: RequestPainter, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        batch = ContinuousBatch(model, 4)
        with monkeypatch.context() as patch:
            patch.setattr(model.pipeline.backbone.unet, "forward", None)
            first = job(model)
            batch.add([first])
            assert isinstance(await first.events.get(), TypeError)
        second = job(model)
        batch.add([second])
        await painted(second)

    run(work)


def test_pictures_of_different_event_loops(model: RequestPainter) -> None:
    batch = ContinuousBatch(model, 4)

    async def leave() -> None:
        left = job(model, steps=50, previews=3)
        batch.add([left])
        await left.events.get()

    async def stay() -> None:
        kept = job(model)
        batch.add([kept])
        await painted(kept)

    run(leave)  # the loop is closed while its picture is still running
    run(stay)


def test_how_long_a_step_takes() -> None:
    now = 0.0
    times = StepTimes(clock=lambda: now)
    assert (times.expected(3), times.at_best(3)) == (0, 0)
    times.record(1, 9.0)  # the first one is slow
    times.record(1, 1.0)
    times.record(4, 2.0)
    assert [times.expected(pictures) for pictures in (1, 2, 3, 4, 8)] == [1, 1 * 2, 2, 2, 4]
    assert [times.at_best(pictures) for pictures in (1, 2, 3, 4, 8)] == [2 * 1 / 4, 1, 1, 1, 1]
    for _ in range(5):
        times.record(1, 3.0)
    assert times.expected(1) == 3
    now = 60.0
    assert (times.expected(1), times.at_best(1)) == (3, 0)  # a request is taken, and measured
    times.record(1, 40.0)  # a pause of the machine
    times.record(4, 1.0)
    assert (times.expected(1), times.at_best(1)) == (40, 1 / 4)


@pytest.mark.parametrize(
    ("size", "before", "added", "steps"),
    [
        (2, [], [3], 3),
        (2, [], [3, 3, 3], 6),
        (2, [900], [3], 3),  # beside a long one
        (2, [25, 25], [25], 50),  # and not 25 * 3 / 2
        (2, [10, 4, 8], [5], 15),  # 8 begins after 4, 5 after 10
        (8, [25] * 24, [25], 100),
        (1, [2, 3], [4, 1], 10),
    ],
)
def test_steps_until_pictures_are_done(size: int, before: list[int], added: list[int], steps: int) -> None:
    assert steps_until_done(size, before, added) == steps


async def first_event(painters: LocalPainters, seconds: float, **asked: Any) -> Event:
    events = painters.paint({**ASKED, **asked}, seconds)
    try:
        return await anext(events)
    finally:
        await events.aclose()


def test_a_request_that_cannot_be_painted_in_time_is_refused_at_once(model: RequestPainter) -> None:
    async def work() -> None:
        painters = LocalPainters(model, ServeConfig(max_batch_size=1, max_queued_requests=100))
        assert isinstance(await first_event(painters, 1e-6), Accepted)  # nothing is known yet
        start = time.monotonic()
        async for _ in paint_until(painters, ASKED, 60):
            pass
        seconds = time.monotonic() - start
        assert isinstance(await first_event(painters, 60), Accepted)
        assert await first_event(painters, 1e-6) == TooLong()
        with pytest.raises(PaintingTimeoutError):
            await anext(paint_until(painters, {**ASKED, "steps": 900}, 0.1))
        long = painters.paint({**ASKED, "steps": 900}, 600)
        await anext(long)
        own = 4 * seconds  # for three steps; 900 are before them
        busy = await first_event(painters, own)
        assert isinstance(busy, Busy)
        assert busy.seconds > own
        await long.aclose()
        assert isinstance(await first_event(painters, 60), Accepted)

    run(work)


def test_a_full_queue_refuses(model: RequestPainter) -> None:
    async def work() -> None:
        painters = LocalPainters(model, ServeConfig(max_batch_size=2, max_queued_requests=1))
        assert isinstance(await first_event(painters, 60, seeds=[0, 1, 2]), Accepted)
        assert isinstance(await first_event(painters, 60, seeds=[0, 1, 2, 3]), Busy)
        running = paint_until(painters, {**ASKED, "steps": 50, "seeds": [0, 1, 2]}, 60)
        await anext(running)
        with pytest.raises(PaintersBusyError):
            await anext(paint_until(painters, ASKED, 60))
        await running.aclose()
        assert isinstance(await first_event(painters, 60), Accepted)

    run(work)
