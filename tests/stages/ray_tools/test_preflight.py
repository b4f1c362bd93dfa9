from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle

from stages.ray_tools.preflight import (
    NodeReport,
    code_digest,
    folder_error,
    node_task,
    problem_of,
    report_of_this_machine,
    warnings_of,
)

OWN = NodeReport(
    python="3.11.7", ray="2.60.0", packages={"torch": "2.13.0+cpu", "numpy": "2.4.6"}, code="abc", clock=1000.0
)
NODE = "gpu-1 (10.0.0.3)"


@pytest.mark.parametrize(
    ("changes", "same_code", "words"),
    [
        ({"ray": "2.59.0"}, False, ["Ray 2.59.0", "Ray 2.60.0", "same image"]),
        ({"python": "3.12.1"}, False, ["Python 3.12.1", "3.11.7"]),
        ({"python": "3.10.7"}, True, ["Python 3.10.7"]),
        ({"packages": {"numpy": "2.4.6"}}, False, ["torch", "image", "runtime_env", "pip"]),
        ({"packages": {}}, False, ["torch", "image"]),
        ({"code": "def"}, True, ["another version of the project's code", "--working-dir"]),
        ({"folder_error": "the run folder is not there."}, False, ["the run folder is not there."]),
        ({"ray": "2.59.0", "folder_error": "x"}, False, ["Ray 2.59.0"]),
    ],
)
def test_why_a_node_cannot_work(changes: dict[str, Any], same_code: bool, words: list[str]) -> None:
    sentence = problem_of(NODE, dataclasses.replace(OWN, **changes), OWN, same_code=same_code)
    assert sentence is not None
    assert sentence.endswith(".")
    assert all(word in sentence for word in [NODE, *words])


@pytest.mark.parametrize(
    ("changes", "same_code"),
    [
        ({}, True),
        ({"python": "3.11.9"}, True),
        ({"packages": {"torch": "2.13.0+cu128", "numpy": "2.4.6", "xxhash": "1"}}, True),
        ({"packages": {"torch": "2.12.0", "numpy": "2.4.6"}}, True),  # a warning
        ({"code": "def"}, False),  # it gets the driver's
        ({"clock": 5000.0}, True),  # a warning
    ],
)
def test_a_node_that_can(changes: dict[str, Any], same_code: bool) -> None:
    assert problem_of(NODE, dataclasses.replace(OWN, **changes), OWN, same_code=same_code) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, []),
        ({"clock": 1004.0}, []),
        ({"clock": 998.0}, []),
        ({"clock": 1016.0}, ["6 s ahead of"]),
        ({"clock": 940.0}, ["60 s behind"]),
        ({"clock": 4610.0}, ["3600 s ahead of"]),
        ({"packages": {"torch": "2.13.0+cu128", "numpy": "2.4.6"}}, []),
        ({"packages": {"torch": "2.12.0+cu128", "numpy": "2.4.6"}}, ["torch 2.12.0"]),
    ],
)
def test_what_is_said_of_a_node_that_can(changes: dict[str, Any], words: list[str]) -> None:
    """The node has answered between 1000 and 1010 of this machine's clock."""
    found = warnings_of(NODE, dataclasses.replace(OWN, **changes), OWN, 1000.0, 1010.0)
    assert len(found) == bool(words)
    assert all(word in found[0] for word in [NODE, *words] if found)


def test_a_run_folder_that_is_shared_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("token")
    assert folder_error(tmp_path, "token") is None
    assert [file.name for file in tmp_path.iterdir()] == ["token"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: None, ["not on a disk that it shares", "run.folder", "s3://"]),
        (lambda folder: (folder / "token").write_text("other"), ["other files"]),
        (lambda folder: (folder / "token").mkdir(), ["cannot be read and written", "credentials"]),
    ],
)
def test_why_a_run_folder_cannot_be_used(make: Any, words: list[str], tmp_path: Path) -> None:
    make(tmp_path)
    sentence = folder_error(tmp_path, "token")
    assert sentence is not None
    assert all(word in sentence for word in [str(tmp_path), *words])


def test_the_code_has_a_digest(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    before = code_digest(tmp_path)
    (tmp_path / "stages" / "a.py").write_text("a = 1")
    assert code_digest(tmp_path) != before
    assert report_of_this_machine().packages["torch"].startswith("2.")


@pytest.mark.parametrize("module", ["stages", "pydantic"])
def test_a_node_without_a_package_says_so(module: str, tmp_path: Path) -> None:
    """The task is sent as code: it runs where this project, or what it needs, is not installed."""
    (tmp_path / "task").write_bytes(cloudpickle.dumps(node_task(tmp_path, "token")))
    code = (
        "import sys\n"
        "from ray import cloudpickle\n"
        "sys.modules[sys.argv[2]] = None\n"  # as if it were not there
        "print(cloudpickle.loads(open(sys.argv[1], 'rb').read())())"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "task"), module]
    found = subprocess.run(words, capture_output=True, text=True, check=True)
    assert found.stdout.startswith(f"{{'missing': '{module}")
