"""Carry out a plan: stages whose inputs are there run side by side as far as the CPUs go."""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipelines.config.loading import config_to_dict
from pipelines.errors import PipelineError
from pipelines.execution.stage_job import GRACE_SECONDS, RunContext, StageJob
from pipelines.plan import Action, Step
from pipelines.store.store import Output

_STOPPING = "it is told to stop; a training writes a checkpoint first, which a second Ctrl-C would prevent"


class Listener(Protocol):
    """Somebody who follows a run: the display, the tracker. Called from the runner's own thread only."""

    def stage_started(self, step: Step) -> str | None:
        """The stage is about to start. The tracker answers with the id of the stage's run."""

    def stage_event(self, name: str, event: Mapping[str, Any]) -> None:
        """The stage has reported something (see `stages.contract.Reporter`)."""

    def stage_finished(self, name: str, output: Output) -> None:
        """The stage's output is committed."""

    def stage_failed(self, name: str, error: PipelineError) -> None:
        """The stage has failed or was stopped."""


@dataclass(kw_only=True)
class Runner:
    """A run of a plan."""

    plan: Sequence[Step]
    run_context: RunContext
    listeners: Sequence[Listener]
    cpus: int
    outputs: dict[str, Output] = field(default_factory=dict)
    _running: dict[str, StageJob] = field(default_factory=dict)
    _messages: queue.Queue[Callable[[], None]] = field(default_factory=queue.Queue)
    _failures: list[PipelineError] = field(default_factory=list)

    def run(self) -> dict[str, Output]:
        """Run every step that is to run; the outputs of all steps by stage.

        After a failure nothing new is started, and what is running is allowed to finish.

        Raises:
            PipelineError: The first failure.
            KeyboardInterrupt: The user has stopped the run; all stages have ended.
        """
        waiting = {step.stage.name: step for step in self.plan if step.action is Action.RUN}
        self.outputs = {step.stage.name: step.output for step in self.plan if step.output and not step.forced}
        self._note_outputs()
        try:
            while self._running or (waiting and not self._failures):
                for name in self._startable(waiting):
                    self._start(waiting.pop(name))
                self._messages.get()()
        finally:
            self._stop()
        if self._failures:
            raise self._failures[0]
        return self.outputs

    def _startable(self, waiting: Mapping[str, Step]) -> list[str]:
        """The stages to start now: those with the most work behind them first, as far as the CPUs go."""
        if self._failures:
            return []
        graph, started = self.run_context.graph, []
        free = self.cpus - sum(self._cpus(job.step) for job in self._running.values())
        ready = [name for name in waiting if all(other in self.outputs for other in graph.inputs[name])]
        for name in sorted(ready, key=lambda name: -len(graph.downstream(name))):
            if self._cpus(waiting[name]) <= free:
                free -= self._cpus(waiting[name])
                started.append(name)
        return started

    def _cpus(self, step: Step) -> int:
        return min(step.stage.cpus(self.run_context.graph.config), self.cpus)

    def _start(self, step: Step) -> None:
        name = step.stage.name
        run_ids = [listener.stage_started(step) for listener in self.listeners]
        job = StageJob(
            step=step,
            run_context=self.run_context,
            inputs={other: self.outputs[other] for other in self.run_context.graph.inputs[name]},
            on_event=lambda event: self._messages.put(functools.partial(self._on_event, name, event)),
            cpus=self._cpus(step),
            tracking_run_id=next((run_id for run_id in run_ids if run_id), None),
        )
        self._running[name] = job
        threading.Thread(target=self._work, args=(name, job), daemon=True).start()

    def _work(self, name: str, job: StageJob) -> None:
        """In the job's thread; the outcome is told to the runner's."""
        try:
            output = job.run()
        except PipelineError as error:
            self._messages.put(functools.partial(self._fail, name, error))
        except Exception as error:  # a thread's boundary: an error here must end the run, not hang it
            failure = PipelineError(f"Stage {name}: the runner failed with {type(error).__name__}: {error}")
            failure.__cause__ = error
            self._messages.put(functools.partial(self._fail, name, failure))
        else:
            self._messages.put(functools.partial(self._finish, name, output))

    def _on_event(self, name: str, event: Mapping[str, Any]) -> None:
        for listener in self.listeners:
            listener.stage_event(name, event)

    def _finish(self, name: str, output: Output) -> None:
        del self._running[name]
        self.outputs[name] = output
        self._note_outputs()
        for listener in self.listeners:
            listener.stage_finished(name, output)

    def _fail(self, name: str, error: PipelineError) -> None:
        del self._running[name]
        self._failures.append(error)
        for listener in self.listeners:
            listener.stage_failed(name, error)

    def _stop(self) -> None:
        """End what still runs: after Ctrl-C, or after a failure of the runner itself. A second Ctrl-C ends the wait."""
        stoppers = [threading.Thread(target=job.stop, daemon=True) for job in self._running.values()]
        for stopper in stoppers:
            stopper.start()
        for name in self._running:
            self._on_event(name, {"event": "warning", "text": _STOPPING})
        for stopper in stoppers:
            stopper.join()
        with contextlib.suppress(queue.Empty):
            while self._running:
                self._messages.get(timeout=2 * GRACE_SECONDS)()

    def _note_outputs(self) -> None:
        store = self.run_context.store
        found = {name: output.fingerprint for name, output in self.outputs.items()}
        with store.writable():
            store.write_latest(config_to_dict(self.run_context.graph.config), store.latest_fingerprints() | found)
