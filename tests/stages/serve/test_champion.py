"""Which version is served while the alias moves, versions are damaged and the registry is away."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.contract import StageError
from stages.serve.champion import ChampionFollower
from stages.serve.registry import Registry, Versions
from stages.serve.served_model import ServedModel
from tests.support.registered_model import Registry as FilledRegistry

SHIPPED = ServedModel(title="shipped", adapter="adapter", load=object)


class NumberedRegistry(Registry):
    """A registry with versions 1 to 9; 3 is damaged, 4 cannot be loaded, 0 is a registry that cannot be read."""

    now: str | None = None

    def champion(self) -> Versions | None:
        if NumberedRegistry.now == "0":
            raise StageError("The registry cannot be read.")
        return None if NumberedRegistry.now is None else Versions(model=NumberedRegistry.now)

    def fetch(self, versions: Versions | None) -> ServedModel:
        if versions is None or versions.model == "3":
            raise StageError(f"There is no version, or {versions} is damaged.")
        return ServedModel(title=f"version {versions.model}", adapter="adapter", load=object)


class Run:
    """A follower, with what it has deployed and said."""

    def __init__(self, first: str | None, *, shipped: bool = True) -> None:
        self.deployed: list[str] = []
        self.said: list[str] = []
        NumberedRegistry.now = first
        registry = NumberedRegistry(name="name", locate=lambda: None, run_folder=Path("run"), profile="micro")
        self.follower = ChampionFollower(
            registry=registry, shipped=(lambda: SHIPPED) if shipped else None, deploy=self.deploy, say=self.said.append
        )
        self.deploy(self.follower.choose())

    def deploy(self, model: ServedModel) -> None:
        self.deployed.append(model.title)
        if model.title == "version 4":
            raise StageError("version 4 cannot be loaded.")

    def see(self, *versions: str | None) -> list[str]:
        """What is said while the alias names one version after the other."""
        self.said.clear()
        for version in versions:
            NumberedRegistry.now = version
            self.follower.check()
        return self.said


@given(st.lists(st.sampled_from([None, "0", "1", "2", "3", "4", "5"]), max_size=12))
def test_the_last_version_that_can_be_served_is(versions: list[str | None]) -> None:
    run = Run("1")
    run.see(*versions)
    served = [version for version in ["1", *versions] if version in ("1", "2", "5")][-1]
    assert run.deployed[-1] == f"version {served}"


@pytest.mark.parametrize("bad", ["0", "3", "4"])
def test_what_cannot_be_served_is_said_once(bad: str) -> None:
    run = Run("1")
    messages = [message for message in run.see(bad, bad, bad) if "goes on answering" in message]
    assert len(messages) == 1
    assert "version 1 goes on" in messages[0]
    assert run.see("1", "1") == []


def test_a_version_is_deployed_once() -> None:
    run = Run("1")
    run.see("2", "2", None, "2", "0", "2")
    assert run.deployed == ["version 1", "version 2"]


def test_the_shipped_model_answers_until_there_is_a_champion() -> None:
    run = Run(None)
    run.see(None, "2")
    assert run.deployed == ["shipped", "version 2"]
    with pytest.raises(StageError):
        Run(None, shipped=False)


# A real version on disk, damaged in every way


def _truncate(folder: Path) -> None:
    weights = next(folder.rglob("adapter/*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])


def _write(pattern: str, content: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        next(folder.rglob(pattern)).write_bytes(content)

    return write


def _settings(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = next(folder.rglob("inference.json"))
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def _remove(pattern: str) -> Callable[[Path], None]:
    return lambda folder: next(folder.rglob(pattern)).unlink()


DAMAGED = "damaged"
OTHER = "of another version of Realword"
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated weights": (_truncate, DAMAGED),
    "no adapter weights": (_remove("adapter/*.safetensors"), DAMAGED),
    "no settings": (_remove("inference.json"), DAMAGED),
    "no MLmodel": (_remove("MLmodel"), DAMAGED),
    "no files": (shutil.rmtree, DAMAGED),
    "settings that are no JSON": (_write("inference.json", b"{"), DAMAGED),
    "settings that are a list": (_write("inference.json", b"[]"), DAMAGED),
    "settings in binary": (_write("inference.json", bytes([255])), DAMAGED),
    "MLmodel that is no YAML": (_write("MLmodel", b"a: [b"), DAMAGED),
    "MLmodel of another flavour": (_write("MLmodel", b"flavors: {sklearn: {}}"), DAMAGED),
    "MLmodel in binary": (_write("MLmodel", bytes([255])), DAMAGED),
    "empty MLmodel": (_write("MLmodel", b""), DAMAGED),
    "no checksums": (_settings(checksums=None), DAMAGED),
    "checksums of another folder": (_settings(checksums={"elsewhere": {}}), DAMAGED),
    "another checksum": (_settings(checksums={"adapter": {"config.json": "0"}}), DAMAGED),
    "an older interface": (_settings(interface=1), OTHER),
    "a newer interface": (_settings(interface=1000), OTHER),
    "no interface": (_settings(interface=None), OTHER),
    "an interface in words": (_settings(interface="3"), OTHER),
}


@dataclass
class Version:
    """A registered version, and a copy of its files."""

    registry: Registry
    number: str
    files: Path
    copy: Path


@pytest.fixture(scope="module")
def version(registry: FilledRegistry, tmp_path_factory: pytest.TempPathFactory) -> Version:
    folder = tmp_path_factory.mktemp("damage")
    number = str(registry.register(0.6, register={"model_name": "damage"})[0]["version"])
    files = Path(registry.client.get_model_version_download_uri("damage", number))
    shutil.copytree(files, folder / "whole")
    reader = Registry(name="damage", locate=lambda: registry.uri, run_folder=folder, profile="micro")
    return Version(reader, number, files, folder / "whole")


@pytest.mark.slow
def test_a_damaged_part_is_refused(version: Version) -> None:
    """Which versions share."""
    weights = next((version.files.parents[2] / "parts").rglob("unet/*.safetensors"))
    whole = weights.read_bytes()
    try:
        weights.write_bytes(whole[:-1])
        with pytest.raises(StageError, match=r"damage version 1 is damaged: .*/unet/.*--force register"):
            version.registry.fetch(Versions(model=version.number))
    finally:
        weights.write_bytes(whole)


@pytest.mark.slow
def test_a_version_that_shares_no_parts_is_taken(version: Version) -> None:
    """As those of before: all that it needs is in its own files, under its own checksums."""
    file = next(version.files.rglob("inference.json"))
    whole = file.read_text()
    try:
        settings = json.loads(whole)
        del settings["parts"], settings["parts_place"]
        file.write_text(json.dumps(settings))
        assert str(version.registry.fetch(Versions(model=version.number))) == "damage version 1 (adapter train_adapter)"
    finally:
        file.write_text(whole)


@pytest.mark.slow
@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_version_is_refused(version: Version, case: str) -> None:
    damage, reason = DAMAGE[case]
    versions = Versions(model=version.number)
    assert version.registry.champion() == versions
    damage(version.files)
    try:
        with pytest.raises(StageError, match=rf"damage version 1 is .*{reason}.*--force register") as error:
            version.registry.fetch(versions)
        assert "\n" not in str(error.value)
    finally:
        shutil.rmtree(version.files, ignore_errors=True)
        shutil.copytree(version.copy, version.files)
    assert version.registry.fetch(versions).title == "damage version 1"


def test_a_given_model_is_served_whatever_the_registry_has() -> None:
    run = Run("1")
    run.follower.given = ServedModel(title="given", adapter="1", load=object)
    assert run.follower.choose().title == "given"
    assert run.see("2", "0", "3") == []
    assert run.deployed == ["version 1"]
