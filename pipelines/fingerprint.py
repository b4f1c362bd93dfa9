"""When is an output still the right one? When nothing that it was made from has changed.

A stage's fingerprint is a hash of its configuration, the seed, the fingerprints of its inputs, the files from outside
that it reads, and the version of its code. The code is the stage's module and every module of the project that it
reaches through imports, found without importing anything. It is compared as a syntax tree without comments and
docstrings: a reformatted file makes nothing run again. Covers the project's own code only, not the libraries'; an
import by a computed name is not followed.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.config.loading import flat_values
from pipelines.graph import Graph, Stage
from stages.config import Config

#: Not followed: the values of the first are in the configuration slice; the second carries reports, not results.
INTERFACES = ("stages.config", "stages.contract")


@dataclass(frozen=True, kw_only=True)
class Ingredients:
    """What a stage's output is made from; the fingerprint is the hash of it all."""

    config: Mapping[str, Any]  # the values of the stage's own sections by dotted key, and the seed
    inputs: Mapping[str, str]  # fingerprints by stage
    files: Mapping[str, str]  # a digest by path
    code: str

    @property
    def fingerprint(self) -> str:
        """12 hexadecimal digits."""
        text = json.dumps([self.config, self.inputs, self.files, self.code], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def ingredients_of(graph: Graph) -> dict[str, Ingredients]:
    """The ingredients of every stage's output, upstream first."""
    found: dict[str, Ingredients] = {}
    for name, stage in graph.stages.items():
        found[name] = Ingredients(
            config=config_slice(graph.config, stage),
            inputs={other: found[other].fingerprint for other in sorted(graph.inputs[name])},
            files={path: file_digest(Path(path)) for path in stage.files(graph.config) if path is not None},
            code=code_version(stage.module, graph.root, stage.data),
        )
    return found


def config_slice(config: Config, stage: Stage) -> dict[str, Any]:
    """The values that the stage reads, by dotted key. Where a run is kept and on how many CPUs changes no output."""
    mine = {key: value for key, value in flat_values(config).items() if key.split(".")[0] in stage.sections}
    return {"run.seed": config.run.seed, **mine}


def file_digest(path: Path) -> str:
    """A digest of the names, sizes and times of a file or of all files of a folder; a file that is not there has one
    too. Reading terabytes to learn that nothing has changed would take longer than to do the work again.
    """
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            status = file.stat()
            digest.update(f"{file.relative_to(path)}\n{status.st_size}\n{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]


def code_version(module: str, root: Path, data: Iterable[str] = ()) -> str:
    """A hash of the module's code, of the project's modules that it reaches, and of the files that match `data`."""
    digest = hashlib.sha256()
    for name, file in sorted(reachable_modules(module, root).items()):
        digest.update(f"{name}\n{_tree_digest(file)}\n".encode())
    for path in sorted({path for pattern in data for path in root.glob(pattern)}):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            digest.update(f"{path.relative_to(root)}\n{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:12]


def reachable_modules(module: str, root: Path) -> dict[str, Path]:
    """The files of the module and of every module of the project that its imports lead to, by the modules' names."""
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = _source_file(name, root)
        if file is None or name in found or name in INTERFACES:
            continue
        found[name] = file
        waiting += _imports(name, file)
        package, dot, _ = name.rpartition(".")
        waiting += [package] if dot else []  # a package's __init__ runs too
    return found


def _source_file(module: str, root: Path) -> Path | None:
    """The file of a project module; None for a library, or for a name that is no module."""
    place = root.joinpath(*module.split("."))
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def _imports(module: str, file: Path) -> Iterator[str]:
    """The names that a module imports anywhere in it. `from model import adapter` may name a module or a thing in one:
    both are yielded, and what is no module is dropped by the caller.
    """
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(_tree(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                base = package.split(".")[: len(package.split(".")) - node.level + 1]
                origin = ".".join([*base, origin]).rstrip(".")
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)


@functools.cache
def _tree(file: Path) -> ast.Module:
    """What the file says to the interpreter: its syntax tree without docstrings; comments and layout are not in it."""
    tree = ast.parse(file.read_text(), filename=str(file))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
    return tree


@functools.cache
def _tree_digest(file: Path) -> str:
    return hashlib.sha256(ast.dump(_tree(file)).encode()).hexdigest()
