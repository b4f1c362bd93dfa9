"""Run a plan: stages whose inputs are ready run side by side, as far as there are CPUs."""

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

_STOPPING = "it is stopping; a training writes a checkpoint first (a second Ctrl-C ends it at once, without one)"


class Listener(Protocol):
    """Receives the events of a run, as the display and the tracker do. Called from the runner's thread only."""

    def stage_started(self, step: Step) -> str | None:
        """The stage is about to start. The tracker returns the id of its MLflow run."""

    def stage_event(self, name: str, event: Mapping[str, Any]) -> None:
        """The stage has reported an event (see `stages.contract.Reporter`); a sample comes with its "content"."""

    def stage_finished(self, name: str, output: Output) -> None:
        """The stage's output is committed."""

    def stage_failed(self, name: str, error: PipelineError) -> None:
        """The stage has failed or has been stopped."""


@dataclass(kw_only=True)
class Runner:
    """Runs a plan once."""

    plan: Sequence[Step]
    run_context: RunContext
    listeners: Sequence[Listener]
    cpus: int
    outputs: dict[str, Output] = field(default_factory=dict)
    _running: dict[str, StageJob] = field(default_factory=dict)
    _messages: queue.Queue[Callable[[], None]] = field(default_factory=queue.Queue)
    _failures: list[PipelineError] = field(default_factory=list)

    def run(self) -> dict[str, Output]:
        """Run all steps that must run; returns the outputs of all steps by stage.

        After a failure no stage is started, and running stages finish.

        Raises:
            PipelineError: The first failure.
            KeyboardInterrupt: The user stopped the run; all stages have ended.
        """
        waiting = {step.stage.name: step for step in self.plan if step.action is Action.RUN}
        self.outputs = {step.stage.name: step.output for step in self.plan if step.output and not step.forced}
        self._write_latest()
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
        """The stages to start now: first those on which most others depend, as far as there are CPUs."""
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
        threading.Thread(target=self._run_job, args=(name, job), daemon=True).start()

    def _run_job(self, name: str, job: StageJob) -> None:
        """Run in the job's thread; sends the outcome to the runner's thread."""
        try:
            output = job.run()
        except PipelineError as error:
            self._messages.put(functools.partial(self._fail, name, error))
        except Exception as error:  # any error in this thread must end the run instead of hanging it
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
        self._write_latest()
        for listener in self.listeners:
            listener.stage_finished(name, output)

    def _fail(self, name: str, error: PipelineError) -> None:
        del self._running[name]
        self._failures.append(error)
        for listener in self.listeners:
            listener.stage_failed(name, error)

    def _stop(self) -> None:
        """Stop the running stages, after Ctrl-C or an error of the runner. A second Ctrl-C ends the wait."""
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

    def _write_latest(self) -> None:
        store = self.run_context.store
        fingerprints = {name: output.fingerprint for name, output in self.outputs.items()}
        with store.writable():
            store.write_latest(
                config_to_dict(self.run_context.graph.config), store.latest_fingerprints() | fingerprints
            )
