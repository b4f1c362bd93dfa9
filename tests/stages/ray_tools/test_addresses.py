from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stages.contract import StageError
from stages.ray_tools.addresses import (
    JOB_VARIABLE,
    AddressError,
    dashboard_of,
    find_cluster,
    is_local,
    job_runtime_environment,
)

NOBODY = "127.0.0.1:9"
DASHBOARD = "http://10.0.0.1:8265"
IN_A_JOB = json.dumps({"runtime_env": {"working_dir": "gcs://_ray_pkg_1.zip"}, "metadata": {"job_submission_id": "a"}})


@pytest.fixture(autouse=True)
def no_cluster_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", JOB_VARIABLE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def somebody() -> Iterator[str]:
    """An address at which something listens that is no Ray."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("given", "job", "ray_address", "local", "dashboard"),
    [
        (None, None, None, True, None),
        (None, None, NOBODY, True, None),  # a variable alone moves no run to a cluster
        (None, None, DASHBOARD, True, None),
        (None, IN_A_JOB, NOBODY, False, None),
        (None, "{}", NOBODY, False, None),
        ("local", None, None, True, None),
        ("local", None, NOBODY, True, None),
        ("local", IN_A_JOB, NOBODY, True, None),
        ("auto", None, None, False, None),
        ("auto", None, NOBODY, False, None),
        ("auto", IN_A_JOB, NOBODY, False, None),
        ("auto", None, DASHBOARD, False, DASHBOARD),
        ("10.0.0.1:6379", None, None, False, None),
        ("10.0.0.1:6379", None, DASHBOARD, False, None),
        ("[fd00::1]:6379", None, None, False, None),
        ("ray://10.0.0.1:10001", None, None, False, None),
        (DASHBOARD, None, None, False, DASHBOARD),
        (f"{DASHBOARD}/", None, None, False, DASHBOARD),
        ("HTTP://10.0.0.1:8265", None, None, False, "HTTP://10.0.0.1:8265"),
        ("https://ray.example.com", None, None, False, "https://ray.example.com"),
        ("https://example.com/ray/", None, None, False, "https://example.com/ray"),
        (DASHBOARD, IN_A_JOB, NOBODY, False, DASHBOARD),
    ],
)
def test_what_an_address_means(
    given: str | None,
    job: str | None,
    ray_address: str | None,
    local: bool,
    dashboard: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in ((JOB_VARIABLE, job), ("RAY_ADDRESS", ray_address)):
        if value is not None:
            monkeypatch.setenv(name, value)
    assert (is_local(given), dashboard_of(given)) == (local, dashboard)


def test_a_job_has_a_runtime_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert job_runtime_environment() is None
    monkeypatch.setenv(JOB_VARIABLE, IN_A_JOB)
    assert job_runtime_environment() == {"working_dir": "gcs://_ray_pkg_1.zip"}
    monkeypatch.setenv(JOB_VARIABLE, '{"runtime_env": null}')
    assert job_runtime_environment() == {}


def test_local_is_a_cluster_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", NOBODY)
    assert find_cluster("local") is None
    assert find_cluster(None) is None


@pytest.mark.parametrize("address", ["here", "127.0.0.1", ":6379", "127.0.0.1:head", "10.0.0.1:6379/", "", "tcp://a:1"])
def test_another_form_of_address_is_refused_with_what_to_give(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AddressError) as caught:
        find_cluster(address)
    assert all(part in str(caught.value) for part in ("--ray-address", address, "host:port", "auto", "http://"))
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(AddressError, match="RAY_ADDRESS"):
            find_cluster("auto")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ray://10.0.0.1:10001", ["Ray client", "http://10.0.0.1:8265", "--ray-address auto"]),
        (DASHBOARD, ["only `run`", "--ray-address auto"]),
    ],
)
def test_the_ray_client_and_a_dashboard_are_no_place_for_a_driver(address: str, words: list[str]) -> None:
    with pytest.raises(AddressError) as caught:
        find_cluster(address)
    assert all(word in str(caught.value) for word in [address, *words])


@pytest.mark.parametrize(("address", "source"), [(NOBODY, "--ray-address"), ("auto", "RAY_ADDRESS")])
def test_an_address_where_nobody_answers(address: str, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", NOBODY)
    with pytest.raises(StageError) as caught:
        find_cluster(address)
    assert NOBODY in str(caught.value)
    assert source in str(caught.value)


def test_a_machine_without_ray_is_sent_to_the_dashboard(somebody: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    monkeypatch.setattr(psutil, "process_iter", lambda names: iter(()))  # other Rays may run on this machine
    with pytest.raises(StageError) as caught:
        find_cluster(somebody)
    assert all(word in str(caught.value) for word in (somebody, "no node", "--ray-address=http://127.0.0.1:8265"))


def test_auto_without_a_cluster_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def find_nothing(*arguments: Any, **options: Any) -> None:  # as on a machine on which no other Ray runs
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "init", find_nothing)
    with pytest.raises(StageError) as caught:
        find_cluster("auto")
    assert all(part in str(caught.value) for part in ("--ray-address", "auto", "ray start --head", "RAY_ADDRESS"))


@pytest.mark.slow
def test_a_running_cluster_is_found(ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_cluster(ray_cluster) == ray_cluster
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster)
    assert find_cluster("auto") == ray_cluster
    monkeypatch.delenv("RAY_ADDRESS")
    # Other Rays may run on this machine: Ray takes the one of the last `ray start`, which leaves this file.
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(ray_cluster)
    code = (
        "from stages.ray_tools.addresses import find_cluster\n"
        "from stages.ray_tools.cluster import connect\n"
        "address = find_cluster('auto')\n"
        "connect(address)\n"
        "print(address)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert found.stdout.split()[-1] == ray_cluster
