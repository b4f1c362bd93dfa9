"""The contract between a stage and the runner.

A stage is a module with a function `run(context: StageContext) -> StageResult`. It reads the committed outputs of
its upstream stages, writes datasets into `context.output`, and says on the way how far it is. It knows nothing of
fingerprints, manifests or MLflow: the runner commits what the stage has written, all of it or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.config import Config


class StageError(Exception):
    """Something that the user can mend. The message is one sentence: what was wrong, where, and what to do."""


@dataclass(frozen=True, kw_only=True)
class Reporter:
    """A stage's voice. `emit` receives one JSON-ready event a call; the runner displays and records it."""

    emit: Callable[[Mapping[str, Any]], None]

    def progress(self, done: int, total: int, note: str) -> None:
        """How far the stage is, in its own unit (steps, shards, pictures), and what it is doing."""
        self.emit({"event": "progress", "done": done, "total": total, "note": note})

    def metric(self, key: str, value: float, step: int) -> None:
        """One point of a curve."""
        self.emit({"event": "metric", "key": key, "value": float(value), "step": step})

    def picture(self, key: str, path: Path) -> None:
        """A picture, plot or page worth keeping with the run; the file must lie in the stage's output."""
        self.emit({"event": "picture", "key": key, "path": str(path)})

    def sample(self, key: str, path: Path, step: int) -> None:
        """A picture of how far a training is, seen while it goes on; the file may lie in scratch."""
        self.emit({"event": "sample", "key": key, "path": str(path), "step": step})

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A small table that the user should see."""
        self.emit({"event": "table", "rows": [list(head), *(list(row) for row in rows)]})

    def warning(self, text: str) -> None:
        """Something the user should know that does not stop the stage."""
        self.emit({"event": "warning", "text": text})


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """What the runner hands to a stage.

    Attributes:
        config: The whole configuration (`stages.config.Config`); the graph declares which sections a stage reads.
        inputs: The committed output directory of each upstream stage, by stage name. Read only.
        output: An empty directory; it is committed when `run` returns.
        scratch: A directory that survives a kill and is deleted on commit: half-done downloads, checkpoints.
        report: The stage's voice.
        previous: The committed output that the stage made last, under whatever configuration; None when there is none.
        forced: The user asked for this stage by name to be made again: nothing that is at hand may stand in for it.
        tracking_uri: Where MLflow keeps its records; None when no tracker is to be used.
        tracking_run_id: The MLflow run of this stage, when there is one.
    """

    config: Config
    inputs: Mapping[str, Path]
    output: Path
    scratch: Path
    report: Reporter
    previous: Path | None = None
    forced: bool = False
    tracking_uri: str | None = None
    tracking_run_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """What a stage says when it has finished. Goes into the manifest and the tracker.

    Attributes:
        rows: Rows of each dataset that was written, by the dataset's name (the folder or file stem in `output`).
        metrics: Single numbers worth comparing between runs.
        notes: Facts about how the output came to be, such as which writer made the prompts.
    """

    rows: Mapping[str, int] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
