"""Python and the installed packages, compared with pyproject.toml and requirements.lock."""

from __future__ import annotations

import platform
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from pipelines.doctor.findings import Finding, Setup, good, problem, unknown, warning
from pipelines.graph import REPOSITORY

_NAMED = 6  # packages that a sentence names


def check(setup: Setup) -> Iterator[Finding]:
    """Python, packages that are missing, and packages of other versions than the tested ones."""
    return check_versions(REPOSITORY)


def check_versions(root: Path) -> Iterator[Finding]:
    """`check` for the project in a folder."""
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
        locked = [Requirement(line) for line in _lines(root / "requirements.lock")]
    except OSError as error:
        yield unknown(f"{error.filename} is not there, so that the versions cannot be compared with the tested ones")
        return
    yield _python(project["requires-python"])
    needed = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    locked = [one for one in locked if one.marker is None or one.marker.evaluate()]
    missing = [one.name for one in locked if _installed(one.name) is None]
    if stopping := [name for name in missing if canonicalize_name(name) in needed]:
        yield problem(f"{_list(stopping)} must be installed: make install, or pip install -r requirements.lock")
    if others := [name for name in missing if name not in stopping]:
        yield warning(f"{_list(others)} of requirements.lock is missing; make install installs all")
    other = [f"{one.name} {_installed(one.name)} ({one.specifier})" for one in locked if _differs(one)]
    if other:
        yield warning(f"other versions than the tested ones: {_list(other)}; make install installs those")
    if not missing and not other:
        yield good(f"packages as in requirements.lock: {len(locked)}")


def _python(required: str) -> Finding:
    version = platform.python_version()
    if Version(version).base_version in SpecifierSet(required):
        return good(f"Python {version}")
    return problem(f"Python {version} is not {required}: make install PYTHON=... with one that is")


def _lines(lock: Path) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in lock.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("-")]


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _differs(locked: Requirement) -> bool:
    """Whether another version is installed; for which device it was built does not count: 2.13.0 is 2.13.0+cu128."""
    version = _installed(locked.name)
    return version is not None and not locked.specifier.contains(Version(version).public, prereleases=True)


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
