"""The import directions of docs/architecture.md, read from the source without importing it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("model", "prompts", "stages", "pipelines")

#: What each package may import of the project, besides itself.
ALLOWED: dict[str, set[str]] = {
    "model": set(),
    "prompts": set(),
    "stages": {"model", "prompts"},
    "pipelines": {"stages", "model", "prompts"},
}
#: Single modules of other packages; this one needs no torch.
ALLOWED_MODULES = {"prompts": {"model.phrases"}}
#: Shared parts of `stages/`; every other package there is a stage, or the command `serve`.
SHARED_STAGE_PACKAGES = {"data", "ray_tools", "training"}
ENGINES = {"ray", "mlflow", "deepspeed", "img2dataset"}


def modules(package: str) -> list[Path]:
    return sorted((REPOSITORY / package).rglob("*.py"))


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str) -> None:
    forbidden = (set(PACKAGES) | {"tests", "pipeline"}) - ALLOWED[package] - {package}
    allowed = ALLOWED_MODULES.get(package, set())
    wrong = [
        f"{file.relative_to(REPOSITORY)} imports {name}"
        for file in modules(package)
        for name in imported(file)
        if name.partition(".")[0] in forbidden and name not in allowed
    ]
    assert not wrong


def test_model_imports_no_engine() -> None:
    wrong = [
        f"{file.relative_to(REPOSITORY)} imports {name}"
        for file in (*modules("model"), *modules("prompts"))
        for name in imported(file)
        if name.partition(".")[0] in ENGINES
    ]
    assert not wrong


def test_no_stage_imports_another() -> None:
    """Each stage declares and configures itself; only `stages/config.py` sees the sections of all."""
    wrong = []
    for file in modules("stages"):
        own = file.relative_to(REPOSITORY / "stages").parts[0]
        for name in imported(file):
            parts = name.split(".")
            is_stage = parts[0] == "stages" and len(parts) > 2 and parts[1] not in SHARED_STAGE_PACKAGES
            if is_stage and parts[1] != own and file.name not in ("config.py", "declaration.py"):
                wrong.append(f"{file.relative_to(REPOSITORY)} imports {name}")
    assert not wrong


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_hold_no_logic(package: str) -> None:
    """Importing a submodule loads its packages first: these are docstrings only."""
    for file in (REPOSITORY / package).rglob("__init__.py"):
        body = ast.parse(file.read_text()).body
        assert len(body) == 1, file
        assert isinstance(body[0], ast.Expr), file
