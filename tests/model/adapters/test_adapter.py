from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.adapters.adapter import AdapterError, cross_attention_widths, layer_downscale
from model.adapters.image_encoder import ReferenceFeatures
from model.adapters.realcustom import RealCustomAdapter
from model.adapters.realcustom_plus_plus import RealCustomPlusAdapter
from model.adapters.usage import AdapterUsage
from model.adapters.visual_attention import VisualAttentionProcessor
from model.backbone import Backbone
from model.errors import ModelError
from model.guidance.settings import InferenceSettings
from tests.support.attention_records import KeepAll
from tests.support.tiny_models import ENCODERS, IMAGE_WIDTH


def features(batch: int = 2) -> ReferenceFeatures:
    generator = torch.Generator().manual_seed(0)
    return ReferenceFeatures(*(torch.randn(batch, n, IMAGE_WIDTH, generator=generator) for n in (16, 32, 64)))


def adapter_for(unet: UNet2DConditionModel, trained: bool = True) -> RealCustomPlusAdapter:
    torch.manual_seed(0)
    adapter = RealCustomPlusAdapter.from_unet(unet, IMAGE_WIDTH)
    if trained:
        for linear in adapter.to_v_vision.values():
            torch.nn.init.normal_(linear.weight)
    return adapter


def predict(backbone: Backbone, **attention: object) -> Tensor:
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return backbone.predict(latents, torch.tensor(500), backbone.encode_prompt(["a cat", "a hat"]), **attention)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_detach_restores_the_unet(name: str, request: pytest.FixtureRequest) -> None:
    backbone: Backbone = request.getfixturevalue(name)
    before, keys, former = predict(backbone), set(backbone.unet.state_dict()), backbone.unet.attn_processors
    adapter = adapter_for(backbone.unet)
    adapter.attach(backbone.unet)
    assert torch.equal(predict(backbone), before)
    with torch.no_grad():
        assert not torch.allclose(predict(backbone, visual=adapter(features())), before)
    assert torch.equal(predict(backbone), before)
    assert set(backbone.unet.state_dict()) == keys
    adapter.attach(backbone.unet)  # a second time changes nothing
    adapter.detach(backbone.unet)
    assert torch.equal(predict(backbone), before)
    assert all(backbone.unet.attn_processors[layer] is processor for layer, processor in former.items())
    adapter.detach(backbone.unet)


def test_detach_restores_any_processor(sd: Backbone) -> None:
    sd.unet.set_attn_processor(AttnProcessor())
    before, adapter = predict(sd), adapter_for(sd.unet)
    adapter.attach(sd.unet)
    assert torch.equal(predict(sd), before)
    adapter.detach(sd.unet)
    assert {type(processor) for processor in sd.unet.attn_processors.values()} == {AttnProcessor}


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_untrained_adapter_changes_nothing(name: str, request: pytest.FixtureRequest) -> None:
    backbone: Backbone = request.getfixturevalue(name)
    adapter = adapter_for(backbone.unet, trained=False)
    before = predict(backbone)
    adapter.attach(backbone.unet)
    with torch.no_grad():
        torch.testing.assert_close(predict(backbone, visual=adapter(features())), before, rtol=0, atol=1e-6)


def test_keys_and_values(sd: Backbone) -> None:
    adapter, tokens = adapter_for(sd.unet), torch.randn(2, 32, 16)
    pairs = adapter.keys_values(tokens)
    assert set(pairs) == {name for name, _ in sd.unet.named_modules() if name.endswith("attn2")}
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2"
    weight = adapter.to_k_vision[layer.replace(".", "_")].weight
    torch.testing.assert_close(pairs[layer][0], torch.einsum("bnc,oc->bno", tokens, weight))
    assert pairs[layer][1].shape == (2, 32, 16)


def test_gradients_reach_the_adapter_only(sd: Backbone) -> None:
    adapter = adapter_for(sd.unet)
    adapter.attach(sd.unet)
    prompt = sd.encode_prompt(["a cat", "a hat"])
    out = sd.predict(torch.randn(2, 4, 16, 16), torch.tensor([10, 900]), prompt, visual=adapter(features()))
    out.square().mean().backward()
    assert all(parameter.grad is not None for parameter in adapter.parameters())
    assert all(parameter.grad is None for parameter in sd.unet.parameters())


def test_save_and_load(sd: Backbone, tmp_path: Path) -> None:
    adapter = adapter_for(sd.unet)
    adapter.save_pretrained(tmp_path)
    files = ["README.md", "config.json", "diffusion_pytorch_model.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    loaded = RealCustomPlusAdapter.from_pretrained(tmp_path)
    adapter.attach(sd.unet)
    with torch.no_grad():
        first = predict(sd, visual=adapter(features()))
        adapter.detach(sd.unet)
        loaded.attach(sd.unet)
        assert torch.equal(predict(sd, visual=loaded(features())), first)


def test_an_adapter_saved_before_the_ablations_is_ccp(sd: Backbone, tmp_path: Path) -> None:
    adapter = adapter_for(sd.unet)
    adapter.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["cross_layer"], config["cross_scale"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = RealCustomPlusAdapter.from_pretrained(tmp_path)
    assert (loaded.config["cross_layer"], loaded.config["cross_scale"]) == ("concat", "add")
    assert torch.equal(loaded.projector(features()), adapter.projector(features()))


def test_ablations_are_saved_and_loaded(sd: Backbone, tmp_path: Path) -> None:
    naive = RealCustomPlusAdapter.from_unet(sd.unet, IMAGE_WIDTH, cross_layer=None, cross_scale=None)
    naive.save_pretrained(tmp_path)
    loaded = RealCustomPlusAdapter.from_pretrained(tmp_path)
    assert {name.split(".")[0] for name in loaded.projector.state_dict()} == {"deep_mlp"}
    assert loaded(features()).keys_values.keys() == cross_attention_widths(sd.unet).keys()


def test_subfolder(sd: Backbone, tmp_path: Path) -> None:
    adapter_for(sd.unet).save_pretrained(tmp_path / "adapter")
    loaded = RealCustomPlusAdapter.from_pretrained(tmp_path, subfolder="adapter")
    assert loaded.state_dict().keys() == adapter_for(sd.unet).state_dict().keys()


def test_hub_id(sd: Backbone, tmp_path: Path) -> None:
    adapter, repository, commit = adapter_for(sd.unet), tmp_path / "models--somebody--adapter", "0123456789" * 4
    adapter.save_pretrained(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    options = {"cache_dir": tmp_path, "local_files_only": True}
    loaded = RealCustomPlusAdapter.from_pretrained("somebody/adapter", torch_dtype=torch.bfloat16, **options)
    assert loaded.dtype == torch.bfloat16
    expected = adapter.bfloat16().state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    with pytest.raises(OSError, match="somebody/other"):
        RealCustomPlusAdapter.from_pretrained("somebody/other", **options)


def test_model_card(sd: Backbone, sd_folder: Path, tmp_path: Path) -> None:
    adapter = RealCustomPlusAdapter.from_unet(sd.unet, IMAGE_WIDTH, cross_scale=None)
    inference = InferenceSettings(mask_cross_downscales=[4])
    adapter.usage = AdapterUsage(image_encoders=ENCODERS, inference=inference, base_model="org/base")
    adapter.save_pretrained(tmp_path, licence="openrail++")
    _, header, text = (tmp_path / "README.md").read_text().split("---\n")
    metadata = yaml.safe_load(header)
    assert metadata["library_name"] == "diffusers"
    assert (metadata["base_model"], metadata["base_model_relation"]) == ("org/base", "adapter")
    assert (metadata["license"], metadata["pipeline_tag"]) == ("openrail++", "text-to-image")
    assert "subject-driven-generation" in metadata["tags"]
    assert text.startswith("# RealCustom++ adapter\n")
    count = sum(parameter.numel() for parameter in adapter.parameters())
    layers = len(cross_attention_widths(sd.unet))
    for row in (f"cross-attention layers | {layers}", "cross_scale | None", f"parameters | {count:,}", "tiles | 2"):
        assert f"| {row} |" in text
    # Its example works.
    names: dict[str, object] = {"reference": Image.new("RGB", (32, 32), "red")}
    example = "\n".join(line.strip() for line in text.splitlines() if line.startswith("    "))
    exec(example.replace("this folder", str(tmp_path)).replace("org/base", str(sd_folder)), names)
    assert isinstance(names["picture"], Image.Image)


def test_the_card_of_an_adapter_without_usage(sd: Backbone, tmp_path: Path) -> None:
    adapter_for(sd.unet).save_pretrained(tmp_path)
    metadata = yaml.safe_load((tmp_path / "README.md").read_text().split("---\n")[1])
    assert metadata["license"] == "unknown"
    assert "base_model" not in metadata


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "usage.json: its text: Invalid JSON"),
        ("[]", "usage.json: its text: Input should be"),
        ('{"image_encoders": {}, "inference": {"steps": 0}, "base_model": null}', "inference.steps"),
        ('{"image_encoders": {}, "inference": {"stepz": 1}, "base_model": null}', "inference.stepz"),
        ('{"inference": {}, "base_model": null}', "image_encoders: Field required"),
    ],
)
def test_a_damaged_usage_is_named(text: str, sentence: str, sd: Backbone, tmp_path: Path) -> None:
    adapter_for(sd.unet).save_pretrained(tmp_path)
    (tmp_path / "usage.json").write_text(text)
    with pytest.raises(ModelError, match=re.escape(sentence)) as caught:
        RealCustomPlusAdapter.from_pretrained(tmp_path)
    assert "save the adapter again" in str(caught.value)


def test_incomplete_weights_are_refused(sd: Backbone, tmp_path: Path) -> None:
    adapter_for(sd.unet).save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    stray = {**weights, "stray": torch.zeros(1)}
    del stray["projector.deep_mlp.bias"]
    save_file(stray, file, metadata={"format": "pt"})
    with pytest.raises(AdapterError, match=r"missing: \['projector\.deep_mlp\.bias'\], unexpected: \['stray'\]"):
        RealCustomPlusAdapter.from_pretrained(tmp_path)
    save_file({**weights, "projector.deep_mlp.bias": torch.zeros(3)}, file, metadata={"format": "pt"})
    with pytest.raises(AdapterError, match=r"do not fit its config\.json: .*projector\.deep_mlp\.bias"):
        RealCustomPlusAdapter.from_pretrained(tmp_path)


def test_another_class_is_refused(sd: Backbone, tmp_path: Path) -> None:
    RealCustomAdapter.from_unet(sd.unet, IMAGE_WIDTH).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=r"holds a RealCustomAdapter, not a RealCustomPlusAdapter\.$"):
        RealCustomPlusAdapter.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(OSError, match=r"config\.json"):
        RealCustomPlusAdapter.from_pretrained(tmp_path)


def test_no_pickle_is_read(sd: Backbone, tmp_path: Path) -> None:
    adapter = adapter_for(sd.unet)
    adapter.save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(adapter.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        RealCustomPlusAdapter.from_pretrained(tmp_path)


def test_attaching_again_replaces_other_processors(sd: Backbone) -> None:
    former, adapter = sd.unet.attn_processors, adapter_for(sd.unet)
    adapter.attach(sd.unet)
    layer = sd.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    layer.set_processor(AttnProcessor2_0())
    adapter.attach(sd.unet)
    assert all(isinstance(processor.original, AttnProcessor2_0) for processor in sd.unet.attn_processors.values())
    adapter.detach(sd.unet)
    assert {type(processor) for processor in sd.unet.attn_processors.values()} == {type(next(iter(former.values())))}


def test_another_base_is_refused(sd: Backbone, sdxl: Backbone) -> None:
    adapter, former = adapter_for(sd.unet), sdxl.unet.attn_processors
    with pytest.raises(AdapterError, match="does not fit this base model: cross-attention down_blocks"):
        adapter.attach(sdxl.unet)
    assert sdxl.unet.attn_processors == former
    layers = cross_attention_widths(sd.unet)
    with pytest.raises(AdapterError, match=r"width 24\b.*\b16\b"):
        RealCustomPlusAdapter(layers, IMAGE_WIDTH, 24).attach(sd.unet)
    narrow = RealCustomPlusAdapter(layers | {next(iter(layers)): 4}, IMAGE_WIDTH, 16)
    with pytest.raises(AdapterError, match="width 8 in the base and 4 in the adapter"):
        narrow.attach(sd.unet)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_downscales_are_those_of_the_layers_grids(name: str, request: pytest.FixtureRequest) -> None:
    backbone: Backbone = request.getfixturevalue(name)
    adapter_for(backbone.unet).attach(backbone.unet)
    everything = KeepAll()
    predict(backbone, recorder=everything)
    processors = backbone.unet.attn_processors.values()
    assert len(everything.records) == len(processors)
    for processor in processors:
        assert isinstance(processor, VisualAttentionProcessor)
        assert everything.records[processor.layer][0].shape[2] == (16 // processor.downscale) ** 2
        assert isinstance(processor.original, AttnProcessor2_0)


def test_downscale_by_name() -> None:
    assert [layer_downscale(f"down_blocks.{i}.attentions.0", 4) for i in range(3)] == [1, 2, 4]
    assert [layer_downscale(f"up_blocks.{i}.attentions.0", 4) for i in (1, 2, 3)] == [4, 2, 1]
    assert layer_downscale("mid_block.attentions.0", 4) == 8
    with pytest.raises(AdapterError, match="outside the blocks"):
        layer_downscale("elsewhere.attn1", 4)
