"""Models that can be loaded, and what is said of those that cannot: in folders, in the hub's cache, and on the hub."""

from __future__ import annotations

import json
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipelines.config.loading import load_config
from pipelines.doctor import hub
from pipelines.doctor.findings import Finding, Level, Setup
from pipelines.doctor.models import Model, needed_models
from pipelines.doctor.weights import check, check_model, grouped
from tests.support.hub_cache import add_to_hub_cache
from tests.support.refusing_hub import Refusal, hub_server, use_hub
from tests.support.tiny_models import write_sd

NAME = "owner/model"
WEIGHTS = ("model.safetensors", "model.fp16.safetensors", "model.safetensors.index.json")
ENCODER = Model(setting="backbone.image_encoders", location=NAME, files=(("config.json",), WEIGHTS))
CLIP_FILES = (("config.json",), ("tokenizer.json", "vocab.json"), (*WEIGHTS, "pytorch_model.bin"))
UNET = ("unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors")
BACKBONE = Model(setting="backbone.weights", location=NAME, files=(("unet/config.json",), UNET), is_backbone=True)


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sd(tmp_path_factory.mktemp("sd"))


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """The files of a whole encoder; what is in them is not read but for the weights' heads."""
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "dinov2", "hidden_size": 4}))
    save_file({"weight": torch.zeros(4)}, folder / "model.safetensors")
    return folder


def at(model: Model, location: str | Path, **changes: object) -> Model:
    return Model(**{**vars(model), "location": str(location), **changes})


def found(model: Model) -> Finding:
    return check_model(model, model.setting)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


def only_pickled(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))


def pointer(folder: Path) -> None:
    (folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\n"
    )


def without_a_shard(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "diffusion_pytorch_model-00002-of-00002.safetensors"}})
    )


BACKBONES: dict[str, tuple[Callable[[Path], object], str]] = {
    "none": (shutil.rmtree, "there is no folder"),
    "no unet": (lambda folder: shutil.rmtree(folder / "unet"), "diffusers' layout"),
    "no config": (lambda folder: (folder / "unet" / "config.json").unlink(), "there is no .*unet/config.json"),
    "no JSON": (lambda folder: (folder / "unet" / "config.json").write_text("{"), "cannot be read as JSON"),
    "cut": (lambda folder: cut(folder / "unet" / "diffusion_pytorch_model.safetensors"), "unet/.* cut off"),
    "text cut": (lambda folder: cut(folder / "text_encoder" / "model.safetensors"), "text_encoder/.* cut off"),
    "no vae": (lambda folder: (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink(), "vae has no weights"),
    "no tokenizer": (lambda folder: shutil.rmtree(folder / "tokenizer"), "no tokenizer/"),
    "no scheduler": (lambda folder: shutil.rmtree(folder / "scheduler"), "no scheduler/"),
    "pickled": (only_pickled, "only pickled weights"),
    "a shard": (without_a_shard, "00002-of-00002.safetensors is missing"),
    "a pointer": (pointer, "git lfs pull"),
}


@pytest.mark.parametrize(("damage", "words"), BACKBONES.values(), ids=BACKBONES)
def test_a_backbone_that_cannot_be_loaded(
    damage: Callable[[Path], object], words: str, sd: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(sd, tmp_path / "model"))
    assert found(at(BACKBONE, folder)).level is Level.GOOD
    damage(folder)
    finding = found(at(BACKBONE, folder))
    assert finding.level is Level.PROBLEM
    assert "\n" not in finding.text
    assert finding.text.startswith("backbone.weights: ")
    assert re.search(words, finding.text), finding.text


ENCODERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "there is no .*config.json"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("no"), "cannot be read as JSON"),
    "colours not known": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "vit"}'),
        "no preprocessor_config.json",
    ),
    "a list": (lambda folder: (folder / "config.json").write_text("[]"), "no JSON object"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
    "no JSON of the colours": (lambda folder: (folder / "preprocessor_config.json").write_text("{"), "no JSON"),
    "cut": (lambda folder: cut(folder / "model.safetensors"), "cut off"),
    "pickled": (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "only pickled"),
}


@pytest.mark.parametrize(("damage", "words"), ENCODERS.values(), ids=ENCODERS)
def test_an_encoder_that_cannot_be_loaded(damage: Callable[[Path], object], words: str, encoder: Path) -> None:
    assert found(at(ENCODER, encoder)).level is Level.GOOD
    damage(encoder)
    finding = found(at(ENCODER, encoder))
    assert finding.level is Level.PROBLEM
    assert re.search(words, finding.text), finding.text


def test_a_scorer_may_be_pickled_and_needs_its_tokenizer(encoder: Path) -> None:
    clip = at(ENCODER, encoder, files=CLIP_FILES, takes_pickled=True)
    assert "lacks tokenizer.json or vocab.json" in found(clip).text
    (encoder / "vocab.json").write_text("{}")
    (encoder / "model.safetensors").rename(encoder / "pytorch_model.bin")
    assert found(clip).level is Level.GOOD


def test_a_safety_checker_is_a_part_of_its_model(encoder: Path, tmp_path: Path) -> None:
    checker = at(ENCODER, tmp_path / "whole", files=(), part="safety_checker")
    (tmp_path / "whole").mkdir()
    assert "there is no folder" in found(checker).text
    encoder.rename(tmp_path / "whole" / "safety_checker")
    assert found(checker).level is Level.GOOD


WHOLE = {"config.json", "model.safetensors"}


ANSWERS: dict[str, tuple[Refusal | set[str], Level, list[str]]] = {
    "whole": (WHOLE, Level.GOOD, ["is on the hub"]),
    "fp16": ({"config.json", "model.fp16.safetensors"}, Level.GOOD, ["is on the hub"]),
    "shards": ({"config.json", "model.safetensors.index.json"}, Level.GOOD, ["is on the hub"]),
    "pickled": ({"config.json", "pytorch_model.bin"}, Level.PROBLEM, ["none of the files model.safetensors"]),
    "no config": ({"model.safetensors"}, Level.PROBLEM, ["none of the files config.json"]),
    "gated, no token": (Refusal(401, "GatedRepo"), Level.PROBLEM, ["licence", f"/{NAME}", "HF_TOKEN"]),
    "gated": (Refusal(403, "GatedRepo"), Level.PROBLEM, ["licence", f"/{NAME}", "HF_TOKEN"]),
    "forbidden": (Refusal(403), Level.PROBLEM, ["403", "licence", "HF_TOKEN"]),
    "private": (Refusal(401, "RepoNotFound"), Level.PROBLEM, ["the hub has no", "private"]),
    "none": (Refusal(404, "RepoNotFound"), Level.PROBLEM, ["the hub has no", "correct the name"]),
    "no revision": (Refusal(404, "RevisionNotFound"), Level.PROBLEM, ["no revision main"]),
    "another refusal": (Refusal(410), Level.PROBLEM, ["410"]),
    "busy": (Refusal(429), Level.UNKNOWN, ["429", "hf download"]),
    "broken": (Refusal(500), Level.UNKNOWN, ["500", "hf download"]),
    "away": (Refusal(503), Level.UNKNOWN, ["503"]),
    "slow": (Refusal(200, seconds=3), Level.UNKNOWN, ["does not answer", "Timeout"]),
}


@pytest.mark.parametrize(("answer", "level", "words"), ANSWERS.values(), ids=ANSWERS)
def test_what_the_hub_says(
    answer: Refusal | set[str], level: Level, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "SECONDS", 0.5)
    with hub_server({NAME: answer}) as address:
        use_hub(monkeypatch, address, tmp_path)
        finding = found(ENCODER)
    assert finding.level is level, finding.text
    assert all(word in finding.text for word in words), finding.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["owner/model/part", "a b/c", "own..er/model", "model--name/x"])
def test_what_is_no_hub_id(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(monkeypatch, "http://127.0.0.1:1", tmp_path)
    finding = found(at(ENCODER, name))
    assert finding.level is Level.PROBLEM
    assert "neither a folder nor a hub id" in finding.text


def test_a_hub_that_cannot_be_reached_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        use_hub(monkeypatch, f"http://127.0.0.1:{free.getsockname()[1]}", tmp_path)
        finding = found(ENCODER)
    assert finding.level is Level.UNKNOWN
    assert f"hf download {NAME}" in finding.text


def test_without_the_hub_the_cache_must_have_the_whole_model(
    sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub(monkeypatch, None, tmp_path)
    finding = found(BACKBONE)
    assert (finding.level, "HF_HUB_OFFLINE" in finding.text) == (Level.PROBLEM, True)
    snapshot = add_to_hub_cache(tmp_path, NAME, sd)
    assert found(BACKBONE) == Finding(Level.GOOD, f"backbone.weights: {NAME} is in the hub's cache")
    (snapshot / "unet" / "config.json").unlink()
    finding = found(BACKBONE)
    assert finding.level is Level.PROBLEM
    assert "unet/config.json" in finding.text
    assert f"hf download {NAME}" in finding.text
    (tmp_path / "models--owner--model" / "refs" / "main").write_text("another")
    assert "the hub's cache has nothing of" in found(BACKBONE).text


@pytest.mark.parametrize("revision", ["fp16", "v1/beta", "a commit"])
def test_a_model_at_a_revision(revision: str, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(monkeypatch, None, tmp_path)
    snapshot = add_to_hub_cache(tmp_path, NAME, encoder, "other" if revision == "a commit" else revision)
    at_revision = at(ENCODER, f"{NAME}@{snapshot.name if revision == 'a commit' else revision}")
    assert found(at_revision).level is Level.GOOD
    assert found(ENCODER).level is Level.PROBLEM
    shutil.rmtree(snapshot)
    name, _, own = at_revision.location.partition("@")
    assert f"hf download {name} --revision {own}`" in found(at_revision).text


def test_a_revision_is_asked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_server({NAME: WHOLE}) as address:
        use_hub(monkeypatch, address, tmp_path)
        assert found(at(ENCODER, f"{NAME}@main")).level is Level.GOOD
        finding = found(at(ENCODER, f"{NAME}@fp16"))
    assert finding.level is Level.PROBLEM
    assert "has no revision fp16" in finding.text


def test_a_profile_needs_all_the_models_that_it_names() -> None:
    models = grouped(needed_models(Setup.of(load_config("sd15"))))
    assert {(model.location, model.part): settings for model, settings in models} == {
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", ""): "backbone.weights",
        ("google/siglip-so400m-patch14-384", ""): "backbone.image_encoders",
        ("facebook/dinov2-with-registers-large", ""): "backbone.image_encoders",
        ("openai/clip-vit-base-patch32", ""): "filter.scoring.similarity_clip, evaluate.clip",
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "safety_checker"): "filter.scoring.safety_checker",
        ("facebook/dino-vits16", ""): "evaluate.dino",
    }


def test_micro_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "check_on_hub", None)
    (finding,) = check(Setup.of(load_config("micro")))
    assert finding.level is Level.GOOD


def test_an_aesthetic_head_is_read(tmp_path: Path) -> None:
    head = tmp_path / "head.pth"
    head.write_bytes(b"no head")
    settings = [f"filter.scoring.aesthetic_head={head}", "filter.scoring.aesthetic_clip=micro"]
    findings = list(check(Setup.of(load_config("micro", [*settings, "serve.safety_checker=null"]))))
    assert [finding.level for finding in findings] == [Level.GOOD, Level.PROBLEM]
    assert findings[1].text.startswith("filter.scoring.aesthetic_head: ")
