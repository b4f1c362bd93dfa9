"""The context in which tests run a stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from stages.config import Config
from stages.contract import Reporter, StageContext
from stages.storage import StorePath


def replace(settings: Any, changes: Mapping[str, Any]) -> Any:
    """`dataclasses.replace` for nested dataclasses: `{"trainer": {"workers": 1}}`."""
    values = {
        key: replace(getattr(settings, key), value) if isinstance(value, Mapping) else value
        for key, value in changes.items()
    }
    return dataclasses.replace(settings, **values)


def make_context(
    tmp_path: StorePath,
    inputs: Mapping[str, StorePath] | None = None,
    events: list[Mapping[str, Any]] | None = None,
    tracking_uri: str | None = None,
    previous: StorePath | None = None,
    **sections: Mapping[str, Any],
) -> StageContext:
    """A stage's context under `tmp_path`: empty `output` and `scratch`, and the profile micro with some changes.

    `make_context(tmp_path, inputs={"ingest": folder}, filter={"min_aesthetic": 6.0}, run={"seed": 1})`; what the stage
    reports is appended to `events`. A second call with the same `tmp_path` keeps `scratch` and empties nothing.
    """
    output, scratch = tmp_path / "output", tmp_path / "scratch"
    output.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(parents=True, exist_ok=True)
    reported: list[Mapping[str, Any]] = [] if events is None else events
    return StageContext(
        config=replace(Config(), {"run": {"folder": str(tmp_path)}, **sections}),
        inputs=dict(inputs or {}),
        output=output,
        scratch=scratch,
        report=Reporter(emit=reported.append),
        previous=previous,
        tracking_uri=tracking_uri,
    )
