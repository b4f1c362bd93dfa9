"""The image's Dockerfile, as far as it can be read without building it."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from pipelines.cli.arguments import IMAGE
from pipelines.execution import environment
from pipelines.manifests.pods import USER

REPOSITORY = Path(__file__).parents[2]
DOCKERFILE = REPOSITORY / "infra" / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """(name, arguments) of each instruction; lines that go on are joined."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip()]
    return [(name, " ".join(rest.split())) for name, _, rest in (line.partition(" ") for line in lines)]


def arguments_of(name: str) -> list[str]:
    return [rest for found, rest in instructions() if found == name]


def test_the_base_is_pinned_by_its_digest() -> None:
    (base,) = (rest.partition("=")[2] for rest in arguments_of("ARG") if rest.startswith("PYTHON_IMAGE="))
    assert re.fullmatch(r"python:3\.1[12]\.\d+-slim-\w+@sha256:[0-9a-f]{64}", base)
    assert all(rest.startswith("${PYTHON_IMAGE}") for rest in arguments_of("FROM"))


def test_its_user_is_the_one_of_the_pods_and_not_root() -> None:
    order = [name for name, _ in instructions()]
    assert arguments_of("USER") == [f"{USER}:{USER}"]
    assert order.index("USER") > max(index for index, name in enumerate(order) if name in ("RUN", "COPY"))


def test_code_comes_after_all_that_changes_seldom() -> None:
    last = instructions()[[name for name, _ in instructions()].index("FROM", 2) :]
    (code,) = (index for index, (name, _) in enumerate(last) if name == "COPY")
    installing = [index for index, (name, rest) in enumerate(last) if name == "RUN" and "install" in rest]
    assert len(installing) == 3
    assert code > max(installing)


def test_its_environment_is_the_pipelines() -> None:
    (rest,) = arguments_of("ENV")
    variables = dict(word.split("=", 1) for word in rest.split())
    assert variables.pop("PYTHONPATH") == arguments_of("WORKDIR")[-1]
    assert variables.pop("PYTHONUNBUFFERED") == "1"
    assert variables.items() <= environment._QUIET.items()
    assert {"RAY_USAGE_STATS_ENABLED", "MLFLOW_DISABLE_TELEMETRY"} <= variables.keys()


def test_the_manifests_name_the_version_that_is_built() -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert f"realword:{version}" == IMAGE
    assert f"-t {IMAGE} ." in DOCKERFILE.read_text()


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("pipeline.py", True),
        ("pipelines/config/profiles/sd15.yaml", True),
        ("stages/serve/page/index.html", True),
        ("model/micro_sd/weights/unet/config.json", True),
        ("infra/deepspeed/zero1.json", True),
        ("infra/serve/realword.yaml", True),
        ("requirements.lock", True),
        ("pyproject.toml", True),
        ("infra/.env", False),
        (".env", False),
        (".git/config", False),
        (".venv/bin/python", False),
        ("runs/micro/latest.json", False),
        ("tests/conftest.py", False),
        ("docs/hero.png", False),
        ("stages/__pycache__/config.cpython-311.pyc", False),
    ],
)
def test_what_the_image_holds(path: str, kept: bool) -> None:
    assert is_in_context(path) == kept


def is_in_context(path: str) -> bool:
    """As .dockerignore says: the last pattern that matches the path, or a folder above it, counts."""
    above = [path, *(str(parent) for parent in Path(path).parents if str(parent) != ".")]
    kept = True
    for line in (REPOSITORY / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if line and not line.startswith("#") and any(fnmatch(part, pattern.removeprefix("**/")) for part in above):
            kept = line.startswith("!")
        elif line.startswith("**/") and any(Path(part).name == pattern.removeprefix("**/") for part in above):
            kept = False
    return kept
