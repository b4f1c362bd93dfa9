from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.adapters.image_encoder import ImageEncoders
from model.adapters.realcustom_plus_plus import RealCustomPlusAdapter
from model.backbone import load_backbone
from model.guidance.settings import InferenceSettings
from model.pipeline import RealCustomPipeline
from tests.benchmarks.guidance_cost import Mode, measure, modes_of, naive_bytes, report, sdxl_layers
from tests.benchmarks.support.memory import peak_extra_bytes
from tests.support.tiny_models import ENCODERS, RESOLUTION, write_sd


def test_sdxl_has_these_layers() -> None:
    """By hand, from SDXL's configuration: 64 x 64 self-attention, 32 x 32 cross-attention."""
    layers, shapes = sdxl_layers()
    own = [shape for shape in shapes if shape.layer.endswith("attn1")]
    crosses = [shape for shape in shapes if shape.layer.endswith("attn2")]
    assert len(own) == len(layers.self_attention) == 2 * 2 + 3 * 2
    assert len(crosses) == len(layers.cross_attention) == 2 * 10 + 10 + 3 * 10
    assert {(shape.heads, shape.positions, shape.keys, shape.width) for shape in own} == {(10, 4096, 4096, 64)}
    assert {(shape.heads, shape.positions, shape.keys, shape.width) for shape in crosses} == {(20, 1024, 77, 64)}
    assert shapes[0].layer == "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
    assert shapes[-1].layer == "up_blocks.1.attentions.2.transformer_blocks.1.attn1"
    assert naive_bytes(shapes, 2, 4) == 2 * 4 * (10 * 10 * 4096 * 4096 + 60 * 20 * 1024 * 77)


def test_peak_extra_bytes() -> None:
    peak = peak_extra_bytes(lambda: torch.ones(64, 2**20).sum(), torch.device("cpu"))
    if peak is None:
        pytest.skip("this system does not report the peak memory of a process")
    assert 250 * 2**20 < peak < 350 * 2**20


def test_modes(tmp_path: Path) -> None:
    sd_folder = write_sd(tmp_path)
    encoders = ImageEncoders.from_pretrained(backbone_folder=sd_folder, **ENCODERS)
    backbone = load_backbone(sd_folder)
    pipeline = RealCustomPipeline(backbone, RealCustomPlusAdapter.from_unet(backbone.unet, 16), encoders)
    modes = modes_of(8, 2, [4])
    rows: list[int] = []
    hook = backbone.unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    measure(pipeline, modes, 8, 2, 1, RESOLUTION)
    hook.remove()
    warm_up = [2, 1, 2, 1, 2, 1, 2]
    plain, whole, stopped = [2] * 8, [1, 2] * 8, [1, 2] * 4 + [2] * 4
    fast = [1, 2, 2, 1, 2, 2, 2, 2, 2, 2]  # steps 0 and 2
    assert rows == warm_up + plain + whole + stopped + fast + fast + stopped + whole + plain
    assert all(len(mode.processor) == len(mode.wall) == 2 for mode in modes)
    assert all(min(mode.processor + mode.wall) > 0 for mode in modes)


def test_ratios_are_medians_over_repetitions() -> None:
    settings = InferenceSettings()
    modes = [
        Mode("plain", {}, settings, processor=[1.0, 2.0, 4.0], wall=[2.0, 2.0, 8.0]),
        Mode("slow", {}, settings, processor=[1.5, 4.0, 6.0], wall=[4.0, 3.5, 6.0], peak=3 * 2**20),
    ]
    plain, slow = (line.split() for line in report(modes).splitlines()[1:])
    assert plain == ["plain", "2.0000", "1.000", "2.0000", "1.000", "unknown"]
    assert slow == ["slow", "4.0000", "1.500", "4.0000", "1.750", "3", "MiB"]
