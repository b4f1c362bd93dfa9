"""Import of the authors' weights, on small state dicts with their names, against a plain statement of their forward."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from model.adapters import released_weights
from model.adapters.adapter import AdapterError, cross_attention_widths
from model.adapters.image_encoder import ReferenceFeatures
from model.adapters.realcustom_plus_plus import RealCustomPlusAdapter
from model.adapters.released_weights import convert_released, read_state_dict, sdxl_unet

PROJECTION = "encoder_hidden_states_vision_projection"
IMAGE_WIDTH, TOKEN_WIDTH, PATCHES = 128, 32, 4  # two heads of width 64


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    """SDXL's blocks, narrow."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=TOKEN_WIDTH,
        attention_head_dim=(1, 2),
        norm_num_groups=4,
        use_linear_projection=True,
    )


def released(unet: UNet2DConditionModel, shallow: bool) -> dict[str, Tensor]:
    """A random file of the first form, or with shallow features of the second."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, width in cross_attention_widths(unet).items():
        shapes[f"{layer}.to_k_vision.weight"] = shapes[f"{layer}.to_v_vision.weight"] = (width, TOKEN_WIDTH)
    for number in ("", "2") if shallow else ("",):
        attention, mlp = f"{PROJECTION}.min_attention{number}", f"{PROJECTION}.projector{number}"
        for name in ("to_q", "to_k", "to_v"):
            shapes[f"{attention}.{name}.weight"] = (IMAGE_WIDTH, IMAGE_WIDTH)
        for name, width in ((f"{attention}.norm1", IMAGE_WIDTH), (f"{attention}.norm2", IMAGE_WIDTH), (f"{mlp}.5", 32)):
            shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)
        for index, (before, after) in {0: (IMAGE_WIDTH, 512), 2: (512, TOKEN_WIDTH), 4: (TOKEN_WIDTH, 32)}.items():
            shapes[f"{mlp}.{index}.weight"], shapes[f"{mlp}.{index}.bias"] = (after, before), (after,)
    shapes[f"{PROJECTION}.projector_base.weight"] = (TOKEN_WIDTH, IMAGE_WIDTH)
    shapes[f"{PROJECTION}.projector_base.bias"] = (TOKEN_WIDTH,)
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}


def features() -> ReferenceFeatures:
    generator = torch.Generator().manual_seed(2)
    return ReferenceFeatures(*(torch.randn(2, n * PATCHES, IMAGE_WIDTH, generator=generator) for n in (1, 3, 4)))


def branch(state: dict[str, Tensor], number: str, context: Tensor) -> Tensor:
    """Their MinAttention and projector, from the deep features to a context."""

    def part(name: str) -> Tensor:
        return state[f"{PROJECTION}.{name}"]

    def norm(name: str, x: Tensor) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], part(f"{name}.weight"), part(f"{name}.bias"))

    attention, mlp = f"min_attention{number}", f"projector{number}"
    deep, context = norm(f"{attention}.norm1", features().deep), norm(f"{attention}.norm2", context)
    query, key, value = (
        (x @ part(f"{attention}.to_{name}.weight").T).chunk(IMAGE_WIDTH // 64, dim=-1)
        for name, x in (("q", deep), ("k", context), ("v", context))
    )
    heads = [(q @ k.mT / 8).softmax(-1) @ v for q, k, v in zip(query, key, value, strict=True)]
    x = torch.cat(heads, -1)
    for index, activation in ((0, functional.gelu), (2, functional.gelu), (4, lambda y: y)):
        x = activation(x @ part(f"{mlp}.{index}.weight").T + part(f"{mlp}.{index}.bias"))
    return norm(f"{mlp}.5", x)


def base(state: dict[str, Tensor]) -> Tensor:
    weight, bias = (state[f"{PROJECTION}.projector_base.{name}"] for name in ("weight", "bias"))
    return features().deep @ weight.T + bias


#: shallow, released_forward -> groups of tokens; the authors' order is another, which attention does not see.
FORMS: dict[tuple[bool, bool], Callable[[dict[str, Tensor]], list[Tensor]]] = {
    (False, False): lambda state: [base(state) + branch(state, "", features().high)],
    (False, True): lambda state: [base(state) + branch(state, "", features().high)],
    (True, False): lambda state: [
        branch(state, "2", features().shallow),
        base(state) + branch(state, "", features().high),
    ],
    (True, True): lambda state: [branch(state, "2", features().shallow), base(state)],
}


@pytest.mark.parametrize(("shallow", "released_forward"), FORMS)
def test_the_adapter_computes_what_the_weights_say(
    unet: UNet2DConditionModel, shallow: bool, released_forward: bool
) -> None:
    state = released(unet, shallow)
    adapter = convert_released(state, unet, released_forward=released_forward)
    with torch.no_grad():
        tokens = adapter.projector(features())
        condition = adapter(features())
    expected = torch.cat(FORMS[shallow, released_forward](state), dim=1)
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-4)
    for layer, (key, value) in condition.keys_values.items():
        torch.testing.assert_close(key, tokens @ state[f"{layer}.to_k_vision.weight"].T, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(value, tokens @ state[f"{layer}.to_v_vision.weight"].T, rtol=1e-4, atol=1e-4)
    adapter.attach(unet)
    adapter.detach(unet)


@pytest.mark.parametrize("shallow", [False, True])
def test_every_key_is_taken_once(unet: UNet2DConditionModel, shallow: bool) -> None:
    state = released(unet, shallow)
    taken = convert_released(state, unet).state_dict()
    assert len(taken) == len(state)
    assert {tensor.data_ptr() for tensor in taken.values()} == {tensor.data_ptr() for tensor in state.values()}


def test_a_file_may_hold_the_whole_unet(unet: UNet2DConditionModel) -> None:
    state = released(unet, True)
    whole = convert_released({**unet.state_dict(), **state}, unet).state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in convert_released(state, unet).state_dict().items())


def test_half_precision_is_kept(unet: UNet2DConditionModel) -> None:
    state = {name: tensor.half() for name, tensor in released(unet, False).items()}
    assert convert_released(state, unet).dtype == torch.float16


def test_missing_and_unexpected_keys_are_listed(unet: UNet2DConditionModel) -> None:
    layer = "mid_block.attentions.0.transformer_blocks.1.attn2.to_v_vision.weight"
    for key in (layer, f"{PROJECTION}.projector2.4.bias", f"{PROJECTION}.projector_base.weight"):
        state = released(unet, True)
        del state[key]
        with pytest.raises(AdapterError, match=rf"missing: {key}; unexpected: none\.$"):
            convert_released(state, unet)
        state[f"{key}.stray"] = torch.zeros(1)
        with pytest.raises(AdapterError, match=rf"missing: {key}; unexpected: {key}\.stray\.$"):
            convert_released(state, unet)


def test_another_models_file_is_refused(unet: UNet2DConditionModel) -> None:
    expected = len(released(unet, False)) - released_weights._LISTED
    with pytest.raises(AdapterError, match=rf"missing: .* and {expected} more; unexpected: none\.$"):
        convert_released(unet.state_dict(), unet)


@pytest.mark.parametrize(
    ("key", "shape", "wanted"),
    [
        ("projector.0.bias", (3,), r"\(3,\), not \(512,\)\.$"),
        ("projector_base.weight", (32, 100), r"\(32, 100\), not \(32, 128\)\.$"),
        ("min_attention.norm1.weight", (100,), r"\(100,\), not \(64,\)"),
        ("projector_base.weight", (), r"\(\), not \(32, 128\)\.$"),
    ],
)
def test_wrong_shapes_are_listed(unet: UNet2DConditionModel, key: str, shape: tuple[int, ...], wanted: str) -> None:
    key = f"{PROJECTION}.{key}"
    with pytest.raises(AdapterError, match=rf"another shape than this base's: .*{key} {wanted}"):
        convert_released({**released(unet, False), key: torch.zeros(shape)}, unet)


@pytest.mark.parametrize("suffix", ["pth", "bin", "safetensors"])
def test_files(unet: UNet2DConditionModel, suffix: str, tmp_path: Path) -> None:
    state, path = released(unet, False), tmp_path / f"weights.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    read = read_state_dict(path)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())


class Trap:
    """A pickle of it would write a file when it is loaded without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


def test_damaged_files(tmp_path: Path) -> None:
    trap, sprung = tmp_path / "trap.pth", tmp_path / "sprung"
    torch.save({"x": Trap(sprung)}, trap)
    for name, content in (("cut.pth", trap.read_bytes()[:100]), ("empty.pth", b""), ("cut.safetensors", b"12345678")):
        (tmp_path / name).write_bytes(content)
    for name in ("trap.pth", "cut.pth", "empty.pth", "cut.safetensors"):
        with pytest.raises(AdapterError, match=rf"{name} is damaged, or contains more than tensors"):
            read_state_dict(tmp_path / name)
    assert not sprung.exists()
    for other in ([torch.zeros(1)], {"state_dict": {"x": torch.zeros(1)}}, {1: torch.zeros(1)}):
        torch.save(other, tmp_path / "other.pth")
        with pytest.raises(AdapterError, match=r"other\.pth is not a state dict"):
            read_state_dict(tmp_path / "other.pth")
    for suffix in ("pth", "safetensors"):
        with pytest.raises(FileNotFoundError):
            read_state_dict(tmp_path / f"absent.{suffix}")


def test_a_damaged_pickle_raises_nothing_else(tmp_path: Path) -> None:
    path, generator = tmp_path / "weights.pth", random.Random(0)
    torch.save({"x": torch.zeros(2)}, path)
    whole = path.read_bytes()
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(4):
            damaged[generator.randrange(len(whole))] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            read_state_dict(path)
        except AdapterError:
            refused += 1
    assert refused > 100  # the others were hit where it does not matter, or in the numbers


def test_sdxl_has_seventy_cross_attention_layers() -> None:
    widths = list(cross_attention_widths(sdxl_unet()).values())
    assert (widths.count(640), widths.count(1280), len(widths)) == (10, 60, 70)


def test_the_command(
    unet: UNet2DConditionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(released_weights, "sdxl_unet", lambda: unet)  # SDXL's own weights would be 1.8 GB
    state, source, target = released(unet, True), tmp_path / "released.pth", tmp_path / "adapter"
    torch.save(state, source)
    released_weights.main([str(source), str(target), "--released-forward"])
    assert capsys.readouterr().out.startswith(f"{target}: ")
    loaded, converted = (
        RealCustomPlusAdapter.from_pretrained(target),
        convert_released(state, unet, released_forward=True),
    )
    assert torch.equal(loaded.projector(features()), converted.projector(features()))
    torch.save({}, source)
    with pytest.raises(SystemExit, match="released weights; missing: "):
        released_weights.main([str(source), str(target)])
