"""Seconds a picture: text-to-image, the exact and the fast mask, and diffusers' IP-Adapter, with random weights.

    python -m tests.benchmarks.gpu_inference --device cuda
    python -m tests.benchmarks.gpu_inference --narrow             # few channels and small pictures, to try it on a CPU

Hardware and time: a GPU (not run on one yet); 10 GB of disk.

Whole calls, from the prompt to the pictures, in bf16 with the profiles' steps, after a call of two steps to warm up.
The IP-Adapter is diffusers' own pipeline with four image tokens, which come from CLIP ViT-H as in the published one.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from model.adapters.realcustom_plus_plus import RealCustomPlusAdapter
from model.backbone import load_backbone
from model.pipeline import RealCustomPipeline
from tests.benchmarks.gpu_training import paper_encoders, tiny_encoders
from tests.benchmarks.guidance_cost import modes_of
from tests.benchmarks.support.command_line import benchmark_parser
from tests.benchmarks.support.model_folders import write_sd15, write_sdxl

_PROMPT = "a photo of a mug in the snow"
_IMAGE_TOKENS = 4
_VIT_H: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "projection_dim": 1024,
    "hidden_act": "gelu",
}
_NARROW_VIT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
_SMALL_SIDE = 128


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A base model, and how its profile paints with it."""

    write: Callable[..., None]
    diffusers: Any
    side: int
    steps: int
    guidance_scale: float
    cross_downscales: Sequence[int]


SHAPES = {
    "sd15": Shape(
        write=write_sd15,
        diffusers=StableDiffusionPipeline,
        side=512,
        steps=50,
        guidance_scale=12.5,
        cross_downscales=[4],
    ),
    "sdxl": Shape(
        write=write_sdxl,
        diffusers=StableDiffusionXLPipeline,
        side=1024,
        steps=25,
        guidance_scale=7.5,
        cross_downscales=[2],
    ),
}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is measured: pictures at once, their side and the steps."""

    batch: int
    side: int
    steps: int


Paint = Callable[[Request], object]


def realcustom(shape: Shape, folder: Path, device: torch.device, *, narrow: bool) -> dict[str, Paint]:
    """Ways to paint with this project's pipeline, by name."""
    backbone = load_backbone(folder, torch.bfloat16, device)
    encoders = (tiny_encoders() if narrow else paper_encoders()).to(device, torch.bfloat16)
    adapter = RealCustomPlusAdapter.from_unet(backbone.unet, encoders.width).to(device, torch.bfloat16)
    pipeline = RealCustomPipeline(backbone, adapter, encoders)

    def painter(name: str) -> Paint:
        def paint(request: Request) -> object:
            (mode,) = (one for one in modes_of(request.steps, 3, shape.cross_downscales) if one.name == name)
            size: dict[str, Any] = {"height": request.side, "width": request.side}
            return pipeline([_PROMPT] * request.batch, **mode.subject, **size, settings=mode.settings)

        return paint

    return {
        "text-to-image": painter("text-to-image"),
        "exact mask": painter("in full"),
        "fast mask": painter("fast"),
    }


def ip_adapter(shape: Shape, folder: Path, device: torch.device, *, narrow: bool) -> Paint:
    """Painting with diffusers' IP-Adapter."""
    parts = {"safety_checker": None} if shape.diffusers is StableDiffusionPipeline else {}
    with device:
        encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**_VIT_H | (_NARROW_VIT if narrow else {})))
    pipeline = shape.diffusers.from_pretrained(
        folder,
        image_encoder=encoder.eval().to(torch.bfloat16),
        feature_extractor=CLIPImageProcessorPil(),
        torch_dtype=torch.bfloat16,
        **parts,
    )
    pipeline.load_ip_adapter(
        _ip_adapter_weights(pipeline.unet), subfolder="", weight_name="", image_encoder_folder=None
    )
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    reference = Image.effect_mandelbrot((224, 224), (-2, -1, 1, 1), 50).convert("RGB")

    def paint(request: Request) -> object:
        return pipeline(
            [_PROMPT] * request.batch,
            ip_adapter_image=reference,
            num_inference_steps=request.steps,
            guidance_scale=shape.guidance_scale,
            height=request.side,
            width=request.side,
        )

    return paint


def _ip_adapter_weights(unet: Any) -> dict[str, dict[str, Tensor]]:
    """Random weights by the published names: the projection, and keys and values of each cross-attention."""
    width, image_width = unet.config.cross_attention_dim, _VIT_H["projection_dim"]
    projection = nn.ModuleDict({"proj": nn.Linear(image_width, _IMAGE_TOKENS * width), "norm": nn.LayerNorm(width)})
    crosses = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    layers: dict[str, Tensor] = {}
    for number, name in enumerate(crosses):
        rows = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for part in ("to_k_ip", "to_v_ip"):
            layers[f"{2 * number + 1}.{part}.weight"] = torch.randn(rows, width) / width**0.5
    return {"image_proj": dict(projection.state_dict()), "ip_adapter": layers}


def seconds_of(paint: Paint, request: Request, device: torch.device) -> float:
    """Seconds a picture, after a short call."""
    paint(Request(batch=request.batch, side=request.side, steps=2))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    paint(request)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - began) / request.batch


def measured_rows(
    names: Sequence[str], device: torch.device, batches: Sequence[int], *, narrow: bool = False
) -> Iterator[str]:
    """Measure, and yield the rows of the table."""
    yield f"| shape | way | {' | '.join(f's/picture, batch {batch}' for batch in batches)} |"
    yield f"| --- | --- | {' | '.join('---' for _ in batches)} |"
    for name in names:
        shape = SHAPES[name]
        side, steps = (_SMALL_SIDE, 3) if narrow else (shape.side, shape.steps)
        with tempfile.TemporaryDirectory() as folder:
            shape.write(Path(folder), narrow=narrow)
            for way, build in _builders(shape, Path(folder), device, narrow=narrow):
                paint = build()
                requests = [Request(batch=batch, side=side, steps=steps) for batch in batches]
                cells = [f"{seconds_of(paint, request, device):.2f}" for request in requests]
                yield f"| {name} | {way} | {' | '.join(cells)} |"


def _builders(
    shape: Shape, folder: Path, device: torch.device, *, narrow: bool
) -> Iterator[tuple[str, Callable[[], Paint]]]:
    """One pipeline is in memory at a time."""
    ways = realcustom(shape, folder, device, narrow=narrow)
    for way in list(ways):
        yield way, partial(ways.__getitem__, way)
    ways.clear()
    yield "diffusers' IP-Adapter", lambda: ip_adapter(shape, folder, device, narrow=narrow)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--narrow", action="store_true")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    for row in measured_rows(options.shapes, device, options.batches, narrow=options.narrow):
        print(row, flush=True)


if __name__ == "__main__":
    main()
