"""KubeRay's definitions of its resources, made strict; they are no part of the project."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft7Validator

FOLDER = Path(__file__).parents[2] / ".." / "shared" / "data" / "kuberay"
_FILES = {"RayCluster": "rayclusters.yaml", "RayJob": "rayjobs.yaml", "RayService": "rayservices.yaml"}
_KEEPS_UNKNOWN = "x-kubernetes-preserve-unknown-fields"


@functools.cache
def definition(kind: str) -> dict[str, Any]:
    """The schema of a kind, v1, in which a key that it does not know is an error."""
    found = yaml.load((FOLDER / _FILES[kind]).read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = (version for version in found["spec"]["versions"] if version["name"] == "v1")
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    _make_strict(schema["properties"]["spec"])
    return schema


def part(kind: str, *path: str) -> dict[str, Any]:
    """The schema of a part: the names of properties, "[]" for the items of a list."""
    schema = definition(kind)
    for name in path:
        schema = schema["items"] if name == "[]" else schema["properties"][name]
    return schema


def errors_of(schema: dict[str, Any], value: object) -> list[str]:
    """What is wrong, each with its place."""
    return [f"{error.json_path}: {error.message}" for error in Draft7Validator(schema).iter_errors(value)]


def _make_strict(schema: Any) -> None:
    if isinstance(schema, list):
        for item in schema:
            _make_strict(item)
    elif isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict) and not schema.get(_KEEPS_UNKNOWN):
            schema.setdefault("additionalProperties", False)
        for item in schema.values():
            _make_strict(item)
