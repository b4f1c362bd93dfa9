"""A process group without Ray."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist


@contextmanager
def process_group() -> Iterator[None]:
    """A torch process group of this process alone, in which an engine runs without Ray; the one there is, if any."""
    if dist.is_initialized():
        yield
        return
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed needs it
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()
