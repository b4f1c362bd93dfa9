"""The pooled states of a CLIP text encoder before their projection, which its output does not have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor


@contextmanager
def keep_projection_inputs(encoder: Any, inputs: list[Tensor]) -> Iterator[None]:
    """A block in which what enters the encoder's text projection, (B, c) of each call, is added to a list."""
    hook = encoder.text_projection.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    try:
        yield
    finally:
        hook.remove()
