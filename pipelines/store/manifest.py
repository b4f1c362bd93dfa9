"""The manifest of an output: what it is, what it was made from, and the checksum of every file."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pipelines.fingerprint import Ingredients
from stages.contract import StageResult
from stages.storage import StorePath, file_records, parquet_source, read_whole, write_whole

MANIFEST = "manifest.json"

#: Footers that are read at the same time: each is a request or two to an object store.
_FOOTERS = 16

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
        files: By path inside the output: the size in bytes and a checksum (see `stages.storage.file_records`).
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
    def read(cls, path: StorePath) -> Manifest:
        """Read a manifest; ValueError, KeyError or TypeError when it is not one."""
        return cls(**json.loads(read_whole(path)))

    def write(self, path: StorePath) -> None:
        """Write the manifest so that it is there, whole, before anything refers to it."""
        write_whole(path, json.dumps(dataclasses.asdict(self), indent=1))


def describe_output(
    folder: StorePath, stage: str, ingredients: Ingredients, result: StageResult, seconds: float
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
        files=file_records(folder),
    )


def describe_datasets(folder: StorePath) -> dict[str, Any]:
    """The Parquet datasets in an output, by folder name: columns, types and rows, from the files' footers."""
    parts: list[StorePath] = [*folder.glob("*/*.parquet")]
    if not parts:
        return {}
    parts.sort(key=str)
    import pyarrow.parquet as pq

    with ThreadPoolExecutor(_FOOTERS) as pool:
        footers = list(pool.map(lambda part: pq.read_metadata(parquet_source(part)), parts))
    datasets: dict[str, Any] = {}
    for part, footer in zip(parts, footers, strict=True):
        columns = {column.name: str(column.type) for column in footer.schema.to_arrow_schema()}
        dataset = datasets.setdefault(part.parent.name, {"columns": columns, "rows": 0, "files": 0})
        dataset["rows"] += footer.num_rows
        dataset["files"] += 1
    return datasets


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
