"""The contract between a stage and the runner.

A stage is a module with a function `run(context: StageContext) -> StageResult`. It reads the committed outputs of
its upstream stages, writes datasets into `context.output`, and reports its progress. It knows nothing of fingerprints,
manifests or MLflow: the runner commits the stage's output as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stages.config import Config
from stages.storage import StorePath


class StageError(Exception):
    """An error that the user can fix. The message is one sentence: what is wrong, where, and what to do."""


@dataclass(frozen=True, kw_only=True)
class Reporter:
    """Reports a stage's events to the runner, which displays and logs them. `emit` gets each as JSON-ready values."""

    emit: Callable[[Mapping[str, Any]], None]

    def start_run(self, name: str, settings: Mapping[str, str]) -> Reporter:
        """Start an MLflow run of its own for a part of the stage, such as one subject; returns its reporter.

        What that reports goes to this run. `settings` become its parameters.
        """

        def emit(event: Mapping[str, Any]) -> None:
            self.emit({**event, "run": name})

        emit({"event": "run", "settings": dict(settings)})
        return Reporter(emit=emit)

    def end_run(self, metrics: Mapping[str, float], error: str | None = None) -> None:
        """End the run that this reporter belongs to, with its results, or as failed."""
        self.emit({"event": "run_ended", "metrics": dict(metrics), "error": error})

    def progress(self, done: int, total: int, note: str) -> None:
        """Report progress in the stage's unit (steps, shards, pictures), and what the stage is doing."""
        self.emit({"event": "progress", "done": done, "total": total, "note": note})

    def metric(self, key: str, value: float, step: int) -> None:
        """Report a metric's value at a step."""
        self.emit({"event": "metric", "key": key, "value": float(value), "step": step})

    def picture(self, key: str, path: StorePath) -> None:
        """Report a picture, plot or page to keep with the run; the file must be in the stage's output."""
        self.emit({"event": "picture", "key": key, "path": str(path)})

    def sample(self, key: str, path: StorePath, step: int) -> None:
        """Report a sample picture of a running training; the file may be in scratch."""
        self.emit({"event": "sample", "key": key, "path": str(path), "step": step})

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Show the user a small table."""
        self.emit({"event": "table", "rows": [list(head), *(list(row) for row in rows)]})

    def warning(self, text: str) -> None:
        """Warn the user of something that does not stop the stage."""
        self.emit({"event": "warning", "text": text})


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """The input of a stage.

    Attributes:
        config: The whole configuration; the graph declares which sections a stage reads.
        inputs: The committed output folder of each upstream stage, by stage name; read-only. They may lie in an object
            store. Workers on other machines reach it, but not the driver's disk.
        output: An empty folder; committed when `run` returns.
        scratch: A folder for partial downloads and checkpoints; kept when the stage is killed, deleted by the commit.
        report: Reports events to the runner.
        previous: The last committed output of the stage, of any configuration; None when there is none.
        forced: The user wants this stage to run again: it must not reuse earlier results.
        tracking_uri: MLflow's tracking store; None when MLflow is not to be used.
        tracking_run_id: The MLflow run of this stage, when there is one.
    """

    config: Config
    inputs: Mapping[str, StorePath]
    output: StorePath
    scratch: StorePath
    report: Reporter
    previous: StorePath | None = None
    forced: bool = False
    tracking_uri: str | None = None
    tracking_run_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """The result of a stage, for the manifest and MLflow.

    Attributes:
        rows: Rows of each dataset in `output`, by its name (folder or file stem).
        metrics: Single numbers to compare between runs.
        notes: Facts about the output, such as who wrote the prompts.
    """

    rows: Mapping[str, int] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
