"""Concepts in the files of other tools: embeddings, XTI, Custom Diffusion. LoRA: test_lora_files.py."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor
from safetensors.torch import load_file, save_file

from model.backbone import Backbone
from model.concepts.concept import ConceptError, ConceptToken
from model.concepts.loading import load_concept
from model.concepts.model_parts import compvis_names
from model.concepts.other_files import read_other, write_a1111, write_kohya_xti
from tests.support.concepts import custom_diffusion, diffusers_pipeline, paint, textual_inversion, xti

ONE, THREE = torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 48).view(3, 16)


def a1111(name: str | None = "mug", star: Any = THREE) -> dict[str, Any]:
    """As A1111 writes it."""
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": star},
        "name": name,
        "step": 500,
        "sd_checkpoint": "abc",
        "sd_checkpoint_name": "v1-5",
    }


#: Suffix, what the file holds, and the placeholder and the embeddings that are read.
EMBEDDINGS: dict[str, tuple[str, Any, str | None, torch.Tensor]] = {
    "diffusers": (".safetensors", {"<mug>": THREE}, "<mug>", THREE),
    "diffusers, 1-D": (".safetensors", {"<mug>": ONE}, "<mug>", ONE[None]),
    "diffusers, half": (".safetensors", {"<mug>": THREE.half()}, "<mug>", THREE.half()),
    "diffusers, bfloat16": (".safetensors", {"<mug>": THREE.bfloat16()}, "<mug>", THREE.bfloat16()),
    "diffusers' pickle": (".bin", {"<mug>": ONE}, "<mug>", ONE[None]),
    "diffusers' pickle, a parameter": (".bin", {"<mug>": torch.nn.Parameter(ONE)}, "<mug>", ONE[None]),
    "diffusers' pickle, ordered": (".bin", collections.OrderedDict({"<mug>": ONE}), "<mug>", ONE[None]),
    "a tensor alone": (".pt", THREE, None, THREE),
    "A1111": (".pt", a1111(), "mug", THREE),
    "A1111, one vector": (".pt", a1111(star=ONE[None]), "mug", ONE[None]),
    "A1111, a parameter": (".pt", a1111(star=torch.nn.Parameter(THREE)), "mug", THREE),
    "A1111, .bin": (".bin", a1111(), "mug", THREE),
    "A1111 without a name": (".pt", a1111(name=None), None, THREE),
    "the original code, a ParameterDict": (
        ".pt",
        {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": torch.nn.ParameterDict({"*": THREE})},
        None,
        THREE,
    ),
    "kohya's pickle": (".pt", {"string_to_token": {"*": 265}, "string_to_param": {"*": THREE}}, None, THREE),
    "kohya and A1111, safetensors": (".safetensors", {"emb_params": THREE}, None, THREE),
    "kohya, one vector": (".safetensors", {"emb_params": ONE}, None, ONE[None]),
    "kohya with more": (".safetensors", {"emb_params": THREE, "step": torch.ones(1)}, None, THREE),
    "a placeholder in brackets": (".safetensors", {"[v]": ONE[None]}, "[v]", ONE[None]),
}  # fmt: skip


def write(file: Path, state: Any) -> Path:
    if file.suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save(state, file)
    return file


@pytest.mark.parametrize(("suffix", "state", "placeholder", "expected"), EMBEDDINGS.values(), ids=EMBEDDINGS)
def test_embeddings_are_read(
    suffix: str, state: Any, placeholder: str | None, expected: torch.Tensor, sd: Backbone, tmp_path: Path
) -> None:
    file = write(tmp_path / f"my mug{suffix}", state)
    if placeholder is None:
        with pytest.raises(ConceptError, match="does not say what its placeholder is"):
            read_other(file, sd, word="mug")
    named = read_other(file, sd, placeholder="<given>", word="mug")
    token = read_other(file, sd, word="mug").tokens[0] if placeholder else named.tokens[0]
    assert token.placeholder == (placeholder or "<given>")
    assert named.tokens[0].placeholder == "<given>"
    assert (token.word, token.subject) == ("mug", "my mug")
    assert len(token.embeddings) == 1
    assert torch.equal(token.embeddings[0], expected)
    before = sd.encode_prompt(["a <given>"]).hidden
    load_concept(sd, named)
    assert not torch.equal(sd.encode_prompt(["a <given>"]).hidden, before)


def test_both_encoders_of_sdxl_are_read(sdxl: Backbone, sd: Backbone, tmp_path: Path) -> None:
    file = write(tmp_path / "a.safetensors", {"clip_g": THREE, "clip_l": -THREE})
    embeddings = read_other(file, sdxl, placeholder="[v]", word="mug").tokens[0].embeddings
    assert torch.equal(embeddings[0], -THREE)
    assert torch.equal(embeddings[1], THREE)
    with pytest.raises(ConceptError, match="another backbone"):
        read_other(file, sd, placeholder="[v]", word="mug")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("vectors", [1, 3])
def test_diffusers_reads_what_a1111_would(suffix: str, vectors: int, sd_folder: Path, tmp_path: Path) -> None:
    ours, theirs = diffusers_pipeline(sd_folder), diffusers_pipeline(sd_folder)
    concept = textual_inversion(ours, vectors=vectors)
    file = tmp_path / f"[v]{suffix}"
    write_a1111(file, concept.tokens[0])
    theirs.load_textual_inversion(str(file), token="[v]")
    before = paint(ours)
    load_concept(ours, read_other(file, ours, placeholder="[v]", word="cat"))
    assert np.abs(paint(ours) - before).max() > 0.01
    np.testing.assert_allclose(paint(theirs), paint(ours), atol=1e-5)


def test_sdxl_for_a1111_is_read_again(sdxl: Backbone, tmp_path: Path) -> None:
    concept = textual_inversion(sdxl, vectors=2)
    write_a1111(tmp_path / "a.safetensors", concept.tokens[0])
    read = read_other(tmp_path / "a.safetensors", sdxl, placeholder="[v]", word="cat")
    for first, second in zip(read.tensors(), concept.tensors(), strict=True):
        assert torch.equal(first, second)
    with pytest.raises(ConceptError, match=r"need a \.safetensors"):
        write_a1111(tmp_path / "a.pt", concept.tokens[0])
    with pytest.raises(ConceptError, match="has no embeddings for A1111"):
        write_a1111(tmp_path / "a.safetensors", xti(sdxl).tokens[0])


# --- XTI of kohya's scripts -----------------------------------------------------------------------------------------

KOHYA_KEYS = ["IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "MID", *(f"OUT{number:02d}" for number in range(3, 12))]


@dataclasses.dataclass
class Shapes:
    """A UNet of SD 1.5's layout, and the text encoder of the tiny model."""

    unet: Any
    text_encoders: list[Any]
    tokenizers: list[Any]


@pytest.fixture
def sd15(sd: Backbone) -> Shapes:
    unet = UNet2DConditionModel(
        block_out_channels=(4, 4, 4, 4), cross_attention_dim=16, attention_head_dim=2, norm_num_groups=2
    )
    return Shapes(unet.eval(), sd.text_encoders, sd.tokenizers)


@pytest.mark.parametrize("vectors", [1, 2])
def test_xti_of_kohya_has_16_keys_in_the_order_of_the_unet(vectors: int, sd15: Shapes, tmp_path: Path) -> None:
    token = xti(sd15, vectors=vectors).tokens[0]
    file = tmp_path / "a.safetensors"
    write_kohya_xti(file, token, sd15)
    state = load_file(file)
    assert sorted(state) == sorted(KOHYA_KEYS)
    assert state["IN01"].shape == ((16,) if vectors == 1 else (2, 16))
    for key, embeddings in zip(KOHYA_KEYS, token.layer_embeddings.values(), strict=True):
        assert torch.equal(state[key].view(vectors, 16), embeddings[0])
    concept = read_other(file, sd15, placeholder="[v]", word="cat")
    assert concept.method == "xti"
    for layer, embeddings in token.layer_embeddings.items():
        assert torch.equal(concept.tokens[0].layer_embeddings[layer][0], embeddings[0])
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([500])
    load_concept(sd15, concept)
    ids = sd15.tokenizers[0]("a [v]", padding="max_length", return_tensors="pt").input_ids
    states = sd15.text_encoders[0](ids).last_hidden_state
    assert states.shape == (1, 16 * 24, 16)
    ours = sd15.unet(*inputs, states).sample
    assert not torch.equal(ours, sd15.unet(*inputs, states[:, :24]).sample)


def test_xti_of_kohya_is_for_sd15_only(sd: Backbone, sdxl: Backbone, sd15: Shapes, tmp_path: Path) -> None:
    for model, make in ((sdxl, xti), (sd, xti), (sd15, textual_inversion)):
        with pytest.raises(ConceptError, match="16 cross-attention layers"):
            write_kohya_xti(tmp_path / "a.safetensors", make(model).tokens[0], model)
    file = write(tmp_path / "a.safetensors", {key: ONE.clone() for key in KOHYA_KEYS})
    for model in (sdxl, sd):
        with pytest.raises(ConceptError, match="no concept in a format that is known"):
            read_other(file, model, placeholder="[v]", word="cat")


def test_names_of_the_original_code(sd15: Shapes) -> None:
    """Against the table in diffusers' conversion script, for SD 1.5."""
    names = compvis_names(sd15.unet)
    known = {
        "down_blocks.0.resnets.0": "input_blocks.1.0",
        "down_blocks.0.attentions.1": "input_blocks.2.1",
        "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
        "down_blocks.2.attentions.1": "input_blocks.8.1",
        "down_blocks.3.resnets.1": "input_blocks.11.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "up_blocks.0.resnets.2": "output_blocks.2.0",
        "up_blocks.0.upsamplers.0.conv": "output_blocks.2.1.conv",
        "up_blocks.1.attentions.0": "output_blocks.3.1",
        "up_blocks.1.upsamplers.0.conv": "output_blocks.5.2.conv",
        "up_blocks.3.attentions.2": "output_blocks.11.1",
    }
    assert {name: names[name] for name in known} == known


# --- Custom Diffusion of diffusers ----------------------------------------------------------------------------------


def train_as_diffusers(pipeline: Any) -> None:
    """The processors of diffusers' training script, with random weights."""
    processors = {}
    for name in pipeline.unet.attn_processors:
        attention = pipeline.unet.get_submodule(name.removesuffix(".processor"))
        is_cross = name.endswith("attn2.processor")
        processors[name] = CustomDiffusionAttnProcessor(
            train_kv=is_cross,
            train_q_out=False,
            hidden_size=attention.to_q.in_features,
            cross_attention_dim=attention.to_k.in_features if is_cross else None,
        )
    pipeline.unet.set_attn_processor(processors)


@pytest.mark.parametrize("is_safe", [True, False], ids=["safetensors", "pickle"])
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_custom_diffusion_of_diffusers_is_read(
    kind: str, is_safe: bool, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    folder = request.getfixturevalue(f"{kind}_folder")
    ours, theirs = diffusers_pipeline(folder), diffusers_pipeline(folder)
    train_as_diffusers(theirs)
    theirs.unet.save_attn_procs(tmp_path, safe_serialization=is_safe)
    (weights,) = tmp_path.iterdir()
    before = paint(ours, "a cat in")
    load_concept(ours, read_other(weights, ours, placeholder="cat", word="cat"))
    assert np.abs(paint(ours, "a cat in") - before).max() > 0.01
    np.testing.assert_allclose(paint(ours, "a cat in"), paint(theirs, "a cat in"), atol=1e-4)


def test_weights_and_embeddings_of_custom_diffusion_are_one_concept(sd: Backbone, tmp_path: Path) -> None:
    from model.concepts.custom_diffusion_files import custom_diffusion_state

    weights = write(tmp_path / "w.safetensors", custom_diffusion_state(custom_diffusion(sd).cross_attention))
    tokens = [write(tmp_path / f"{name}.bin", {name: ONE}) for name in ("<new1>", "<new2>")]
    concept = read_other([weights, *tokens], sd, word="cat", subject="cats")
    assert (concept.method, concept.placeholders) == ("custom_diffusion", ["<new1>", "<new2>"])
    assert load_concept(sd, concept) == ["<new1>", "<new2>"]


# --- what is refused ------------------------------------------------------------------------------------------------


class Command:
    """A pickle that would run a command."""

    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/should-not-exist",)


def save_cut(state: Any, file: Path) -> None:
    torch.save(state, file)
    file.write_bytes(file.read_bytes()[:9000])


REFUSED: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "no file": (".pt", lambda f: None, "cannot be read: No such file"),
    "an empty file": (".pt", lambda f: f.write_bytes(b""), "damaged"),
    "an empty safetensors": (".safetensors", lambda f: f.write_bytes(b""), "not a safetensors file"),
    "text": (".pt", lambda f: f.write_text("hello"), "damaged"),
    "a web page": (".safetensors", lambda f: f.write_text("<html>" * 99), "not a safetensors file"),
    "a pickle that runs code": (".pt", lambda f: torch.save({"<a>": Command()}, f), "more than tensors"),
    "a pickle of a class": (".bin", lambda f: torch.save(ConceptToken(placeholder="", word="", subject=""), f), "more"),
    "a pickle cut off": (
        ".pt",
        lambda f: save_cut({"<a>": torch.ones(9000)}, f),
        "damaged|cannot be read",
    ),
    "a pickle of a list": (".pt", lambda f: torch.save([ONE], f), "holds a list"),
    "a pickle of a number": (".pt", lambda f: torch.save(3, f), "holds a int"),
    "nothing": (".pt", lambda f: torch.save({}, f), "it holds nothing"),
    "a UNet": (".safetensors", lambda f: save_file({"conv_in.weight": ONE, "conv_out.weight": THREE}, f), "conv_in"),
    "A1111 without a star": (".pt", lambda f: torch.save(a1111() | {"string_to_param": {}}, f), r"has no '\*'"),
    "A1111 with a text": (".pt", lambda f: torch.save(a1111(star="text"), f), "cannot be used"),
    "A1111 with a list": (".pt", lambda f: torch.save(a1111() | {"string_to_param": [1]}, f), "cannot be used"),
    "integers": (".safetensors", lambda f: save_file({"<a>": ONE.long()}, f), "instead of"),
    "three dimensions": (".safetensors", lambda f: save_file({"emb_params": ONE[None, None]}, f), r"\(1, 1, 16\)"),
    "another width": (".safetensors", lambda f: save_file({"<a>": torch.ones(1, 768)}, f), "another backbone"),
    "different numbers of vectors": (
        ".safetensors",
        lambda f: save_file({"clip_l": THREE, "clip_g": ONE}, f),
        "different numbers of vectors",
    ),
    "a token already": (".safetensors", lambda f: save_file({"cat": ONE}, f), "'cat' is a token already"),
    "numbers as keys": (".pt", lambda f: torch.save({1: ONE, 2: ONE}, f), "cannot be used|no concept"),
}  # fmt: skip


@pytest.mark.parametrize(("suffix", "make", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_files(suffix: str, make: Callable[[Path], Any], message: str, sd: Backbone, tmp_path: Path) -> None:
    file = tmp_path / f"a{suffix}"
    make(file)
    with pytest.raises(ConceptError, match=message) as raised:
        read_other(file, sd, placeholder=None if message.startswith("'cat'") else "<p>", word="cat")
    assert "\n" not in str(raised.value)
    assert not Path("/tmp/should-not-exist").exists()
