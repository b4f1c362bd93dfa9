"""The display of a run: rich's progress bars in a terminal, plain lines from time to time anywhere else."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from pipelines.cli.messages import align
from pipelines.errors import PipelineError, StoppedError
from pipelines.plan import Action, Step
from pipelines.store.store import Output

#: Without a terminal, a stage's progress is printed at most this often, and whenever its phase changes.
SECONDS_BETWEEN_LINES = 10.0

_STYLES = {"waits": "dim", "up to date": "dim", "runs": "bold cyan", "done": "green", "failed": "bold red"}


class Display:
    """A `pipelines.execution.runner.Listener` that prints what stays on the screen: warnings and tables.

    A context manager around whatever is drawn while the run lasts.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._began = time.monotonic()

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def set_note(self, note: str) -> None:
        """Show what the run as a whole is doing, such as starting Ray; "" for nothing."""

    def warn(self, text: str) -> None:
        """Print something the user should know that does not end the run."""
        self._print("", f"warning: {text}")

    def stage_started(self, step: Step) -> None:
        """See `Listener`."""

    def stage_event(self, name: str, event: Mapping[str, Any]) -> None:
        """See `Listener`."""
        if event["event"] == "warning":
            self._print(name, f"warning: {event['text']}")
        elif event["event"] == "table":
            for text in align(event["rows"]):
                self._print(name, text)
        elif event["event"] == "progress":
            self._show_progress(name, event["done"], event["total"], event["note"])

    def stage_finished(self, name: str, output: Output) -> None:
        """See `Listener`."""

    def stage_failed(self, name: str, error: PipelineError) -> None:
        """See `Listener`. The error of a failure is printed at the end of the run."""
        if isinstance(error, StoppedError):
            self._print(name, str(error))

    def _show_progress(self, name: str, done: int, total: int, note: str) -> None:
        pass

    def _print(self, name: str, text: str) -> None:
        clock = _minutes(time.monotonic() - self._began)
        self.console.print(f"[{clock}] {name:<14} {text}", markup=False, highlight=False, soft_wrap=True)


class LineDisplay(Display):
    """Plain lines, for files and pipes."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._started: dict[str, float] = {}
        self._printed: dict[str, float] = {}  # when a stage's last line was printed
        self._phases: dict[str, str] = {}

    def set_note(self, note: str) -> None:
        """Print what the run as a whole is doing."""
        if note:
            self._print("", note)

    def stage_started(self, step: Step) -> None:
        """See `Listener`."""
        name = step.stage.name
        self._print(name, f"starts ({step.why})")
        self._started[name] = self._printed[name] = time.monotonic()

    def stage_finished(self, name: str, output: Output) -> None:
        """See `Listener`."""
        rows = _rows(output)
        took = _minutes(time.monotonic() - self._started[name])
        self._print(name, f"done in {took}" + (f": {rows}" if rows else ""))

    def stage_failed(self, name: str, error: PipelineError) -> None:
        """See `Listener`."""
        super().stage_failed(name, error)
        if not isinstance(error, StoppedError):
            self._print(name, "failed")

    def _show_progress(self, name: str, done: int, total: int, note: str) -> None:
        phase, now = _phase(note), time.monotonic()
        if phase != self._phases.get(name) or now - self._printed[name] >= SECONDS_BETWEEN_LINES:
            share = f"{done}/{total} " if total else ""
            self._print(name, f"{share}{note}".strip())
            self._phases[name], self._printed[name] = phase, now


class LiveDisplay(Display):
    """One line for each stage and one for the run, redrawn in a terminal."""

    def __init__(self, plan: Sequence[Step], console: Console) -> None:
        super().__init__(console)
        self._progress = Progress(
            TextColumn("{task.description}"),
            TextColumn("[{task.fields[style]}]{task.fields[state]}"),
            _StageBar(),
            TextColumn("{task.fields[share]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", style="dim", markup=False, table_column=Column(ratio=1, no_wrap=True)),
            console=console,
            expand=True,  # so that a narrow terminal cuts the notes only
            refresh_per_second=4,
        )
        self._stages = {step.stage.name: self._add(step.stage.name) for step in plan}
        self._run = self._progress.add_task("all stages", total=len(plan), state="", style="none", share="", note="")
        for step in plan:
            self._set_state(step.stage.name, "up to date" if step.action is Action.KEEP else "waits")

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.set_note("")
        self._progress.stop()

    def set_note(self, note: str) -> None:
        """Show what the run as a whole is doing."""
        self._progress.update(self._run, note=note)

    def stage_started(self, step: Step) -> None:
        """See `Listener`."""
        self.set_note("")
        self._progress.start_task(self._stages[step.stage.name])
        self._set_state(step.stage.name, "runs", "starting")

    def stage_finished(self, name: str, output: Output) -> None:
        """See `Listener`."""
        self._progress.stop_task(self._stages[name])
        self._set_state(name, "done", _rows(output))

    def stage_failed(self, name: str, error: PipelineError) -> None:
        """See `Listener`."""
        super().stage_failed(name, error)
        self._progress.stop_task(self._stages[name])
        self._set_state(name, "failed")

    def _show_progress(self, name: str, done: int, total: int, note: str) -> None:
        share = f"{done}/{total}" if total else ""
        self._progress.update(self._stages[name], completed=done, total=total or None, share=share, note=note)

    def _add(self, name: str) -> TaskID:
        return self._progress.add_task(name, start=False, total=None, state="", style="none", share="", note="")

    def _set_state(self, name: str, state: str, note: str = "") -> None:
        self._progress.update(self._stages[name], state=state, style=_STYLES[state], note=note)
        stages = [task for task in self._progress.tasks if task.id != self._run]
        ended = sum(task.fields["state"] in ("done", "up to date") for task in stages)
        self._progress.update(self._run, completed=ended, share=f"{ended}/{len(stages)}")


class _StageBar(ProgressColumn):
    """A bar for a stage that has reported its total; rich's own column would pulse in all other lines."""

    def __init__(self) -> None:
        super().__init__()
        self._bar = BarColumn(bar_width=24)

    def render(self, task: Task) -> RenderableType:
        return self._bar.render(task) if task.started and task.total else ""


def make_display(plan: Sequence[Step], console: Console | None = None) -> Display:
    """The display that suits the console, by default standard output."""
    console = console or Console()
    return LiveDisplay(plan, console) if console.is_terminal else LineDisplay(console)


def _rows(output: Output) -> str:
    return ", ".join(f"{count} {dataset}" for dataset, count in output.manifest.rows.items())


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _phase(note: str) -> str:
    """A note without its numbers: "loss 0.31" and "loss 0.30" are one phase."""
    return "".join(letter for letter in note if not letter.isdigit() and letter not in ".,-")
