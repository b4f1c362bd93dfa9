from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from stages.contract import StageError
from stages.ray_tools.addresses import AddressError, find_cluster

NOBODY = "127.0.0.1:9"


def test_local_is_a_cluster_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", NOBODY)
    assert find_cluster("local") is None


@pytest.mark.parametrize("address", ["ray://10.0.0.1:10001", "here", "127.0.0.1", ":6379", "127.0.0.1:head", ""])
def test_another_form_of_address_is_refused_with_what_to_give(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AddressError) as caught:
        find_cluster(address)
    assert all(part in str(caught.value) for part in ("--ray-address", address, "host:port", "auto"))
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(AddressError, match="RAY_ADDRESS"):
            find_cluster("auto")


@pytest.mark.parametrize(("address", "source"), [(NOBODY, "--ray-address"), ("auto", "RAY_ADDRESS")])
def test_an_address_where_nobody_answers(address: str, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", NOBODY)
    with pytest.raises(StageError) as caught:
        find_cluster(address)
    assert NOBODY in str(caught.value)
    assert source in str(caught.value)


def test_auto_without_a_cluster_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def find_nothing(*arguments: Any, **options: Any) -> None:  # as on a machine on which no other Ray runs
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", find_nothing)
    with pytest.raises(StageError) as caught:
        find_cluster("auto")
    assert all(part in str(caught.value) for part in ("--ray-address", "auto", "ray start --head", "RAY_ADDRESS"))


@pytest.mark.slow
def test_a_running_cluster_is_found(ray_cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_cluster(ray_cluster) == ray_cluster
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster)
    assert find_cluster("auto") == ray_cluster
    monkeypatch.delenv("RAY_ADDRESS")
    code = (
        "from stages.ray_tools.cluster import connect, find_cluster\n"
        "address = find_cluster('auto')\n"
        "connect(address)\n"
        "print(address)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert find_cluster(found.stdout.split()[-1]), "this one, or another one of this machine"
