"""A concept's folder: what was written is read, diffusers reads it too, and damaged folders are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file

from model.concepts.concept import Concept, ConceptError
from model.concepts.folder import diffusers_calls, read_concept, write_concept
from model.concepts.loading import load_concept
from tests.support.concepts import (
    METHODS,
    custom_diffusion,
    diffusers_pipeline,
    paint,
    several_vectors,
    textual_inversion,
    xti,
)


def assert_same(first: Concept, second: Concept) -> None:
    assert (first.method, first.backbone) == (second.method, second.backbone)
    named = [[(token.placeholder, token.word, token.subject) for token in one.tokens] for one in (first, second)]
    assert named[0] == named[1]
    assert [set(token.layer_embeddings) for token in first.tokens] == [set(t.layer_embeddings) for t in second.tokens]
    assert first.cross_attention.keys() == second.cross_attention.keys()
    assert first.lora.keys() == second.lora.keys()
    assert first.weights.keys() == second.weights.keys()
    shapes = [sorted((tensor.shape, tensor.sum().item()) for tensor in one.tensors()) for one in (first, second)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
def test_what_was_written_is_read(make: Callable[[Any], Concept], folder: Path, tmp_path: Path) -> None:
    concept = make(diffusers_pipeline(folder))
    write_concept(tmp_path, concept)
    assert_same(read_concept(tmp_path), concept)


DIFFUSERS = {name: make for name, make in METHODS.items() if name not in ("xti", "dreambooth")}


@pytest.mark.parametrize("make", DIFFUSERS.values(), ids=DIFFUSERS)
def test_diffusers_paints_the_same_with_its_own_loaders(
    make: Callable[[Any], Concept], folder: Path, tmp_path: Path
) -> None:
    """The calls are those that we print. diffusers replaces a placeholder of several vectors in the prompt itself."""
    ours, theirs = diffusers_pipeline(folder), diffusers_pipeline(folder)
    concept = make(ours)
    write_concept(tmp_path, concept)
    load_concept(ours, tmp_path)
    before = paint(theirs)
    calls = diffusers_calls(tmp_path, concept)
    exec(calls, {"pipeline": theirs, "safetensors": safetensors})
    painted = paint(theirs)
    assert np.abs(painted - before).max() > 0.01
    np.testing.assert_allclose(painted, paint(ours), atol=1e-4)
    assert calls.count("load_textual_inversion") == len(concept.tokens[0].embeddings)


def test_diffusers_has_no_loader_for_xti(sd_folder: Path) -> None:
    with pytest.raises(ConceptError, match="diffusers cannot load"):
        diffusers_calls(Path("here"), xti(diffusers_pipeline(sd_folder)))


def test_embeddings_are_two_dimensional(sdxl_folder: Path, tmp_path: Path) -> None:
    write_concept(tmp_path, several_vectors(diffusers_pipeline(sdxl_folder)))
    state = load_file(tmp_path / "learned_embeds.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {"clip_l": (3, 16), "clip_g": (3, 16)}


def test_a_folder_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    save_file({"[v]": torch.arange(16.0)}, tmp_path / "learned_embeds.safetensors")
    (tmp_path / "concept.json").write_text('{"placeholder": "[v]", "word": "cat", "subject": "tom"}')
    token = read_concept(tmp_path).tokens[0]
    assert (token.placeholder, token.word, token.subject) == ("[v]", "cat", "tom")
    assert torch.equal(token.embeddings[0], torch.arange(16.0)[None])


def describe(folder: Path, **changes: Any) -> None:
    file = folder / "concept.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def cut(file: Path, length: int = -10) -> None:
    file.write_bytes(file.read_bytes()[:length])


EMBEDDINGS, CUSTOM = "learned_embeds.safetensors", "pytorch_custom_diffusion_weights.safetensors"
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no description": (lambda f: (f / "concept.json").unlink(), "has no concept: No such file"),
    "a description that is no JSON": (lambda f: (f / "concept.json").write_text("{"), "is damaged: concept.json"),
    "a description that is no text": (lambda f: (f / "concept.json").write_bytes(b"\xe9\x00"), "is damaged: .*UTF-8"),
    "a description that is a list": (lambda f: (f / "concept.json").write_text("[]"), "is damaged"),
    "a description that is null": (lambda f: (f / "concept.json").write_text("null"), "is damaged"),
    "an empty description": (lambda f: (f / "concept.json").write_text("{}"), "'format' is missing"),
    "a later format": (lambda f: describe(f, format=7), "the format 7, which a later version wrote"),
    "no tokens": (lambda f: describe(f, tokens=[]), "has no token"),
    "tokens that are a number": (lambda f: describe(f, tokens=3), "is damaged"),
    "a token without a placeholder": (lambda f: describe(f, tokens=[{"word": "x"}]), "'placeholder' is missing"),
    "a token that is a text": (lambda f: describe(f, tokens=["[v]"]), "is damaged"),
    "a file of another folder": (
        lambda f: describe(
            f, tokens=[{"placeholder": "[v]", "word": "x", "subject": "", "embeddings": "../../other.safetensors"}]
        ),
        "is damaged: .*No such file",
    ),
    "no embeddings": (lambda f: (f / EMBEDDINGS).unlink(), f"{EMBEDDINGS}: No such file"),
    "embeddings cut off": (lambda f: cut(f / EMBEDDINGS), f"{EMBEDDINGS} has .* bytes: its download was cut off"),
    "embeddings cut in the header": (lambda f: cut(f / EMBEDDINGS, 20), f"{EMBEDDINGS} is not a safetensors file"),
    "empty embeddings": (lambda f: (f / EMBEDDINGS).write_bytes(b""), f"{EMBEDDINGS} is not a safetensors file"),
    "a web page": (lambda f: (f / EMBEDDINGS).write_text("<html>" * 99), f"{EMBEDDINGS} is not a safetensors file"),
    "a pointer of Git LFS": (
        lambda f: (f / EMBEDDINGS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n"),
        "Git LFS",
    ),
    "another placeholder": (lambda f: save_file({"<a>": torch.ones(1, 16)}, f / EMBEDDINGS), r"'\[v\]' is missing"),
    "an embedding of three dimensions": (
        lambda f: save_file({"[v]": torch.ones(1, 1, 16)}, f / EMBEDDINGS),
        r"shape \(1, 1, 16\)",
    ),
    "different numbers of vectors": (
        lambda f: save_file({"clip_l": torch.ones(2, 16), "clip_g": torch.ones(1, 16)}, f / EMBEDDINGS),
        "different numbers of vectors",
    ),
    "integers": (lambda f: save_file({"[v]": torch.ones(1, 16).long()}, f / EMBEDDINGS), "instead of"),
    "not a number": (
        lambda f: save_file({"[v]": torch.full((1, 16), torch.nan)}, f / EMBEDDINGS),
        "no finite numbers",
    ),
    "no weights": (lambda f: (f / CUSTOM).unlink(), f"{CUSTOM}: No such file"),
    "a key without its value": (
        lambda f: save_file({"a.attn2.processor.to_k_custom_diffusion.weight": torch.ones(2, 2)}, f / CUSTOM),
        "not a pair",
    ),
    "queries": (
        lambda f: save_file({"a.attn2.processor.to_q_custom_diffusion.weight": torch.ones(2, 2)}, f / CUSTOM),
        "not queries",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def written(sd_folder: Path) -> Concept:
    torch.manual_seed(0)
    return custom_diffusion(diffusers_pipeline(sd_folder))


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_folders_are_refused(
    damage: Callable[[Path], Any], message: str, written: Concept, tmp_path: Path
) -> None:
    write_concept(tmp_path, written)
    damage(tmp_path)
    with pytest.raises(ConceptError, match=message) as raised:
        read_concept(tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value).strip()


def test_what_is_no_folder_is_refused(tmp_path: Path, sd_folder: Path) -> None:
    file = tmp_path / "mug.safetensors"
    save_file({"[v]": torch.ones(16)}, file)
    for place in (file, tmp_path / "nowhere", tmp_path):
        with pytest.raises(ConceptError, match=r"has no concept.*other_files"):
            load_concept(diffusers_pipeline(sd_folder), place)


def test_a_concept_on_another_device_or_in_a_view_is_written(sd_folder: Path, tmp_path: Path) -> None:
    """safetensors refuses tensors that share memory or are not contiguous."""
    concept = textual_inversion(diffusers_pipeline(sd_folder))
    object.__setattr__(concept.tokens[0], "embeddings", (torch.arange(64.0).view(16, 4).T[:2],))
    write_concept(tmp_path, concept)
    assert torch.equal(read_concept(tmp_path).tokens[0].embeddings[0], torch.arange(64.0).view(16, 4).T[:2])
