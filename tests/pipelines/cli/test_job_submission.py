from __future__ import annotations

import asyncio
import shlex
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.cli.arguments import parse_arguments
from pipelines.cli.job_submission import JobError, _follow, _Job, check_run_folder, entrypoint_words, submit
from pipelines.errors import PipelineError, StoppedError, UsageError


@pytest.mark.parametrize(
    "words",
    [
        "run",
        "run --stage ingest",
        "run --profile sd15 --stage all",
        "run --set run.folder=s3://b/r",
        "run --set filter.min_aesthetic=6.0 --set compute.workers=4",
        "run --force base --force ingest --from filter",
        "run --dry-run",
        "run --set 'prompts.concepts=[a mug, \"a, b\"]'",
        "run --set 'evaluate.prompts=[a {word} $HOME `x`]'",
        "run --set=--odd=1",
        "run --ray-address http://10.0.0.1:8265 --stage base",
        "run --set 'customize.words=[Tässchen]'",
    ],
)
def test_the_job_runs_the_same_command(words: str) -> None:
    arguments = parse_arguments(shlex.split(words))
    python, script, *found = shlex.split(shlex.join(entrypoint_words(arguments)))
    assert (python, script) == ("python", "pipeline.py")
    again = parse_arguments(found)
    arguments.ray_address = None
    assert again == arguments


@pytest.mark.parametrize("settings", [[], ["--set=run.folder=out"], ["--set=run.folder=runs/a"], ["--profile=sd15"]])
def test_a_run_folder_in_the_jobs_own_code_is_refused_before_it_is_submitted(settings: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        submit("http://127.0.0.1:9", parse_arguments(["run", *settings]))
    assert all(word in str(caught.value) for word in ("run.folder", "s3://", "absolute"))


@pytest.mark.parametrize(
    ("folder", "refused"),
    [
        ("/tmp/ray/session_2026/runtime_resources/working_dir_files/_ray_pkg_1/runs/micro", True),
        ("/data/runs/micro", False),
        ("s3://bucket/run", False),
        ("/data/working_dir_files_of_mine", False),
    ],
)
def test_a_run_folder_in_the_jobs_own_code_is_refused_in_the_job(folder: str, refused: bool) -> None:
    if not refused:
        check_run_folder(folder)
        return
    with pytest.raises(UsageError, match=r"run\.folder.*s3://"):
        check_run_folder(folder)


class Client:
    """A dashboard whose job prints `output`; its connection breaks after each of `breaks` characters."""

    def __init__(self, output: str, status: str, breaks: list[int], exit_code: int | None = None) -> None:
        self.output, self.breaks, self.stopped = output, breaks, False
        self.status, self.exit_code = status, exit_code

    def get_job_info(self, name: str) -> Any:
        status = _Status(self.status if not self.breaks else "RUNNING")
        return SimpleNamespace(status=status, driver_exit_code=self.exit_code, message="Its node was lost.\nmore")

    def get_job_logs(self, name: str) -> str:
        return self.output

    def stop_job(self, name: str) -> None:
        self.stopped, self.status = True, "STOPPED"

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        end = self.breaks.pop(0)
        for start in range(0, end, 3):
            yield self.output[start : min(start + 3, end)]
        if end < 0:
            raise KeyboardInterrupt
        raise RuntimeError("WebSocket connection closed unexpectedly")


class _Status(str):
    def is_terminal(self) -> bool:
        return self in ("SUCCEEDED", "FAILED", "STOPPED")


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.cli.job_submission._POLL_SECONDS", 0)


@pytest.mark.parametrize("breaks", [[], [0], [5], [16], [5, 10], [10, 5], [3, 0, 16]])
def test_the_output_is_shown_once_however_often_the_connection_breaks(
    breaks: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    _follow(_Job(Client("0123456789abcde\n", "SUCCEEDED", breaks), "job", "http://head:8265"))
    assert capsys.readouterr().out == "0123456789abcde\n"


@pytest.mark.parametrize(
    ("exit_code", "expected", "reason"), [(7, 7, "exit code 7"), (None, 1, "Its node was lost"), (2, 2, "exit code 2")]
)
def test_a_failed_job_is_a_failed_command(exit_code: int | None, expected: int, reason: str) -> None:
    with pytest.raises(JobError, match=reason) as caught:
        _follow(_Job(Client("", "FAILED", [], exit_code), "job", "http://head:8265"))
    assert caught.value.exit_code == expected


def test_ctrl_c_stops_the_job_and_shows_how_it_ends(capsys: pytest.CaptureFixture[str]) -> None:
    client = Client("stopped at step 3\n", "RUNNING", [-1, 4])
    with pytest.raises(StoppedError, match="continues"):
        _follow(_Job(client, "job", "http://head:8265"))
    assert client.stopped
    assert capsys.readouterr().out == "stopped at step 3\n"


class SilentClient(Client):
    """A dashboard whose machine is lost: its open connection stays silent, and after it nothing answers."""

    def __init__(self, answers: int) -> None:
        super().__init__("done\n", "SUCCEEDED", [])
        self.answers = answers

    def get_job_info(self, name: str) -> Any:
        self.answers -= 1
        if self.answers < 0:
            raise ConnectionError("no route to host")
        self.breaks = [1] if self.answers else []
        return super().get_job_info(name)

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        await asyncio.sleep(60)
        yield ""


def test_a_silent_connection_is_made_again(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("pipelines.cli.job_submission._SILENCE_SECONDS", 0.05)
    _follow(_Job(SilentClient(answers=3), "job", "http://head:8265"))
    assert capsys.readouterr().out == "done\n"


def test_a_lost_cluster_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.cli.job_submission._PATIENCE_SECONDS", 0.1)
    with pytest.raises(PipelineError, match=r"http://head:8265 does not answer.*job job, .*the same command"):
        _follow(_Job(SilentClient(answers=0), "job", "http://head:8265"))
