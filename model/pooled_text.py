"""The pooled states of a CLIP text encoder before their projection, which its output does not have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor


@contextmanager
def projection_inputs(encoder: Any) -> Iterator[list[Tensor]]:
    """A block after which the list has what entered the encoder's text projection, (B, c) of each call."""
    inputs: list[Tensor] = []
    hook = encoder.text_projection.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    try:
        yield inputs
    finally:
        hook.remove()
