"""The adapter that ships: it belongs to the base that ships, is small, and is refused when a file is not as written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from model.micro_sd.fingerprint import (
    DamagedWeightsError,
    ForeignWeightsError,
    OutdatedWeightsError,
    PartialWeightsError,
    WeightsError,
)
from model.micro_sd.shipped_adapter import ADAPTER_FOLDER, base_digest, find_shipped_model, save_shipped_adapter
from model.micro_sd.weights import WEIGHTS_FOLDER

WEIGHTS = "adapter/diffusion_pytorch_model.safetensors"
LOADING = {"image_encoders": ["clip"], "shallow_layers": [[0]], "reference_size": 32, "tiles": 1}


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    """A folder with the shipped base, `weights/`, and adapter, `adapter/`; the files are links."""
    for folder in (WEIGHTS_FOLDER, ADAPTER_FOLDER):
        shutil.copytree(folder, tmp_path / folder.name, copy_function=os.symlink)
    return tmp_path


def find(folder: Path) -> Any:
    return find_shipped_model(folder / "weights", folder / "adapter")


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def test_base_and_adapter_are_small_together() -> None:
    files = [path for folder in (WEIGHTS_FOLDER, ADAPTER_FOLDER) for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25 * 10**6


def test_the_shipped_adapter_belongs_to_the_shipped_base_and_is_loaded_in_float32() -> None:
    pipeline = find_shipped_model().load()
    assert pipeline.adapter is not None
    assert pipeline.image_encoders is not None
    parts = (pipeline.adapter, pipeline.backbone.unet, pipeline.backbone.vae)
    assert {parameter.dtype for part in parts for parameter in part.parameters()} == {torch.float32}
    stored = load_file(ADAPTER_FOLDER / Path(WEIGHTS).name)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}


def flip(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        replace(folder / name, bytes(content))

    return damage


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: replace(folder / name, content)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def change(name: str, **entries: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        replace(folder / name, json.dumps(json.loads((folder / name).read_text()) | entries).encode())

    return damage


FINGERPRINT = "adapter/fingerprint.json"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 2817296\n"
DAMAGES: dict[str, tuple[Callable[[Path], None], type[WeightsError], str]] = {
    "a flipped bit": (flip(WEIGHTS), DamagedWeightsError, WEIGHTS),
    "a pointer of Git LFS": (write(WEIGHTS, POINTER), DamagedWeightsError, WEIGHTS),
    "an empty file": (write(WEIGHTS, b""), DamagedWeightsError, WEIGHTS),
    "another config": (change("adapter/config.json", token_width=64), DamagedWeightsError, "adapter/config.json"),
    "line ends of Windows": (write("adapter/config.json", b"{\r\n}\r\n"), DamagedWeightsError, "adapter/config.json"),
    "no weights": (remove(WEIGHTS), PartialWeightsError, "diffusion_pytorch_model.safetensors is missing"),
    "no config": (remove("adapter/config.json"), PartialWeightsError, "config.json is missing"),
    "no fingerprint": (remove(FINGERPRINT), ForeignWeightsError, "no fingerprint.json"),
    "no folder": (lambda folder: shutil.rmtree(folder / "adapter"), ForeignWeightsError, "no fingerprint.json"),
    "half a fingerprint": (write(FINGERPRINT, b'{"format": "mic'), DamagedWeightsError, FINGERPRINT),
    "a fingerprint in another encoding": (write(FINGERPRINT, b"\xff\xfe{\x00"), DamagedWeightsError, FINGERPRINT),
    "a fingerprint that is a list": (write(FINGERPRINT, b"[]"), ForeignWeightsError, FINGERPRINT),
    "another format": (change(FINGERPRINT, format="new/2"), ForeignWeightsError, FINGERPRINT),
    "no files": (change(FINGERPRINT, files={}), DamagedWeightsError, "lists no files"),
    "no base": (change(FINGERPRINT, base=None), OutdatedWeightsError, "other base weights"),
    "another base": (change(FINGERPRINT, base="0" * 64), OutdatedWeightsError, "other base weights"),
    "another world": (change(FINGERPRINT, world_version=-1), OutdatedWeightsError, "world version -1"),
    "a base of another world": (change("weights/fingerprint.json", world_version=0), OutdatedWeightsError, "version 0"),
    "a damaged base": (flip("weights/vae/config.json"), DamagedWeightsError, "weights/vae/config.json"),
    "a part of a base": (remove("weights/unet/config.json"), PartialWeightsError, "unet/config.json is missing"),
    "no base weights": (lambda folder: shutil.rmtree(folder / "weights"), ForeignWeightsError, "no fingerprint.json"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_not_as_written_is_one_sentence(name: str, shipped: Path) -> None:
    damage, kind, named = DAMAGES[name]
    damage(shipped)
    with pytest.raises(kind) as raised:
        find(shipped)
    sentence = str(raised.value)
    assert sentence.startswith("The model that ships with Realword cannot be used: ")
    assert named in sentence
    assert sentence.endswith(f"; restore {shipped} from the repository.")
    assert "\n" not in sentence


def test_another_judge_is_the_same_base_for_an_adapter(shipped: Path) -> None:
    fingerprint = json.loads((shipped / "weights/fingerprint.json").read_text())
    before = base_digest(shipped / "weights")
    for name, same in (("judge/config.json", True), ("unet/config.json", False)):
        files = fingerprint["files"] | {name: "0" * 64}
        replace(shipped / "weights/fingerprint.json", json.dumps(fingerprint | {"files": files}).encode())
        assert (base_digest(shipped / "weights") == before) is same


def test_an_adapter_is_saved_with_card_and_fingerprint(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    for steps in ("one", "two"):  # the second replaces the first
        save_shipped_adapter(
            folder, adapter=ADAPTER_FOLDER, base=WEIGHTS_FOLDER, loading=LOADING, training=f"## Training\n\nIn {steps}."
        )
    found = find_shipped_model(adapter=folder)
    assert found.loading == LOADING
    assert found.fingerprint != find_shipped_model().fingerprint
    weights = folder / Path(WEIGHTS).name
    assert weights.read_bytes() == (ADAPTER_FOLDER / weights.name).read_bytes()
    card = (folder / "README.md").read_text()
    assert card.endswith("## Training\n\nIn two.\n")
    assert card.count("## Training") == 1
    assert str(ADAPTER_FOLDER) not in (folder / "config.json").read_text()
    (folder / "README.md").write_text("figures\n")
    assert find_shipped_model(adapter=folder) == found
