"""The fingerprint of a folder of weights that ships with the code: `fingerprint.json`, which is checked on use.

format            what the folder holds
world_version     of the micro world that the weights were trained on
recipe            digest of the recipe of the base weights
files             SHA-256 of every file but the fingerprint and the model card

A folder of one format may have more entries.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.checksums import file_checksum
from model.errors import ModelError
from model.microworld.version import WORLD_VERSION

FINGERPRINT = "fingerprint.json"
CARD = "README.md"


class WeightsError(ModelError):
    """A weights folder cannot be used; the message says why."""


class ForeignWeightsError(WeightsError):
    """The folder is not a weights folder."""


class PartialWeightsError(WeightsError):
    """A file is missing."""


class DamagedWeightsError(WeightsError):
    """A file differs from the one that was written."""


class OutdatedWeightsError(WeightsError):
    """The weights belong to another world or recipe, or to other base weights."""


def write_fingerprint(folder: Path, weights_format: str, recipe: str, **entries: Any) -> None:
    """Write `fingerprint.json` for the files in `folder`; `entries` are those that only this format has."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (FINGERPRINT, CARD))
    files = {path.relative_to(folder).as_posix(): file_checksum(path) for path in paths}
    fingerprint = {"format": weights_format, "world_version": WORLD_VERSION, "recipe": recipe, **entries}
    (folder / FINGERPRINT).write_text(json.dumps({**fingerprint, "files": files}, indent=2) + "\n")


def read_fingerprint(folder: Path, weights_format: str) -> dict[str, Any]:
    """The fingerprint of a folder of this format, whose files are not checked.

    Raises:
        WeightsError: There is none, it is damaged or of another format.
    """
    path = folder / FINGERPRINT
    if not path.is_file():
        raise ForeignWeightsError(f"{folder} is not a folder of the format {weights_format}: no {FINGERPRINT}")
    try:
        fingerprint = json.loads(path.read_text())
    except OSError as error:
        raise DamagedWeightsError(f"{path} cannot be read: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DamagedWeightsError(f"{path} is damaged: it is not JSON ({error})") from error
    if not isinstance(fingerprint, dict) or fingerprint.get("format") != weights_format:
        raise ForeignWeightsError(f"{path} is not a fingerprint of the format {weights_format}")
    if not isinstance(fingerprint.get("files"), dict) or not fingerprint["files"]:
        raise DamagedWeightsError(f"{path} is damaged: it lists no files")
    return fingerprint


def verify_fingerprint(folder: Path, weights_format: str) -> dict[str, Any]:
    """The fingerprint of a folder whose files are complete, undamaged and of this world.

    Raises:
        WeightsError: They are not; names the first file.
    """
    fingerprint = read_fingerprint(folder, weights_format)
    _verify_files(folder, fingerprint["files"])
    version = fingerprint.get("world_version")
    if version != WORLD_VERSION:
        raise OutdatedWeightsError(f"{folder} was trained on world version {version}, the code has {WORLD_VERSION}")
    return fingerprint


def _verify_files(folder: Path, files: Mapping[str, str]) -> None:
    for name, checksum in files.items():
        path = folder / name
        if not path.is_file():
            raise PartialWeightsError(f"{folder} is incomplete: {name} is missing")
        try:
            found = file_checksum(path)
        except OSError as error:
            raise DamagedWeightsError(f"{path} cannot be read: {error.strerror}") from error
        if found != checksum:
            raise DamagedWeightsError(f"{path} is damaged: its checksum is not the one recorded in {FINGERPRINT}")
