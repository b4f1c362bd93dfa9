"""When is an output still the right one? When nothing that it was made from has changed.

A stage's fingerprint is a hash of its configuration, the seed, the fingerprints of its inputs, the files from outside
that it reads, and the version of its code. Settings of the operation, such as the number of workers, are not in it.
The code is the stage's module and every module of the project that it reaches through imports, found without importing
anything. It is compared as a syntax tree without comments and docstrings: a reformatted file makes nothing run again.
Covers the project's own code only, not the libraries'; an import by a computed name is not followed.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.files import visible_entries, visible_files
from pipelines.config.keys import configuration_keys, flat_values
from pipelines.config.paths import local_paths
from pipelines.graph import Graph
from stages.config import Config
from stages.declaration import Stage

#: Not followed: the first says only when an output is made; the second carries reports, not results. Nor are the
#: modules called `config` of a stage: their values are in the configuration slice.
INTERFACES = ("stages.declaration", "stages.contract", "stages.config", "stages.shared_config", "stages.settings")


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
            files={str(path): file_digest(path) for path in outside_files(graph.config, stage)},
            code=code_version(stage.module, graph.root, stage.data),
        )
    return found


def config_slice(config: Config, stage: Stage) -> dict[str, Any]:
    """The values that the stage's result depends on, by dotted key: what it reads, without the operation's."""
    known = configuration_keys()
    mine = {key: value for key, value in settings_read(config, stage).items() if not known[key].of_operation}
    return {"run.seed": config.run.seed, **mine}


def settings_read(config: Config, stage: Stage) -> dict[str, Any]:
    """The values of the sections and keys that the stage declares, by dotted key."""
    sections = tuple(f"{name}." for name in stage.settings)
    return {key: value for key, value in flat_values(config).items() if f"{key}.".startswith(sections)}


def outside_files(config: Config, stage: Stage) -> list[Path]:
    """The files and folders from outside that the stage's settings name."""
    return [path for _, path in local_paths(config_slice(config, stage))]


def file_digest(path: Path) -> str:
    """A digest of the names, sizes and times of a file or of all files of a folder; a file that is not there has one
    too. Reading terabytes to learn that nothing has changed would take longer than to do the work again.

    Hidden files do not count, because no stage reads them.
    """
    digest = hashlib.sha256()
    for file in visible_files(path) if os.path.isdir(path) else [path]:
        try:
            status = file.stat()
        except OSError:  # it has just been removed, or cannot be read: if a stage needs it, the stage says so
            continue
        digest.update(os.fsencode(file.relative_to(path)) + f"\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:12]


def code_version(module: str, root: Path, data: Iterable[str] = ()) -> str:
    """A hash of the code of the module and of the project's modules that it reaches, and of visible files.

    Args:
        module: The module's name.
        root: The project's folder.
        data: Patterns of the files.
    """
    digest = hashlib.sha256()
    for name, file in sorted(reachable_modules(module, root).items()):
        digest.update(f"{name}\n{_tree_digest(file)}\n".encode())
    for path in sorted({path for pattern in data for path in visible_entries(root, pattern)}):
        if path.is_file() and path.suffix != ".py":
            checksum = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(os.fsencode(path.relative_to(root)) + f"\n{checksum}\n".encode())
    return digest.hexdigest()[:12]


def reachable_modules(module: str, root: Path) -> dict[str, Path]:
    """The files of the module and of every module of the project that its imports lead to, by the modules' names."""
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = _source_file(name, root)
        if file is None or name in found or _is_interface(name):
            continue
        found[name] = file
        waiting += _imports(name, file)
        package, dot, _ = name.rpartition(".")
        waiting += [package] if dot else []  # a package's __init__ runs too
    return found


def _is_interface(module: str) -> bool:
    return module in INTERFACES or (module.startswith("stages.") and module.endswith(".config"))


def _source_file(module: str, root: Path) -> Path | None:
    """The file of a project module; None for a library, or for a name that is no module."""
    place = root.joinpath(*module.split("."))
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


@functools.cache
def _imports(module: str, file: Path) -> frozenset[str]:
    """The names that a module imports anywhere in it. `from model import adapter` may name a module or a thing in one:
    both are in the set, and the caller drops what is no module.
    """
    return frozenset(_walk_imports(module, file))


def _walk_imports(module: str, file: Path) -> Iterator[str]:
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
    """What the file says to the interpreter: its syntax tree without docstrings, those of attributes included."""
    tree = ast.parse(file.read_text(), filename=str(file))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [statement for statement in node.body if not _is_docstring(statement)]
    return tree


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


@functools.cache
def _tree_digest(file: Path) -> str:
    return hashlib.sha256(ast.dump(_tree(file)).encode()).hexdigest()
