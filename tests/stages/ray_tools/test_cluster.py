from __future__ import annotations

import os
import subprocess
import sys

import pytest

from stages.ray_tools import cluster
from stages.ray_tools.cluster import refusal

ADDRESS = "10.0.0.1:6379"
VERSIONS = (
    "Version mismatch: The cluster was started with:\n    Ray: 2.59.0\n    Python: 3.12.1\n"
    "This process on node 10.0.0.2 was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n"
)


class AuthenticationError(Exception):
    """As Ray's is called."""


@pytest.mark.parametrize(
    ("error", "printed", "words"),
    [
        (RuntimeError(VERSIONS), "", ["other versions", "Ray: 2.59.0", "Python: 3.12.1", "Python: 3.11.7"]),
        (ConnectionError("Failed to connect"), "W gcs_client.cc: InvalidAuthToken: ...", ["RAY_AUTH_TOKEN", "token"]),
        (AuthenticationError("no token was found"), "", ["RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN_PATH"]),
        (RuntimeError("Token authentication is enabled but"), "", ["RAY_AUTH_TOKEN"]),
        (ConnectionError("Could not find any running Ray instance."), "", ["ray start --head", "RAY_ADDRESS"]),
        (ConnectionError("Failed to connect to Ray\nmore"), "", ["cannot be joined: Failed to connect to Ray"]),
    ],
)
def test_why_a_cluster_does_not_take_a_driver(error: Exception, printed: str, words: list[str]) -> None:
    sentence = refusal(ADDRESS, error, printed)
    assert "\n" not in sentence
    assert all(word in sentence for word in [ADDRESS, *words])


def test_what_is_printed_while_connecting_is_held_back(capfd: pytest.CaptureFixture[str]) -> None:
    for shown in (False, True):
        with cluster._printed() as printed:
            os.write(2, b"from C++\n")
            assert printed.text() == "from C++\n"
            if shown:
                printed.show()
        os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\nfrom C++\nafter\n"


@pytest.mark.slow
def test_a_run_that_visits_a_cluster_keeps_its_handler_of_sigterm(ray_cluster: str) -> None:
    """Ray replaces it when it is joined, and takes it from the kernel, but not from Python, when it is left."""
    code = (
        "import os, signal, sys\n"
        "from stages.ray_tools.cluster import connected_cluster\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('caught', flush=True))\n"
        "with connected_cluster(sys.argv[1], ''):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    found = subprocess.run([sys.executable, "-c", code, ray_cluster], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "caught\ncaught\n")
