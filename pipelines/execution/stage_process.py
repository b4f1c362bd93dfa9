"""One stage in its own process: `python -m pipelines.execution.stage_process`, started by `stage_job`.

The request is one line of JSON on standard input, events are lines of JSON on the file descriptor that the request
names, and everything that is printed goes to the stage's log. Standard input stays open as long as the runner lives:
at its end the process and all its children go, so that a killed runner leaves nothing behind.
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
from pathlib import Path
from typing import Any

from pipelines.config.loading import config_from_dict
from pipelines.errors import PipelineError, folder_error
from stages.contract import Reporter, StageContext, StageError, StageResult
from stages.ray_tools.cluster import connect


class EventPipe:
    """Writes events for the runner. Threads of a stage may report at the same time."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)  # the stage's own children have nothing to say here
        self._file = os.fdopen(descriptor, "w")
        self._lock = threading.Lock()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Send one event."""
        with self._lock:
            self._file.write(json.dumps(event) + "\n")
            self._file.flush()


def main() -> int:
    """Carry out the request; 0 when the stage has finished, else 1."""
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_runner, daemon=True).start()
    emit = EventPipe(request["events"])
    try:
        result = run_stage(request, emit)
    # A process boundary: whatever happened must be told in one sentence, and the traceback belongs in the log.
    except Exception as error:
        traceback.print_exc()
        emit({"event": "failed", "text": in_one_sentence(error, request)})
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
        inputs={name: Path(folder) for name, folder in request["inputs"].items()},
        output=Path(request["output"]),
        scratch=Path(request["scratch"]),
        report=Reporter(emit=emit),
        previous=Path(request["previous"]) if request["previous"] else None,
        forced=request["forced"],
        tracking_uri=request["tracking_uri"],
        tracking_run_id=request["tracking_run_id"],
    )
    result = module.run(context)
    if not isinstance(result, StageResult):
        raise TypeError(f"{request['module']}.run returned {type(result).__name__}, not a StageResult")
    return result


def in_one_sentence(error: Exception, request: Mapping[str, Any]) -> str:
    """What to tell the user; for what nobody foresaw, the last line of the traceback and where the rest is."""
    cause = getattr(error, "cause", None)  # Ray wraps what a task raises, and prints a traceback in its place
    for known in (error, cause):
        if isinstance(known, StageError | PipelineError) and "\n" not in str(known):
            return str(known)
        if isinstance(known, OSError) and (sentence := folder_error(known, Path(request["run_folder"]))):
            return sentence
    told = traceback.format_exception_only(error)[-1].strip().splitlines()
    last_line = told[-1] if cause is not None else told[0]  # Ray's own message is a whole traceback
    return f"{last_line} (unforeseen; the whole story is in {request['log']})"


def _end_with_the_runner() -> None:
    sys.stdin.read()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # engines leave threads and exit handlers that may wait for each other; all work is on disk
