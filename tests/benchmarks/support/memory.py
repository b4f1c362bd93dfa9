"""Peak memory of a computation, beyond the memory in use before it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch


def peak_extra_bytes(work: Callable[[], object], device: torch.device) -> int | None:
    """Run `work` and measure its peak memory: the device's, or on a CPU the process's (None except on Linux)."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        reset_peak()
        before_or_none = _status("VmRSS")
    except OSError:
        before_or_none = None
    work()
    return None if before_or_none is None else max(0, peak_bytes() - before_or_none)


def reset_peak() -> None:
    """Let `peak_bytes` count from now on; on Linux."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most memory that the process held since `reset_peak` or its start; on Linux."""
    return _status("VmHWM")


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/self/status has no {name}")
    return int(found[1]) * 1024
