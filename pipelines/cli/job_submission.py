"""`run --ray-address http://HEAD:8265`: the run as a Ray job, from a machine that is no node of the cluster.

The code goes with it. Its output is shown here, and its exit code is the command's. Ctrl-C stops the job; when this
machine is switched off, it goes on.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.config.loading import parse_settings
from pipelines.errors import PipelineError, StoppedError, UsageError
from pipelines.execution.signals import stopped_by_signals
from pipelines.execution.stage_job import STOP_SECONDS
from pipelines.graph import REPOSITORY
from stages.ray_tools.runtime_environment import EXCLUDES, LOCATIONS, ships_code, travelling

_POLL_SECONDS = 1
#: After so long without output the connection is made again: a machine that is lost does not close it.
_SILENCE_SECONDS = 30
#: A dashboard that has not answered for so long is taken for lost.
_PATIENCE_SECONDS = 90
#: Ray's copy of a job's working directory, which Ray removes after the job.
_COPIES = "working_dir_files"


class JobError(PipelineError):
    """The job has failed; its exit code is the command's."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def submit(dashboard: str, arguments: argparse.Namespace) -> None:
    """Submit the command `run`, show its output, and wait for its end.

    Raises:
        UsageError: The cluster's machines cannot keep the run folder.
        PipelineError: The cluster does not take the job, or the job failed or was stopped.
    """
    run_folder = str(parse_settings(arguments.settings).get("run.folder", f"runs/{arguments.profile}"))
    if not run_folder.startswith(("/", "~")) and "://" not in run_folder:
        raise UsageError(_needs_place(run_folder))
    logging.disable(logging.WARNING)  # Ray names each file that it leaves out, and each connection that it closes
    client = _client(dashboard)
    entrypoint = shlex.join(entrypoint_words(arguments))
    try:
        job = str(client.submit_job(entrypoint=entrypoint, runtime_env=_runtime_environment()))
    except (RuntimeError, ValueError, OSError) as error:
        raise PipelineError(f"The Ray cluster at {dashboard} does not take the job: {_first_line(error)}") from error
    print(f"Submitted as job {job} to {dashboard}: {entrypoint}", flush=True)
    with stopped_by_signals():
        _follow(_Job(client, job, dashboard))


def check_run_folder(run_folder: str) -> None:
    """Refuse a run folder in the copy of the code that Ray makes for a job and removes after it.

    Raises:
        UsageError: It is there.
    """
    if _COPIES in Path(run_folder).parts:
        raise UsageError(_needs_place(run_folder))


def entrypoint_words(arguments: argparse.Namespace) -> list[str]:
    """The command as the job runs it, without its address."""
    words = ["python", "pipeline.py", "run", f"--profile={arguments.profile}", f"--stage={arguments.stage}"]
    words += [f"--set={setting}" for setting in arguments.settings]
    words += [f"--force={name}" for name in arguments.force]
    words += [f"--from={arguments.start}"] if arguments.start else []
    return words + (["--dry-run"] if arguments.dry_run else [])


def _needs_place(run_folder: str) -> str:
    return (
        f"run.folder is {run_folder}, which a Ray job would write into its own copy of the code, and Ray removes that: "
        "set run.folder to an object store, such as s3://bucket/run, or to an absolute path that all nodes share."
    )


def _client(dashboard: str) -> Any:
    _use_token()  # Ray reads the variable when it is imported
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(dashboard)
    except AuthenticationError as error:
        raise PipelineError(
            f"The Ray cluster at {dashboard} does not accept this machine's token: set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, to the cluster's."
        ) from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise PipelineError(
            f"No dashboard of a Ray cluster answers at {dashboard} ({_first_line(error)}); check --ray-address."
        ) from error


def _use_token(environment: Mapping[str, str] = os.environ) -> None:
    """Let the client send the token that there is, as Ray's drivers do by themselves."""
    given = environment.get("RAY_AUTH_TOKEN") or environment.get("RAY_AUTH_TOKEN_PATH")
    if "RAY_AUTH_MODE" not in environment and (given or (Path.home() / ".ray" / "auth_token").exists()):
        os.environ["RAY_AUTH_MODE"] = "token"


def _runtime_environment() -> dict[str, Any]:
    # A training writes a checkpoint when the job is stopped; Ray would kill it after 3 seconds.
    variables = {**travelling(LOCATIONS), "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS + 30)}
    code = {"working_dir": str(REPOSITORY), "excludes": list(EXCLUDES)} if ships_code(str(REPOSITORY)) else {}
    return {"env_vars": variables, **code}


class _Job:
    """A submitted job."""

    def __init__(self, client: Any, name: str, dashboard: str) -> None:
        self.client, self.name, self.dashboard = client, name, dashboard
        self._shown = 0  # characters of its output

    def wait(self) -> Any:
        """Show the job's output until it has ended; returns Ray's details of it.

        Raises:
            PipelineError: The dashboard has not answered for a while.
        """
        from aiohttp import ClientError

        answered = time.monotonic()
        while True:
            try:
                details = self.client.get_job_info(self.name)
                answered = time.monotonic()
                if details.status.is_terminal():
                    self._print(self.client.get_job_logs(self.name), 0)
                    return details
                asyncio.run(self._show())
            except (RuntimeError, OSError, ClientError) as error:  # the connection is lost; the job goes on
                if time.monotonic() - answered > _PATIENCE_SECONDS:
                    raise PipelineError(
                        f"The Ray cluster at {self.dashboard} does not answer any more: if it still runs the job "
                        f"{self.name}, that goes on; if the cluster is lost, the same command with the address of "
                        "another one continues."
                    ) from error
                time.sleep(_POLL_SECONDS)

    async def _show(self) -> None:
        start, now = 0, asyncio.get_running_loop().time
        async with asyncio.timeout(_SILENCE_SECONDS) as limit:
            async for text in self.client.tail_job_logs(self.name):
                self._print(text, start)
                start += len(text)
                limit.reschedule(now() + _SILENCE_SECONDS)
        await asyncio.sleep(_POLL_SECONDS)  # the state follows the output

    def _print(self, text: str, start: int) -> None:
        """Print what has not been shown of a text that begins at the `start`-th character of the output."""
        new = text[max(0, self._shown - start) :]
        self._shown = max(self._shown, start + len(text))
        print(new, end="", flush=True)


def _follow(job: _Job) -> None:
    try:
        details = job.wait()
    except KeyboardInterrupt:
        print(f"Stopping job {job.name}; Ctrl-C again leaves it to itself.", file=sys.stderr)
        job.client.stop_job(job.name)
        details = job.wait()
    status = str(details.status)
    if status == "STOPPED":
        raise StoppedError(f"The job {job.name} was stopped; the same command continues from there.")
    if status != "SUCCEEDED":
        code = details.driver_exit_code
        reason = f"exit code {code}" if code else _first_line(details.message)
        raise JobError(f"The job {job.name} on {job.dashboard} has failed ({reason}).", code or 1)


def _first_line(error: Any) -> str:
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), "no reason is known")
