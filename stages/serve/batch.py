"""Continuous batching: pictures join the running batch and leave it between denoising steps.

This module imports nothing of `model`, as `stages.serve.served_model` explains.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from stages.serve.painting import Event, Painted, Preview

_LAST = 8  # measurements that count
_FORGET_SECONDS = 20.0


@dataclass(eq=False, kw_only=True)
class Job:
    """A picture to paint.

    Attributes:
        index: Of the picture in its request.
        request: A `model.painting.request.PictureRequest`.
        events: Gets `Preview`s and then `Painted`, or the exception that ended the painting.
        running: A `model.painting.running_picture.RunningPicture`; None before it has joined the batch.
        loop: The event loop that waits for `events`.
    """

    index: int
    request: Any
    events: asyncio.Queue[Event | Exception]
    running: Any = None
    previews: int = 0
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    @property
    def steps_left(self) -> int:
        """Denoising steps that are still to be taken."""
        taken: int = 0 if self.running is None else self.running.run.steps_taken
        return int(self.request.steps) - taken


@dataclass
class StepTimes:
    """How long a step takes, by the number of pictures that take it, from the last measurements of each number.

    Attributes:
        clock: Returns seconds.
    """

    clock: Callable[[], float] = time.monotonic
    _measured: dict[int, deque[tuple[float, float]]] = field(default_factory=dict)  # when, seconds

    def record(self, pictures: int, seconds: float) -> None:
        """Add a measurement."""
        self._measured.setdefault(pictures, deque(maxlen=_LAST)).append((self.clock(), seconds))

    def expected(self, pictures: int) -> float:
        """Seconds of a step of this many pictures; 0 before the first measurement.

        It is the median of the nearest number that was measured lately, or ever, and grows with the number.
        """
        known = self._lately() or self._since(-math.inf)
        if not known:
            return 0.0
        nearest = min(known, key=lambda number: abs(number - pictures))
        return statistics.median_low(known[nearest]) * max(1.0, pictures / nearest)

    def at_best(self, pictures: int) -> float:
        """The least that a step of this many pictures may take; 0 if nothing was measured lately.

        Requests are refused for good by it. One that would show how fast a step is now must not be, and so the fastest
        measurement counts, and fewer pictures are taken to need less.
        """
        fastest = (min(seconds) * min(1.0, pictures / number) for number, seconds in self._lately().items())
        return min(fastest, default=0.0)

    def _lately(self) -> dict[int, list[float]]:
        return self._since(self.clock() - _FORGET_SECONDS)

    def _since(self, then: float) -> dict[int, list[float]]:
        kept = {number: [seconds for when, seconds in own if when >= then] for number, own in self._measured.items()}
        return {number: seconds for number, seconds in kept.items() if seconds}


def steps_until_done(size: int, before: Sequence[int], added: Sequence[int]) -> int:
    """Steps of a batch of `size` pictures until the added ones are done; each takes the first place that becomes free.

    Args:
        size: Of the batch.
        before: The steps that the pictures before them still take, in their order.
        added: Theirs.
    """
    places = [0] * size  # when each becomes free
    for steps in before:
        heapq.heapreplace(places, places[0] + steps)
    done = 0
    for steps in added:
        done = max(done, places[0] + steps)
        heapq.heapreplace(places, places[0] + steps)
    return done


class ContinuousBatch:
    """Takes the steps of all running pictures in turn, in a thread; the event loop goes on answering.

    Public methods are called in the event loop.

    Args:
        model: A `model.painting.painter.RequestPainter`.
        max_size: Pictures that run at the same time at most; others wait in the order in which they came.
        threads: Of torch, for the thread that takes the steps; None: as it is.
    """

    def __init__(self, model: Any, max_size: int, threads: int | None = None) -> None:
        self._model = model
        self._max_size = max_size
        self._lock = threading.Lock()  # of the next four, which the thread changes too
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._times = StepTimes()
        self._is_stepping = False
        self._thread = ThreadPoolExecutor(1, initializer=_use_threads, initargs=(threads,))  # always the same one

    @property
    def waiting(self) -> int:
        """Pictures that have not joined the batch yet."""
        return len(self._waiting)

    @property
    def free(self) -> int:
        """Pictures that could join the batch now."""
        with self._lock:
            return max(0, self._max_size - len(self._running) - len(self._waiting))

    def add(self, jobs: Sequence[Job]) -> None:
        """Queue pictures."""
        with self._lock:
            self._waiting.extend(jobs)
            self._fill()
            if not self._is_stepping:
                self._is_stepping = True
                self._thread.submit(self._run)

    def remove(self, jobs: Sequence[Job]) -> None:
        """Paint pictures no further: running ones leave the batch at its next step."""
        with self._lock:
            for job in jobs:
                if job in self._running:
                    self._running.remove(job)
                elif job in self._waiting:
                    self._waiting.remove(job)

    @property
    def is_idle(self) -> bool:
        """Whether no picture is here."""
        return not self._here()

    def seconds_until_idle(self) -> float:
        """An estimate for all pictures that are here."""
        return self._seconds((), self._here())

    def seconds_until_done(self, jobs: Sequence[Job]) -> float:
        """An estimate for pictures that would be added now."""
        return self._seconds(self._here(), jobs)

    def seconds_alone(self, jobs: Sequence[Job]) -> float:
        """The least that pictures would need without any others, as far as is known."""
        steps = steps_until_done(self._max_size, [], [job.steps_left for job in jobs])
        with self._lock:
            return steps * self._times.at_best(min(self._max_size, len(jobs)))

    def _seconds(self, before: Sequence[Job], jobs: Sequence[Job]) -> float:
        if not jobs:
            return 0.0
        steps = steps_until_done(self._max_size, [job.steps_left for job in before], [job.steps_left for job in jobs])
        with self._lock:
            return steps * self._times.expected(min(self._max_size, len(before) + len(jobs)))

    def _here(self) -> list[Job]:
        with self._lock:
            return [*self._running, *self._waiting]

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self._max_size:
            self._running.append(self._waiting.popleft())

    def _next_jobs(self) -> list[Job]:
        """Those of the next step; none: the thread stops, until pictures are added."""
        with self._lock:
            self._fill()
            self._is_stepping = bool(self._running)
            return list(self._running)

    def _run(self) -> None:
        """Take steps until no picture is left, in the thread: it does not wait for the event loop in between."""
        while jobs := self._next_jobs():
            start = time.perf_counter()
            for job, result in self._step(jobs):
                self._deliver(job, result)
            with self._lock:
                self._times.record(len(jobs), time.perf_counter() - start)

    def _deliver(self, job: Job, result: Preview | Painted | Exception) -> None:
        with self._lock:
            if job not in self._running:  # it was removed during the step
                return
            if isinstance(result, Preview):
                job.previews += 1
            else:
                self._running.remove(job)
        with suppress(RuntimeError):  # the loop is closed, and nobody waits
            job.loop.call_soon_threadsafe(job.events.put_nowait, result)

    def _step(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Preview | Painted | Exception]]:
        """Take a step of all pictures; what there is to say of some of them."""
        taking = []
        for job in jobs:
            try:
                if job.running is None:
                    job.running = self._model.start(job.request)
                taking.append(job)
            except Exception as error:
                yield job, error
        try:
            self._model.step([job.running for job in taking])
        except Exception as error:  # they share the step
            yield from ((job, error) for job in taking)
            return
        for job in taking:
            try:
                if result := self._result(job):
                    yield job, result
            except Exception as error:
                yield job, error

    def _result(self, job: Job) -> Preview | Painted | None:
        """The picture if it is finished, or a preview if one is asked for after this step."""
        if job.running.is_finished:
            painted = self._model.finish(job.running)
            return Painted(
                index=job.index,
                picture=painted.picture,
                mask=painted.mask,
                timings=painted.timings,
                steps=job.request.steps,
                batch_size=painted.batch_size,
                encodings_kept=painted.encodings_kept,
                encodings_made=painted.encodings_made,
            )
        shown = self._model.preview(job.running)
        if shown is None:
            return None
        return Preview(index=job.index, number=job.previews, picture=shown.picture, mask=shown.mask)


def _use_threads(count: int | None) -> None:
    if count is not None:
        import torch

        torch.set_num_threads(count)
