"""The runner's side of one stage: start its process, read its events, commit its output."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.config.loading import config_to_dict
from pipelines.errors import PipelineError, StoppedError
from pipelines.graph import REPOSITORY, Graph
from pipelines.plan import Step
from pipelines.store.manifest import describe_output
from pipelines.store.store import Output, Store, Work
from stages.contract import StageResult
from stages.storage import copy_file, is_remote, read_whole, store_path
from stages.storage_errors import storage_error

#: A stage's process must end this soon after its result.
GRACE_SECONDS = 10

#: A stopped process must end this soon: a training finishes its step or its sample pictures, and writes a checkpoint.
#: A second Ctrl-C ends the wait.
STOP_SECONDS = 120

#: A log that is kept in an object store is at most this old there.
LOG_SECONDS = 30


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What all stages of a run share."""

    graph: Graph
    store: Store
    ray_address: str | None  # None: the stages are run without Ray
    ray_is_local: bool = True
    tracking_uri: str | None = None


@dataclass(kw_only=True)
class StageJob:
    """One running stage. `run` blocks; `stop` may be called from another thread."""

    step: Step
    run_context: RunContext
    inputs: Mapping[str, Output]
    on_event: Callable[[Mapping[str, Any]], None]  # called with each event of the stage
    cpus: int = 1
    tracking_run_id: str | None = None
    _process: subprocess.Popen[str] | None = None
    _stopped: threading.Event = field(default_factory=threading.Event)
    _last_event: Mapping[str, Any] = field(default_factory=dict)

    def run(self) -> Output:
        """Run the stage and commit its output.

        Raises:
            StoppedError: The stage was stopped.
            PipelineError: The stage failed or died; or an input or the run folder is damaged.
        """
        store, name, started = self.run_context.store, self.step.stage.name, time.monotonic()
        with store.writable():
            for output in self.inputs.values():
                if damage := output.damage(thorough=True):
                    raise PipelineError(damage)
            work = store.begin(name, self.step.ingredients.fingerprint, restart=self.step.forced)
            with self._log_stored():
                self._run_process(work)
            result = self._result()
            seconds = time.monotonic() - started
            manifest = describe_output(work.output, name, self.step.ingredients, result, seconds)
            return store.commit(name, work, manifest)

    def stop(self) -> None:
        """End the stage's process and its children; `run` then raises StoppedError."""
        self._stopped.set()
        if self._process is not None:
            _signal_group(self._process, signal.SIGTERM)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                _signal_group(self._process, signal.SIGKILL)

    @contextlib.contextmanager
    def _log_stored(self) -> Iterator[None]:
        """Copy the stage's log, which grows on this machine's disk, to a run folder in an object store now and then."""
        store, name = self.run_context.store, self.step.stage.name
        log, ended = store.log_file(name), threading.Event()

        def copy() -> None:
            while True:
                over = ended.wait(LOG_SECONDS)
                with contextlib.suppress(
                    Exception
                ):  # each store has exceptions of its own; the next copy has all lines
                    copy_file(log, store.folder / "logs" / log.name)
                if over:
                    return

        copier = threading.Thread(target=copy, daemon=True) if is_remote(store.folder) else None
        if copier is not None:
            copier.start()
        try:
            yield
        finally:
            ended.set()
            if copier is not None:
                copier.join()

    def _run_process(self, work: Work) -> None:
        log = self.run_context.store.log_file(self.step.stage.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        reading, writing = os.pipe()
        with log.open("w") as printed, os.fdopen(reading) as events:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "pipelines.execution.stage_process"],
                    stdin=subprocess.PIPE,
                    stdout=printed,
                    stderr=subprocess.STDOUT,
                    pass_fds=[writing],
                    cwd=REPOSITORY,
                    env=self._environment(),
                    start_new_session=True,  # one group with all its children; Ctrl-C reaches only the runner
                    text=True,
                )
            finally:
                os.close(writing)
            if self._stopped.is_set():
                self.stop()
            request = self._request(work, log, writing)
            threading.Thread(target=_end_orphans, args=(self._process,), daemon=True).start()
            self._exchange(request, events)

    def _environment(self) -> dict[str, str]:
        # Stages run side by side: more OpenMP threads than a stage has CPUs would slow the other stages down.
        threads = {"OMP_NUM_THREADS": str(self.cpus)}
        path = {"PYTHONPATH": _python_path(self.run_context.graph.root), "PYTHONUNBUFFERED": "1"}
        return threads | os.environ | path

    def _exchange(self, request: Mapping[str, Any], events: Any) -> None:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the process died at its start; `_result` reports it
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        for line in events:
            event = json.loads(line)
            if event["event"] in ("result", "failed"):
                self._last_event = event
            else:
                self.on_event(_with_content(event) if event["event"] == "sample" else event)
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            _signal_group(process, signal.SIGKILL)
            process.wait()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()

    def _request(self, work: Work, log: Path, events: int) -> dict[str, Any]:
        local = self.run_context.ray_is_local
        previous = self.run_context.store.latest_outputs().get(self.step.stage.name)
        return {
            "module": self.step.stage.module,
            "config": config_to_dict(self.run_context.graph.config),
            "inputs": {name: str(output.folder) for name, output in self.inputs.items()},
            "output": str(work.output),
            "scratch": str(work.scratch),
            "run_folder": str(self.run_context.store.folder),
            "log": str(log),
            "events": events,
            "previous": str(previous.folder) if previous else None,
            "forced": self.step.forced,
            "ray_address": self.run_context.ray_address,
            "ray_working_dir": None if local else str(REPOSITORY),
            # Without a run for the stage the tracking store has failed; the stage must not wait for it again.
            "tracking_uri": self.run_context.tracking_uri if self.tracking_run_id else None,
            "tracking_run_id": self.tracking_run_id,
        }

    def _result(self) -> StageResult:
        event, name = self._last_event, self.step.stage.name
        if event.get("event") == "result":
            return StageResult(rows=event["rows"], metrics=event["metrics"], notes=event["notes"])
        if self._stopped.is_set():
            reached = f": {event['text']}" if event.get("event") == "failed" else "."  # a training's last step
            raise StoppedError(f"Stage {name} was stopped{reached}")
        if event.get("event") == "failed":
            raise PipelineError(f"Stage {name}: {event['text']}")
        assert self._process is not None
        log = self.run_context.store.log_file(name)
        raise PipelineError(f"Stage {name} {_exit_reason(self._process.returncode)}; its log is {log}.")


def _with_content(event: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add the picture's bytes to a sample: the commit deletes its file, perhaps before the tracker logs it."""
    try:
        return {**event, "content": read_whole(store_path(event["path"]))}
    except Exception as error:  # each object store has exceptions of its own
        reason = getattr(error, "strerror", None) or storage_error(error, event["path"]) or type(error).__name__
        return {"event": "warning", "text": f"the sample {event['path']} cannot be read: {reason}"}


def _exit_reason(returncode: int) -> str:
    if returncode < 0:
        memory = "; the machine may have run out of memory" if -returncode == signal.SIGKILL else ""
        return f"was killed by {signal.Signals(-returncode).name}{memory}"
    return f"ended with exit code {returncode} and without a result"


def _end_orphans(process: subprocess.Popen[str]) -> None:
    """End the children that the process leaves behind: they would keep its event pipe open."""
    process.wait()
    _signal_group(process, signal.SIGKILL)


def _signal_group(process: subprocess.Popen[str], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # all gone
        os.killpg(process.pid, number)


def _python_path(root: Path) -> str:
    folders = [str(root), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    return os.pathsep.join(dict.fromkeys(folder for folder in folders if folder))
