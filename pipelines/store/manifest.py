"""The manifest of an output: what it is, what it was made from, and the checksum of every file."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.fingerprint import Ingredients
from stages.contract import StageResult

MANIFEST = "manifest.json"

#: Libraries whose versions are worth knowing when an old output is read.
LIBRARIES = ("ray", "torch", "diffusers", "transformers", "deepspeed", "img2dataset", "mlflow", "pyarrow", "numpy")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A committed output. A folder without a manifest is none.

    Attributes:
        datasets: By name: the columns with their types, and the number of rows.
        rows: Rows by dataset, as the stage counted them.
        seconds: What the stage took.
        created: Seconds since 1970.
        files: By path inside the output: the size in bytes and the SHA-256.
    """

    stage: str
    fingerprint: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    sources: Mapping[str, str]
    code: str
    datasets: Mapping[str, Any]
    rows: Mapping[str, int]
    metrics: Mapping[str, float]
    notes: Mapping[str, str]
    seconds: float
    created: float
    libraries: Mapping[str, str]
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def ingredients(self) -> Ingredients:
        """What the output was made from."""
        return Ingredients(config=self.config, inputs=self.inputs, files=self.sources, code=self.code)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest; ValueError, KeyError or TypeError when it is not one."""
        return cls(**json.loads(path.read_text()))

    def write(self, path: Path) -> None:
        """Write the manifest so that it is on the disk, whole, before anything refers to it."""
        scratch = path.with_suffix(".partial")
        with scratch.open("w") as file:
            json.dump(dataclasses.asdict(self), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        scratch.rename(path)


def describe_output(
    folder: Path, stage: str, ingredients: Ingredients, result: StageResult, seconds: float
) -> Manifest:
    """The manifest of what a stage has written into `folder`."""
    return Manifest(
        stage=stage,
        fingerprint=ingredients.fingerprint,
        config=ingredients.config,
        inputs=ingredients.inputs,
        sources=ingredients.files,
        code=ingredients.code,
        datasets=describe_datasets(folder),
        rows=result.rows,
        metrics=result.metrics,
        notes=result.notes,
        seconds=round(seconds, 3),
        created=time.time(),
        libraries={name: _version(name) for name in LIBRARIES},
        files={
            str(path.relative_to(folder)): file_record(path) for path in sorted(folder.rglob("*")) if path.is_file()
        },
    )


def describe_datasets(folder: Path) -> dict[str, Any]:
    """The Parquet datasets in an output, by folder name: columns, types and rows, from the files' footers."""
    parts = sorted(folder.glob("*/*.parquet"))
    if not parts:
        return {}
    import pyarrow.parquet as pq

    datasets: dict[str, Any] = {}
    for part in parts:
        footer = pq.ParquetFile(part)
        columns = {column.name: str(column.type) for column in footer.schema_arrow}
        dataset = datasets.setdefault(part.parent.name, {"columns": columns, "rows": 0, "files": 0})
        dataset["rows"] += footer.metadata.num_rows
        dataset["files"] += 1
    return datasets


def file_record(path: Path) -> dict[str, Any]:
    """The size and the SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
