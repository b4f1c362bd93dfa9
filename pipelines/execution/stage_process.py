"""One stage in its own process: `python -m pipelines.execution.stage_process`, started by `stage_job`.

The request is one line of JSON on standard input. Events are lines of JSON on the file descriptor that the request
names. All printed output goes to the stage's log. The runner holds standard input open: when it ends, this process and
its children end too, so that a killed runner leaves no process behind.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from typing import Any

from pipelines.config.loading import config_from_dict
from pipelines.errors import PipelineError, folder_error
from stages.contract import Reporter, StageContext, StageError, StageResult
from stages.ray_tools.cluster import connect
from stages.storage import StorageError, store_path


class EventPipe:
    """Sends events to the runner; thread-safe."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)  # the stage's children must not keep the pipe open
        self._file = os.fdopen(descriptor, "w")
        self._lock = threading.Lock()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Send one event."""
        with self._lock:
            self._file.write(json.dumps(event) + "\n")
            self._file.flush()


def main() -> int:
    """Run the requested stage; returns the exit code."""
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_runner, daemon=True).start()
    emit = EventPipe(request["events"])
    try:
        result = run_stage(request, emit)
    except Exception as error:  # the runner shows any error as one sentence; the log gets the traceback
        traceback.print_exc()
        emit({"event": "failed", "text": error_message(error, request)})
        return 1
    emit({"event": "result", "rows": result.rows, "metrics": result.metrics, "notes": result.notes})
    return 0


def run_stage(request: Mapping[str, Any], emit: EventPipe) -> StageResult:
    """Join Ray and run the stage's module."""
    if request["ray_address"] is not None:
        connect(request["ray_address"], request["ray_working_dir"])
    module = importlib.import_module(request["module"])
    context = StageContext(
        config=config_from_dict(request["config"]),
        inputs={name: store_path(folder) for name, folder in request["inputs"].items()},
        output=store_path(request["output"]),
        scratch=store_path(request["scratch"]),
        report=Reporter(emit=emit),
        previous=store_path(request["previous"]) if request["previous"] else None,
        forced=request["forced"],
        tracking_uri=request["tracking_uri"],
        tracking_run_id=request["tracking_run_id"],
    )
    result = module.run(context)
    if not isinstance(result, StageResult):
        raise TypeError(f"{request['module']}.run returned {type(result).__name__}, not a StageResult")
    return result


def error_message(error: Exception, request: Mapping[str, Any]) -> str:
    """One sentence for the user; for an unexpected error, its message and the path of the log."""
    cause = getattr(error, "cause", None)  # Ray wraps the errors of its workers
    for known in (error, cause):
        if isinstance(known, StageError | PipelineError | StorageError) and "\n" not in str(known):
            return str(known)
        if known is not None and (sentence := folder_error(known, store_path(request["run_folder"]))):
            return sentence
    lines = traceback.format_exception_only(error)[-1].strip().splitlines()
    line = lines[-1] if cause is not None else lines[0]  # the message of Ray's error is a traceback
    return f"{line} (unexpected; the traceback is in {request['log']})"


def _end_with_the_runner() -> None:
    sys.stdin.read()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # without exit handlers and threads of libraries, which may deadlock; everything is on disk
