"""What an import loads: packages nothing heavy, and the server's replica no `model` but the registered one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "ray", "mlflow", "transformers", "diffusers", "pandas")
LIGHT_MODULES = (
    "stages.serve.web.application",
    "stages.serve.registry",
    "stages.serve.server",
    "stages.register.lineage",
)


def packages() -> list[str]:
    """Every package of the project, by its dotted name."""
    folders = [
        path.parent
        for root in ("model", "pipelines", "prompts", "stages")
        for path in (REPOSITORY / root).rglob("*.py")
    ]
    initialized = {folder for folder in folders if (folder / "__init__.py").is_file()}
    return sorted(".".join(folder.relative_to(REPOSITORY).parts) for folder in initialized)


def loaded_by(modules: list[str], candidates: tuple[str, ...]) -> list[str]:
    """The candidates that a new process has loaded once it has imported the modules."""
    code = f"import sys, {', '.join(modules)}; print(*(name for name in {candidates!r} if name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.split()


def test_importing_a_package_loads_nothing_heavy() -> None:
    assert len(packages()) > 25
    assert loaded_by(packages(), HEAVY) == []


def test_light_modules_stay_light() -> None:
    assert loaded_by(list(LIGHT_MODULES), HEAVY) == []


def test_a_painter_leaves_the_package_model_to_the_registered_copy() -> None:
    assert loaded_by(["stages.serve.painter"], ("model",)) == []
