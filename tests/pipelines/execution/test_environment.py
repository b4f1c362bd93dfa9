from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from pipelines.execution.environment import MAX_RAY_FOLDER_LENGTH, set_environment, temporary_folder


def test_variables_of_the_user_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"WANDB_MODE": "offline"})
    set_environment("sd15")
    assert os.environ["WANDB_MODE"] == "offline"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert "HF_HUB_OFFLINE" not in os.environ
    set_environment("micro")
    assert os.environ["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize(
    ("local_ray", "given", "expected"),
    [
        (True, {}, ("disabled", "0")),
        (True, {"RAY_AUTH_MODE": "token"}, ("token", "0")),
        (False, {}, (None, None)),
        (False, {"RAY_AUTH_MODE": "token"}, ("token", None)),
        (False, {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}, ("disabled", "1")),
    ],
)
def test_a_cluster_has_its_own_authentication_and_network(
    local_ray: bool, given: dict[str, str], expected: tuple[str | None, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(given))
    set_environment("micro", local_ray=local_ray)
    assert (os.environ.get("RAY_AUTH_MODE"), os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")) == expected
    assert local_ray or "DS_ACCELERATOR" not in os.environ  # the nodes' devices are not this machine's


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"http_proxy": "http://p:1"}, "localhost,127.0.0.1,::1"),
        ({"ALL_PROXY": "socks5://p:1", "NO_PROXY": ".corp, 127.0.0.1"}, ".corp,127.0.0.1,localhost,::1"),
        ({"HTTPS_PROXY": "p:1", "no_proxy": "a", "NO_PROXY": "b"}, "a,localhost,127.0.0.1,::1"),
        ({"http_proxy": "p:1", "no_proxy": "*"}, "*"),
        ({"no_proxy": "a"}, "a"),  # no proxy is set
        ({}, None),
    ],
)
def test_this_machine_is_asked_without_a_proxy(
    given: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(given))
    set_environment("micro")
    assert os.environ.get("no_proxy") == expected
    if "http_proxy" in given:
        assert os.environ["NO_PROXY"] == expected


def test_a_run_folder_that_cannot_be_written_to_gets_another_temporary_folder() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        (Path(short) / ".ray").write_text("in the way, as a read-only disk would be")
        with temporary_folder(Path(short)) as folder:
            assert not folder.is_relative_to(short)


def test_temporary_files_are_removed_with_the_run() -> None:
    before = os.environ.get("RAY_TMPDIR"), tempfile.gettempdir()
    with tempfile.TemporaryDirectory(dir="/tmp") as short, temporary_folder(Path(short)) as folder:
        assert folder == Path(short) / ".ray" / str(os.getpid())
        assert os.environ["RAY_TMPDIR"] == str(folder)
        assert Path(tempfile.mkdtemp()).is_relative_to(folder)
        log = (folder / "log").open("w")  # as Ray keeps some open in this very process
    assert not folder.parent.exists()
    log.close()
    assert (os.environ.get("RAY_TMPDIR"), tempfile.gettempdir()) == before


def test_a_signal_to_all_processes_of_a_run_does_not_end_its_cleanup() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short, temporary_folder(Path(short)) as folder:
        cleanup = next(child for child in psutil.Process().children() if str(folder) in child.cmdline())
        deadline = time.monotonic() + 30
        while "00004000" not in _ignored_signals(cleanup.pid):  # SIGTERM, once its Python has started
            assert time.monotonic() < deadline
            time.sleep(0.05)
        cleanup.terminate()
    assert not folder.exists()


def _ignored_signals(process: int) -> str:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    mask = int(next(line.split()[1] for line in lines if line.startswith("SigIgn")), 16)
    return f"{mask & 0x4000:08x}"


def test_a_long_path_is_too_long_for_sockets(tmp_path: Path) -> None:
    with temporary_folder(tmp_path / "a-long-name-for-a-run-folder") as folder:
        assert not folder.is_relative_to(tmp_path)
        assert len(str(folder)) <= MAX_RAY_FOLDER_LENGTH
    assert not folder.exists()


def test_a_long_temporary_folder_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # as inside another run
    monkeypatch.setattr(tempfile, "tempdir", None)
    with temporary_folder(tmp_path / "run") as folder:
        assert len(str(folder)) <= MAX_RAY_FOLDER_LENGTH < len(str(tmp_path))
        assert tempfile.gettempdir() == str(folder / "tmp")
    assert not folder.exists()


def test_after_a_killed_run_its_processes_end_and_its_folder_is_removed() -> None:
    code = (
        "import subprocess, sys, time, pathlib; from pipelines.execution.environment import temporary_folder\n"
        "with temporary_folder(pathlib.Path(sys.argv[1])) as folder:\n"
        "    first = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "    log = (folder / 'log').open('w')\n"
        "    second = subprocess.Popen(['sleep', '600'], start_new_session=True, env={}, stdout=log)\n"
        "    print(first.pid, second.pid, folder, flush=True)\n"
        "    time.sleep(600)\n"
    )
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        run = subprocess.Popen([sys.executable, "-c", code, short], stdout=subprocess.PIPE, text=True)
        assert run.stdout is not None
        *children, folder = run.stdout.readline().split()
        paths = [Path(folder), *(Path("/proc", child) for child in children)]
        assert all(path.exists() for path in paths)
        run.kill()
        run.communicate()
        deadline = time.monotonic() + 30
        while any(path.exists() for path in paths):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_password_leaves_the_uri_of_the_tracking_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://anna:hush@mlflow:5000")
    for name in ("USERNAME", "PASSWORD"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "of another server")
    set_environment("micro")
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("anna", "hush")
