"""Import of the authors' weights, on small state dicts with their names, against a plain statement of their forward."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

from model.adapters import released_weights
from model.adapters.adapter import AdapterError, cross_attention_widths
from model.adapters.image_encoder import ReferenceFeatures
from model.adapters.realcustom_plus_plus import RealCustomPlusAdapter
from model.adapters.released_weights import (
    convert_released,
    read_content,
    read_state_dict,
    sdxl_unet,
    stray_names,
)
from tests.support.release_statement import projected
from tests.support.released_models import IMAGE_WIDTH, PROJECTION, released_state

TOKEN_WIDTH, PATCHES = 32, 4


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


def features() -> ReferenceFeatures:
    generator = torch.Generator().manual_seed(2)
    return ReferenceFeatures(*(torch.randn(2, n * PATCHES, IMAGE_WIDTH, generator=generator) for n in (1, 3, 4)))


@pytest.mark.parametrize("shallow", [False, True])
def test_the_adapter_computes_what_the_weights_say(unet: UNet2DConditionModel, shallow: bool) -> None:
    """Of the second form without f_high', as the authors' code; their order of tokens, which attention does not see."""
    state, given = released_state(unet, shallow), features()
    adapter = convert_released(state, unet)
    with torch.no_grad():
        tokens = adapter.projector(given)
        condition = adapter(given)
    expected = projected(state, given.deep, given.shallow, given.high)
    torch.testing.assert_close(tokens, expected.roll(PATCHES, 1) if shallow else expected, rtol=1e-4, atol=1e-4)
    for layer, (key, value) in condition.keys_values.items():
        torch.testing.assert_close(key, tokens @ state[f"{layer}.to_k_vision.weight"].T, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(value, tokens @ state[f"{layer}.to_v_vision.weight"].T, rtol=1e-4, atol=1e-4)
    adapter.attach(unet)
    adapter.detach(unet)


@pytest.mark.parametrize("shallow", [False, True])
def test_every_key_with_an_effect_is_taken_once(unet: UNet2DConditionModel, shallow: bool) -> None:
    state = released_state(unet, shallow)
    taken = {tensor.data_ptr() for tensor in convert_released(state, unet).state_dict().values()}
    left_out = (f"{PROJECTION}.min_attention.", f"{PROJECTION}.projector.") if shallow else ()
    assert taken == {tensor.data_ptr() for name, tensor in state.items() if not name.startswith(left_out)}


def test_missing_keys_are_listed(unet: UNet2DConditionModel) -> None:
    layer = "mid_block.attentions.0.transformer_blocks.1.attn2.to_v_vision.weight"
    for key in (layer, f"{PROJECTION}.projector2.4.bias", f"{PROJECTION}.projector_base.weight"):
        state = released_state(unet, True)
        del state[key]
        with pytest.raises(AdapterError, match=rf"missing: {key}\.$"):
            convert_released(state, unet)


def test_another_models_file_is_refused(unet: UNet2DConditionModel) -> None:
    expected = len(released_state(unet, False)) - released_weights._LISTED
    with pytest.raises(AdapterError, match=rf"missing: .* and {expected} more\.$"):
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
        convert_released({**released_state(unet, False), key: torch.zeros(shape)}, unet)


State = dict[str, Any]
VALUE = f"{PROJECTION}.projector_base.bias"


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {f"{prefix}{name}": tensor for name, tensor in state.items()}


def within(*path: str, **beside: Any) -> Callable[[State], Any]:
    def wrap(state: State) -> Any:
        for key in reversed(path):
            state = {key: state, **beside}
        return state

    return wrap


def in_the_middle(state: State) -> State:
    return {name.replace("attn2.", "attn2._orig_mod.").replace("projector", "module.projector"): one
            for name, one in state.items()}  # fmt: skip


#: Forms in which people publish the same weights.
DIALECTS: dict[str, Callable[[State], Any]] = {
    "as released": lambda state: state,
    "DataParallel": prefixed("module."),
    "compiled": prefixed("_orig_mod."),
    "compiled in DataParallel": prefixed("module._orig_mod."),
    "DataParallel in compiled": prefixed("_orig_mod.module."),
    "wrapped three times": prefixed("module.module._orig_mod."),
    "FSDP": prefixed("_fsdp_wrapped_module."),
    "FSDP and checkpointing": prefixed("_fsdp_wrapped_module._checkpoint_wrapped_module."),
    "parts compiled": in_the_middle,
    "of a pipeline": prefixed("unet."),
    "of a training module": prefixed("model.unet."),
    "of DeepSpeed": lambda state: {"module": prefixed("module.unet.")(state), "global_steps": 25000},
    "state_dict": within("state_dict", epoch=3, arguments={"lr": 0.1}),
    "state_dict with a prefix": lambda state: {"state_dict": prefixed("model.")(state)},
    "model": within("model", optimizer={"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": []}),
    "twice nested": within("checkpoint", "unet"),
    "ordered": OrderedDict,
    "parameters": lambda state: {name: torch.nn.Parameter(tensor) for name, tensor in state.items()},
    "with plain values": lambda state: {**state, "step": 3, "note": "ema", "rates": [0.1], "nothing": None},
    "with stray tensors": lambda state: {**state, "scale_value.value": torch.ones(()), "queue": torch.zeros(3)},
    "with integers beside": lambda state: {**state, "position_ids": torch.arange(77)},
    "with stray NaN": lambda state: {**state, "running_loss": torch.tensor(float("nan"))},
    "not contiguous": lambda state: {name: tensor.T.contiguous().T for name, tensor in state.items()},
    "views of one tensor": lambda state: {
        name: flat.view_as(state[name])
        for name, flat in zip(
            state,
            torch.cat([one.flatten() for one in state.values()]).split([one.numel() for one in state.values()]),
            strict=True,
        )
    },
    "half in part": lambda state: {name: one.half().float() if "norm" in name else one for name, one in state.items()},
}


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=list(DIALECTS))
def test_the_same_weights_in_other_forms(
    unet: UNet2DConditionModel, dialect: Callable[[State], Any], tmp_path: Path
) -> None:
    state = released_state(unet, False)
    torch.save(dialect(dict(state)), tmp_path / "weights.pth")
    expected = convert_released(state, unet).state_dict()
    for content in (read_content(tmp_path / "weights.pth"), dialect(dict(state))):
        adapter = convert_released(content, unet)
        adapter.save_pretrained(tmp_path / "adapter")
        got = adapter.state_dict()
        assert got.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(got[name], tensor, rtol=1e-3, atol=1e-3)


REFUSED: dict[str, tuple[Callable[[State], Any], str]] = {
    "integers": (lambda state: {**state, VALUE: torch.zeros(32, dtype=torch.int8)}, rf"{VALUE} \(int8\)"),
    "booleans": (lambda state: {**state, VALUE: torch.zeros(32, dtype=torch.bool)}, rf"{VALUE} \(bool\)"),
    "complex": (lambda state: {**state, VALUE: torch.zeros(32, dtype=torch.complex64)}, r"\(complex64\)"),
    "quantized": (lambda state: {**state, VALUE: torch.quantize_per_tensor(state[VALUE], 1, 0, torch.qint8)}, "qint8"),
    "sparse": (lambda state: {**state, VALUE: state[VALUE].to_sparse()}, r"\(float32 sparse_coo\)"),
    "without memory": (lambda state: {**state, VALUE: state[VALUE].to("meta")}, r"\(float32 meta\)"),
    "NaN": (lambda state: {**state, VALUE: state[VALUE] * float("nan")}, rf"NaN or infinite: {VALUE}"),
    "infinite": (lambda state: {**state, VALUE: state[VALUE] / 0}, rf"NaN or infinite: {VALUE}"),
    "one NaN in half": (
        lambda state: {**state, VALUE: torch.cat([state[VALUE][1:], torch.tensor([float("nan")])]).half()},
        "NaN or infinite",
    ),
    "all integers": (lambda state: {name: one.long() for name, one in state.items()}, r"\(int64\) and \d+ more\.$"),
    "a plain value": (lambda state: {**state, VALUE: 3.0}, f"missing: {VALUE}"),
    "twice": (lambda state: {**state, f"module.{VALUE}": state[VALUE]}, f"has {VALUE} twice"),
    "with its average": (lambda state: {"model": state, "ema": state}, "more than once, in 'model', 'ema'; keep one"),
    "with its average in one": (
        lambda state: {**prefixed("model.")(state), **prefixed("model_ema.")(state)},
        "more than once, as 'model.', 'model_ema.'; keep one",
    ),
    "empty": (lambda state: {}, "is not a state dict"),
    "numbers as names": (lambda state: dict(enumerate(state.values())), "is not a state dict"),
    "a list": (lambda state: list(state.values()), "is not a state dict"),
    "one tensor": (lambda state: state[VALUE], "is not a state dict"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=list(REFUSED))
def test_what_is_no_weights_is_refused(
    unet: UNet2DConditionModel, change: Callable[[State], Any], message: str
) -> None:
    with pytest.raises(AdapterError, match=message):
        convert_released(change(released_state(unet, False)), unet)


PRECISIONS: dict[str, tuple[list[torch.dtype], torch.dtype]] = {
    "float32": ([torch.float32], torch.float32),
    "half": ([torch.float16], torch.float16),
    "bfloat16": ([torch.bfloat16], torch.bfloat16),
    "double": ([torch.float64], torch.float64),
    "half and float32": ([torch.float16, torch.float32], torch.float32),
    "half and bfloat16": ([torch.float16, torch.bfloat16], torch.float32),
    "all three": ([torch.float16, torch.bfloat16, torch.float32], torch.float32),
    "8 bits": ([torch.float8_e4m3fn], torch.float16),
    "8 bits and bfloat16": ([torch.float8_e5m2, torch.bfloat16], torch.float32),
}


@pytest.mark.parametrize(("given", "expected"), PRECISIONS.values(), ids=list(PRECISIONS))
def test_the_adapter_has_one_precision(
    unet: UNet2DConditionModel, given: list[torch.dtype], expected: torch.dtype, tmp_path: Path
) -> None:
    state = {
        name: tensor.to(given[number % len(given)])
        for number, (name, tensor) in enumerate(released_state(unet, False).items())
    }
    adapter = convert_released(state, unet)
    assert {tensor.dtype for tensor in adapter.state_dict().values()} == {expected}
    assert torch.equal(adapter.projector.deep_mlp.bias, state[VALUE].to(expected))
    adapter.save_pretrained(tmp_path)
    assert RealCustomPlusAdapter.from_pretrained(tmp_path).config["inference"] == "release"


def test_stray_keys_are_listed(unet: UNet2DConditionModel) -> None:
    for shallow in (False, True):
        state = {**unet.state_dict(), **released_state(unet, shallow), "b.c": torch.zeros(1), "a": 3}
        assert stray_names(state, convert_released(state, unet), unet) == ["a", "b.c"]


@pytest.mark.parametrize("suffix", ["pth", "bin", "safetensors"])
def test_files(unet: UNet2DConditionModel, suffix: str, tmp_path: Path) -> None:
    state, path = released_state(unet, False), tmp_path / f"weights.{suffix}"
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
    state, source, target = released_state(unet, True), tmp_path / "released.pth", tmp_path / "adapter"
    torch.save({"state_dict": {**state, "scale_value.value": torch.ones(())}}, source)
    released_weights.main([str(source), str(target)])
    summary, left_out = capsys.readouterr().out.splitlines()
    assert summary.startswith(f"{target}: ")
    assert summary.endswith("inference: release")
    assert left_out.endswith("them: scale_value.value")
    loaded, converted = RealCustomPlusAdapter.from_pretrained(target), convert_released(state, unet)
    assert torch.equal(loaded.projector(features()), converted.projector(features()))
    for other, message in (({}, "is not a state dict"), ({"x": torch.zeros(1)}, "released weights; missing: ")):
        torch.save(other, source)
        with pytest.raises(SystemExit, match=message):
            released_weights.main([str(source), str(target)])
    for place, message in ((tmp_path, "is a folder"), (tmp_path / "nowhere.pth", "nowhere")):
        with pytest.raises(SystemExit, match=message):
            released_weights.main([str(place), str(target)])
