from __future__ import annotations

import json
from typing import Any

import pytest

from stages.ray_tools.addresses import JOB_VARIABLE
from stages.ray_tools.runtime_environment import BEHAVIOUR, LOCATIONS, runtime_environment, travelling


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (JOB_VARIABLE, *LOCATIONS, *BEHAVIOUR):
        monkeypatch.delenv(name, raising=False)


CODE = {"working_dir": "/code"}


@pytest.mark.parametrize(
    ("working_dir", "job", "variables", "ships", "expected"),
    [
        (None, None, {}, False, {}),
        ("/code", None, {}, True, {}),
        ("/venv/lib/python3.11/site-packages", None, {}, False, {}),
        ("/code", {}, {}, True, {}),  # a job whose code is in the image's folder, or on the head alone
        ("/code", CODE, {}, False, {}),
        ("/code", {**CODE, "env_vars": {"AWS_REGION": "a"}}, {"AWS_REGION": "a"}, False, {}),
        ("/code", {"env_vars": {}}, {"AWS_REGION": "a"}, True, {"AWS_REGION": "a"}),
        ("/code", None, {"AWS_ENDPOINT_URL": "http://s3:9000"}, True, {"AWS_ENDPOINT_URL": "http://s3:9000"}),
        ("/code", None, {"AWS_ENDPOINT_URL": "http://me:secret@s3:9000"}, True, {}),
        ("/code", None, {"AWS_ENDPOINT_URL": "http://[broken"}, True, {"AWS_ENDPOINT_URL": "http://[broken"}),
        ("/code", None, {"AWS_SECRET_ACCESS_KEY": "x", "AWS_ACCESS_KEY_ID": "x", "HF_TOKEN": "x"}, True, {}),
        ("/code", None, {"RAY_AUTH_TOKEN": "x", "OPENAI_API_KEY": "x", "AWS_SESSION_TOKEN": "x"}, True, {}),
        ("/code", None, {"AZURE_STORAGE_CONNECTION_STRING": "AccountKey=x"}, True, {}),
        ("/code", None, {"PATH": "/bin", "HOME": "/h", "PYTHONPATH": "/p", "CUDA_VISIBLE_DEVICES": ""}, True, {}),
        ("/code", None, {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}, True, {}),  # of this machine
        ("/code", None, {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "disabled"}, True, {}),
        ("/code", None, {"RAY_ADDRESS": "a:1", "RAY_TMPDIR": "/t", "TMPDIR": "/t"}, True, {}),
        ("/code", None, {"HF_HUB_OFFLINE": "1"}, True, {"HF_HUB_OFFLINE": "1"}),
        ("/code", None, {"HF_ENDPOINT": "https://mirror"}, True, {"HF_ENDPOINT": "https://mirror"}),
        ("/code", CODE, {"DO_NOT_TRACK": "1"}, False, {"DO_NOT_TRACK": "1"}),
    ],
)
def test_what_workers_get(
    working_dir: str | None,
    job: dict[str, Any] | None,
    variables: dict[str, str],
    ships: bool,
    expected: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if job is not None:
        monkeypatch.setenv(JOB_VARIABLE, json.dumps({"runtime_env": job}))
    found = runtime_environment(working_dir)
    # The harness's own settings of a test's environment may hold some of the variables.
    assert {name: found["env_vars"].get(name) for name in expected} == expected
    assert not [name for name in found["env_vars"] if name not in expected]
    assert found.get("working_dir") == (working_dir if ships else None)
    assert ("excludes" in found) == ships


def test_no_variable_that_travels_is_named_like_a_secret() -> None:
    words = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL")
    assert not [
        name
        for name in (*LOCATIONS, *BEHAVIOUR)
        if any(word in name for word in words) and name != "TOKENIZERS_PARALLELISM"
    ]
    assert travelling(("A",), {"A": "1", "B": "2"}) == {"A": "1"}
