"""The display of a run: one line a stage in a terminal; plain lines, now and then, anywhere else."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipelines.cli.messages import align
from pipelines.errors import PipelineError, StoppedError
from pipelines.plan import Action, Step
from pipelines.store.store import Output

#: Without a terminal a stage says how far it is at most so often.
SECONDS_BETWEEN_LINES = 10.0

_STYLES = {"waits": "dim", "up to date": "dim", "runs": "bold cyan", "done": "green", "failed": "bold red"}


@dataclass
class Line:
    """What is shown of one stage."""

    state: str
    note: str = ""
    done: int = 0
    total: int = 0
    started: float = 0.0
    seconds: float | None = None  # None: not finished
    printed: float = 0.0  # when a plain line was printed last

    @property
    def elapsed(self) -> str:
        """Minutes and seconds, once the stage has started."""
        if not self.started:
            return ""
        seconds = int(time.monotonic() - self.started if self.seconds is None else self.seconds)
        return f"{seconds // 60}:{seconds % 60:02d}"

    @property
    def share(self) -> str:
        """How far, in the stage's own unit."""
        return f"{self.done}/{self.total}" if self.total else ""


class Display:
    """Follows a run (see `pipelines.execution.runner.Listener`). A context manager around the live table."""

    def __init__(self, plan: Sequence[Step], console: Console | None = None) -> None:
        self.console = console or Console()
        self.lines = {step.stage.name: Line("up to date" if step.action is Action.KEEP else "waits") for step in plan}
        self.note = ""  # what the run as a whole is doing
        self._began = time.monotonic()
        self._live: Live | None = None
        if self.console.is_terminal:
            self._live = Live(console=self.console, get_renderable=self._table, refresh_per_second=4)

    def __enter__(self) -> Display:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.note = ""
        if self._live:
            self._live.stop()

    def say(self, note: str) -> None:
        """What the run as a whole is doing, such as starting Ray."""
        self.note = note
        if not self._live and note:
            self._print("", note)

    def warn(self, text: str) -> None:
        """Something the user should know that does not end the run."""
        self._print("", f"warning: {text}")

    def stage_started(self, step: Step) -> None:
        """See `Listener`."""
        line = self.lines[step.stage.name]
        line.state, line.started, line.note = "runs", time.monotonic(), "starting"
        self.say("")
        if not self._live:
            self._print(step.stage.name, f"starts ({step.why})")
            line.printed = time.monotonic()

    def stage_event(self, name: str, event: Mapping[str, Any]) -> None:
        """See `Listener`."""
        if event["event"] == "warning":
            self._print(name, f"warning: {event['text']}")
        if event["event"] == "table":
            for text in align(event["rows"]):
                self._print(name, text)
        if event["event"] != "progress":
            return
        line, note_before = self.lines[name], self.lines[name].note
        line.done, line.total, line.note = event["done"], event["total"], event["note"]
        phase_changed = _phase(line.note) != _phase(note_before)
        due = time.monotonic() - line.printed >= SECONDS_BETWEEN_LINES
        if not self._live and (phase_changed or due):
            self._print(name, f"{line.share} {line.note}".strip())
            line.printed = time.monotonic()

    def stage_finished(self, name: str, output: Output) -> None:
        """See `Listener`."""
        line = self.lines[name]
        rows = ", ".join(f"{count} {dataset}" for dataset, count in output.manifest.rows.items())
        self._end(line, "done", rows)
        if not self._live:
            self._print(name, f"done in {line.elapsed}" + (f": {rows}" if rows else ""))

    def stage_failed(self, name: str, error: PipelineError) -> None:
        """See `Listener`. A failure itself is printed at the end of the run."""
        self._end(self.lines[name], "failed", "")
        if isinstance(error, StoppedError):
            self._print(name, str(error))
        elif not self._live:
            self._print(name, "failed")

    def _end(self, line: Line, state: str, note: str) -> None:
        line.state, line.note, line.total = state, note, 0
        line.seconds = time.monotonic() - line.started

    def _print(self, name: str, text: str) -> None:
        clock = int(time.monotonic() - self._began)
        self.console.print(
            f"[{clock // 60:d}:{clock % 60:02d}] {name:<14} {text}", markup=False, highlight=False, soft_wrap=True
        )

    def _table(self) -> Group:
        table = Table.grid(padding=(0, 2))
        for name, line in self.lines.items():
            bar = ProgressBar(total=line.total, completed=line.done, width=24) if line.total else Text(" " * 24)
            style = _STYLES[line.state]
            table.add_row(
                Text(name, style), Text(line.state, style), bar, line.share, line.elapsed, Text(line.note, "dim")
            )
        ended = sum(line.state in ("done", "up to date") for line in self.lines.values())
        clock = int(time.monotonic() - self._began)
        total = f"{ended} of {len(self.lines)} stages are up to date, {clock // 60}:{clock % 60:02d}  {self.note}"
        return Group(table, Text(total))


def _phase(note: str) -> str:
    """A note without its numbers: "loss 0.31" and "loss 0.30" are one phase."""
    return "".join(letter for letter in note if not letter.isdigit() and letter not in ".,-")
