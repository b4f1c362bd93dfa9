"""The metrics of a training: lines of JSON, each averaged over some steps and over all workers."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from stages.training.record import Record

#: A training writes about this many lines, but at least one in `_MAX_STEPS_PER_LINE` steps.
_LINES = 200
_MAX_STEPS_PER_LINE = 50

#: Keys of a line that are not metrics.
BOOKKEEPING = ("step", "seconds_left")


@dataclass(kw_only=True)
class MetricsLogger:
    """Collects one worker's metrics. All workers must call `add` for every step; rank 0 writes the lines.

    A line holds: step; the mean of each scalar; samples_per_second; data_wait, the share of the time in which workers
    waited for their batches; peak_memory_gib, the largest of all workers (of the GPU, else of the process); skipped,
    the number of steps so far that did not change the weights; seconds_left.
    """

    steps: int
    device: torch.device
    record: Record | None  # of rank 0
    _scalars: dict[str, list[Tensor]] = field(default_factory=dict)
    _samples: int = 0
    _waited: float = 0.0
    _steps_since: int = 0
    _since: float = field(default_factory=time.perf_counter)

    def add(self, step: int, scalars: Mapping[str, Tensor], *, samples: int, waited: float, skipped: int) -> None:
        """Add a step, counted from 0; `scalars` is empty for a skipped step."""
        for name, value in scalars.items():
            self._scalars.setdefault(name, []).append(value.detach())
        self._samples += samples
        self._waited += waited
        self._steps_since += 1
        done = step + 1
        if done % min(_MAX_STEPS_PER_LINE, max(1, self.steps // _LINES)) == 0 or done == self.steps:
            self._write(done, skipped)

    def _write(self, done: int, skipped: int) -> None:
        sums = {name: float(torch.stack(values).float().sum()) for name, values in self._scalars.items()}
        mine = {
            "sums": {name: (value, len(self._scalars[name])) for name, value in sums.items()},
            "samples": self._samples,
            "waited": self._waited,
            "memory": peak_memory(self.device),
        }
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
        seconds = time.perf_counter() - self._since
        if self.record is not None:
            line = {
                "step": done,
                **_means([worker["sums"] for worker in everyone]),
                "samples_per_second": sum(worker["samples"] for worker in everyone) / seconds,
                "data_wait": sum(worker["waited"] for worker in everyone) / len(everyone) / seconds,
                "peak_memory_gib": max(worker["memory"] for worker in everyone) / 2**30,
                "skipped": skipped,
                "seconds_left": (self.steps - done) * seconds / self._steps_since,
            }
            self.record.write(json.dumps(line) + "\n")
        self._scalars, self._samples, self._waited, self._steps_since = {}, 0, 0.0, 0
        self._since = time.perf_counter()


def _means(workers: list[dict[str, tuple[float, int]]]) -> dict[str, float]:
    """The mean of each scalar over the steps and workers that have it."""
    names = dict.fromkeys(name for sums in workers for name in sums)
    found = {name: [sums[name] for sums in workers if name in sums] for name in names}
    return {name: sum(value for value, _ in pairs) / sum(count for _, count in pairs) for name, pairs in found.items()}


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has had on `device` at one time."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def progress_note(name: str, line: Mapping[str, Any]) -> str:
    """A line of metrics as the note of a progress event."""
    loss = f"loss {line['loss']:.4f}" if "loss" in line else "no finite loss"
    skipped = [f"{line['skipped']} steps skipped"] if line["skipped"] else []
    parts = [
        f"{loss}, {line['samples_per_second']:.3g} samples/s",
        f"{line['data_wait']:.0%} waiting for data",
        f"{line['peak_memory_gib']:.1f} GiB",
        *skipped,
        f"{_duration(line['seconds_left'])} left",
    ]
    return f"{name}: {', '.join(parts)}"


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    if minutes >= 90:
        return f"{hours:.1f} h"
    return f"{minutes:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
