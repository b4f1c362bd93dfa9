"""The stages that make data."""

from __future__ import annotations

from collections.abc import Mapping

#: The stages in their order, with the stages that each reads.
INPUTS: Mapping[str, tuple[str, ...]] = {
    "microworld": (),
    "ingest": ("microworld",),
    "filter": ("ingest",),
    "multiview": ("microworld",),
    "curriculum": ("filter", "multiview"),
    "cache_latents": ("filter", "multiview", "curriculum"),
    "prompts": ("filter",),
}
