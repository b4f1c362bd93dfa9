"""LoRA files of diffusers, peft and kohya's scripts: their names, their scales, and that pictures change."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.backbone import Backbone, load_backbone
from model.concepts.concept import Concept, ConceptError, LoraLayer
from model.concepts.folder import diffusers_calls, write_concept
from model.concepts.loading import load_concept
from model.concepts.lora_files import write_kohya_lora
from model.concepts.model_parts import ModelParts
from model.concepts.other_files import read_other
from tests.support.concepts import diffusers_pipeline, dreambooth, paint

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
DOWN, UP = torch.linspace(-1, 1, 32).view(2, 16), torch.linspace(-1, 1, 16).view(8, 2)  # to_k: 16 -> 8
TEXT = "encoder.layers.0.self_attn"
SQUARE = torch.linspace(-1, 1, 32).view(16, 2)  # q_proj: 16 -> 16


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def diffusers(name: str, up: Tensor = UP, ends: tuple[str, str] = ("lora_A", "lora_B")) -> dict[str, Tensor]:
    return {f"{name}.{ends[0]}.weight": DOWN, f"{name}.{ends[1]}.weight": up}


def kohya(name: str, alpha: float | None, up: Tensor = UP) -> dict[str, Tensor]:
    state = {f"{name}.lora_down.weight": DOWN, f"{name}.lora_up.weight": up}
    return state if alpha is None else state | {f"{name}.alpha": torch.tensor(alpha)}


UNET, UNDERSCORES = f"unet.{ATTENTION}.to_k", f"lora_unet_{ATTENTION.replace('.', '_')}_to_k"
ENCODER = f"text_encoder.text_model.{TEXT}.q_proj"
RANK_2 = {"unet.r": 2, "unet.lora_alpha": 2}

#: The state, diffusers' metadata, the layer, and the factor of up @ down.
DIALECTS: dict[str, tuple[dict[str, Tensor], dict[str, Any], str, float]] = {
    "diffusers with peft": (diffusers(UNET), {}, UNET, 1.0),
    "with metadata, alpha = rank": (diffusers(UNET), RANK_2, UNET, 1.0),
    "with metadata, alpha = 8": (diffusers(UNET), RANK_2 | {"unet.lora_alpha": 8}, UNET, 4.0),
    "with metadata, alpha of a layer": (
        diffusers(UNET),
        RANK_2 | {"unet.alpha_pattern": {f"{ATTENTION}.to_k": 1}},
        UNET,
        0.5,
    ),
    "with metadata, rank-stabilized": (diffusers(UNET), RANK_2 | {"unet.use_rslora": True}, UNET, 2**0.5),
    "with metadata of another part": (diffusers(UNET), {"text_encoder.lora_alpha": 8}, UNET, 1.0),
    "with an alpha": (diffusers(UNET) | {f"{UNET}.alpha": torch.tensor(4.0)}, {}, UNET, 2.0),
    "an adapter's name": (diffusers(UNET, ends=("lora_A.default", "lora_B.default")), {}, UNET, 1.0),
    "diffusers, down and up": (diffusers(UNET, ends=("lora.down", "lora.up")), {}, UNET, 1.0),
    "diffusers, processors": (
        diffusers(f"unet.{ATTENTION}.processor", ends=("to_k_lora.down", "to_k_lora.up")),
        {},
        UNET,
        1.0,
    ),
    "the oldest of diffusers": (
        diffusers(f"{ATTENTION}.processor", ends=("to_k_lora.down", "to_k_lora.up")),
        {},
        UNET,
        1.0,
    ),
    "peft alone": (diffusers(f"base_model.model.{ATTENTION}.to_k"), {}, UNET, 1.0),
    "output, processors": (
        {
            f"unet.{ATTENTION}.processor.to_out_lora.down.weight": DOWN[:, :8],
            f"unet.{ATTENTION}.processor.to_out_lora.up.weight": UP,
        },
        {},
        f"unet.{ATTENTION}.to_out.0",
        1.0,
    ),
    "kohya, alpha = rank": (kohya(UNDERSCORES, 2.0), {}, UNET, 1.0),
    "kohya, alpha = 1": (kohya(UNDERSCORES, 1.0), {}, UNET, 0.5),
    "kohya, alpha = 16": (kohya(UNDERSCORES, 16.0), {}, UNET, 8.0),
    "kohya, alpha = 0": (kohya(UNDERSCORES, 0.0), {}, UNET, 0.0),
    "kohya without alpha": (kohya(UNDERSCORES, None), {}, UNET, 1.0),
    "kohya, original names": (
        kohya("lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k", 1.0),
        {},
        UNET,
        0.5,
    ),
    "kohya, 1 x 1 convolutions": (
        {name: tensor[..., None, None] for name, tensor in kohya(UNDERSCORES, None).items()},
        {},
        UNET,
        1.0,
    ),
    "kohya, text encoder": (
        kohya(f"lora_te_text_model_{TEXT.replace('.', '_')}_q_proj", 1.0, SQUARE),
        {},
        ENCODER,
        0.5,
    ),
    "kohya, first text encoder": (
        kohya(f"lora_te1_text_model_{TEXT.replace('.', '_')}_q_proj", 1.0, SQUARE),
        {},
        ENCODER,
        0.5,
    ),
    "text encoder": (diffusers(ENCODER, SQUARE), {}, ENCODER, 1.0),
    "text encoder, transformers 5": (diffusers(f"text_encoder.{TEXT}.q_proj", SQUARE), {}, ENCODER, 1.0),
    "text encoder, metadata": (diffusers(ENCODER, SQUARE), {"text_encoder.lora_alpha": 1}, ENCODER, 0.5),
    "text encoder, linear layer": (
        diffusers(ENCODER, SQUARE, ("lora_linear_layer.down", "lora_linear_layer.up")),
        {},
        ENCODER,
        1.0,
    ),
    "text encoder, oldest": (
        diffusers(f"text_encoder.text_model.{TEXT}", SQUARE, ("to_q_lora.down", "to_q_lora.up")),
        {},
        ENCODER,
        1.0,
    ),
}  # fmt: skip


def write(file: Path, state: dict[str, Tensor], metadata: dict[str, Any] | None = None) -> Path:
    header = {"lora_adapter_metadata": json.dumps(metadata)} if metadata else None
    save_file({name: tensor.clone() for name, tensor in state.items()}, file, metadata=header)
    return file


@pytest.mark.parametrize(("state", "metadata", "layer", "factor"), DIALECTS.values(), ids=DIALECTS)
def test_dialects(
    state: dict[str, Tensor], metadata: dict[str, Any], layer: str, factor: float, sd: Backbone, tmp_path: Path
) -> None:
    file = write(tmp_path / "a.safetensors", state, metadata)
    concept = read_other(file, sd, placeholder="sks", word="cat")
    assert list(concept.lora) == [layer]
    lora = concept.lora[layer]
    down, up = [tensor for tensor in state.values() if tensor.dim() > 1]
    torch.testing.assert_close(lora.up.flatten(1) @ lora.down.flatten(1), factor * up.flatten(1) @ down.flatten(1))
    module = ModelParts.of(sd).layers()[layer]
    inputs = torch.randn(3, lora.down.shape[1])
    expected = module(inputs) + inputs @ (factor * up.flatten(1) @ down.flatten(1)).T
    load_concept(sd, concept)
    torch.testing.assert_close(module(inputs), expected, rtol=1e-4, atol=1e-5)


REFUSED: dict[str, tuple[dict[str, Tensor], dict[str, Any], str]] = {
    "another model": (diffusers("unet.blocks.0.to_k"), {}, "another backbone .*unet.blocks.0"),
    "another model, kohya": (kohya("lora_unet_double_blocks_0_to_k", 1.0), {}, "another backbone .*double_blocks"),
    "a second text encoder": (kohya("lora_te2_text_model_encoder_layers_0_mlp_fc1", 1.0), {}, "another backbone"),
    "another shape": (diffusers(UNET, UP[:4]), {}, "another backbone .*of its shape"),
    "one matrix": ({f"{UNET}.lora_A.weight": DOWN}, {}, "only one of the two matrices"),
    "alpha alone": (diffusers(UNET) | {f"unet.{ATTENTION}.to_q.alpha": torch.tensor(1.0)}, {}, "only one of the two"),
    "DoRA": (diffusers(UNET) | {f"{UNET}.lora_magnitude_vector": UP}, {}, "no plain LoRA"),
    "DoRA of kohya": (kohya(UNDERSCORES, 1.0) | {f"{UNDERSCORES}.dora_scale": UP}, {}, "no plain LoRA: .*dora_scale"),
    "DoRA by its metadata": (diffusers(UNET), {"unet.use_dora": True}, "it is DoRA"),
    "Tucker": (kohya(UNDERSCORES, 1.0) | {f"{UNDERSCORES}.lora_mid.weight": UP}, {}, "no plain LoRA: .*lora_mid"),
    "with a bias": (kohya(UNDERSCORES, 1.0) | {f"{UNDERSCORES}.diff_b": UP}, {}, "no plain LoRA: .*diff_b"),
    "LoHa": ({f"{UNDERSCORES}.hada_w1_a": UP, f"{UNDERSCORES}.hada_w1_b": DOWN}, {}, "no .*hada_w1_a"),
    "LoKr": ({f"{UNDERSCORES}.lokr_w1": UP, f"{UNDERSCORES}.lokr_w2": DOWN}, {}, "no .*lokr_w1"),
}  # fmt: skip


@pytest.mark.parametrize(("state", "metadata", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(
    state: dict[str, Tensor], metadata: dict[str, Any], message: str, sd: Backbone, tmp_path: Path
) -> None:
    file = write(tmp_path / "a.safetensors", state, metadata)
    with pytest.raises(ConceptError, match=message) as raised:
        read_other(file, sd, placeholder="sks", word="cat")
    assert "a.safetensors" in str(raised.value)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_names_of_kohya_are_read_again(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Every layer that a LoRA can change, with alpha = rank."""
    backbone: Backbone = request.getfixturevalue(kind)
    parts = ModelParts.of(backbone)
    lora = {}
    for name, layer in parts.layers().items():
        out, into, *kernel = layer.weight.shape
        lora[name] = LoraLayer(torch.randn(2, into, *kernel), torch.randn(out, 2, *[1 for _ in kernel]))
    file = tmp_path / "a.safetensors"
    write_kohya_lora(file, lora, parts)
    state = load_file(file)
    assert {state[key].item() for key in state if key.endswith(".alpha")} == {2.0}
    assert len(state) == 3 * len(lora)
    read = read_other(file, backbone, placeholder="sks", word="cat").lora
    assert read.keys() == lora.keys()
    assert all(torch.equal(read[name].up, layer.up) for name, layer in lora.items())
    if kind == "sdxl":
        assert any(key.startswith("lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q") for key in state)
        assert any(key.startswith("lora_te2_text_model_encoder_layers_1_mlp_fc1") for key in state)


def test_what_is_written_says_alpha_and_rank(sd: Backbone, tmp_path: Path) -> None:
    write_concept(tmp_path, dreambooth(sd))
    with safe_open(tmp_path / "pytorch_lora_weights.safetensors", "pt") as opened:
        metadata = json.loads(opened.metadata()["lora_adapter_metadata"])
    assert metadata["unet.lora_alpha"] == metadata["unet.r"] == 2
    assert metadata["unet.rank_pattern"] == metadata["unet.alpha_pattern"] != {}
    assert set(metadata["unet.rank_pattern"].values()) == {3}


# --- diffusers and peft ---------------------------------------------------------------------------------------------


@pytest.fixture
def with_peft() -> None:
    pytest.importorskip("peft")


def painted_with(concept: Concept, folder: Path) -> np.ndarray[Any, Any]:
    pipeline = diffusers_pipeline(folder)
    before = paint(pipeline)
    load_concept(pipeline, concept)
    after = paint(pipeline)
    assert np.abs(after - before).max() > 0.01
    return after


def as_folder(file: Path, concept: Concept, model: Any) -> str:
    write_concept(file.parent, concept)
    return diffusers_calls(file.parent, concept)


def as_kohya(file: Path, concept: Concept, model: Any) -> str:
    write_kohya_lora(file, concept.lora, ModelParts.of(model))
    return f"pipeline.load_lora_weights({str(file)!r})"


@pytest.mark.usefixtures("with_peft")
@pytest.mark.parametrize("write_as", [as_folder, as_kohya], ids=["diffusers", "kohya"])
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_diffusers_paints_the_same_with_peft(
    kind: str, write_as: Callable[[Path, Concept, Any], str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(f"{kind}_folder")
    theirs = diffusers_pipeline(folder)
    concept = dreambooth(theirs)  # of two ranks
    exec(write_as(tmp_path / "a.safetensors", concept, theirs), {"pipeline": theirs})
    np.testing.assert_allclose(paint(theirs), painted_with(concept, folder), atol=1e-3)


@pytest.mark.usefixtures("with_peft")
@pytest.mark.parametrize("alpha", [2, 8])
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_lora_trained_with_peft_is_read(kind: str, alpha: int, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """As diffusers' training scripts save it."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    folder = request.getfixturevalue(f"{kind}_folder")
    trained = diffusers_pipeline(folder)
    parts = {"unet": (trained.unet, ["to_q", "to_out.0"]), "text_encoder": (trained.text_encoder, ["q_proj", "v_proj"])}
    if kind == "sdxl":
        parts["text_encoder_2"] = (trained.text_encoder_2, ["q_proj", "v_proj"])
    layers, metadata = {}, {}
    for name, (model, targets) in parts.items():
        config = LoraConfig(r=2, lora_alpha=alpha, target_modules=targets, init_lora_weights=False)
        model.add_adapter(config, adapter_name="default")
        layers[f"{name}_lora_layers"] = get_peft_model_state_dict(model)
        metadata[f"{name}_lora_adapter_metadata"] = model.peft_config["default"].to_dict()
    type(trained).save_lora_weights(tmp_path, **layers, **metadata)
    concept = read_other(
        tmp_path / "pytorch_lora_weights.safetensors", load_backbone(folder), placeholder="sks", word="cat"
    )
    np.testing.assert_allclose(painted_with(concept, folder), paint(trained), atol=1e-4)
