"""Adapter training in the shapes of SD-1.5 and SDXL with random weights: images per second, memory, share of the peak.

    python -m tests.benchmarks.gpu_training --device cuda      # both shapes, with and without torch.compile
    python -m tests.benchmarks.gpu_training --plan             # FLOPs of the papers' training, on any machine

Hardware and time: a GPU (not run on one yet; a small shape has run on a CPU); `--plan` takes a minute on one core.

A step is that of `AdapterModule`: image encoders (SigLIP SO400M/14 and DINOv2 ViT-L/14 at 384 pixels, five views of
each reference), projector, UNet, loss, backward pass and AdamW, under bf16 autocast with the frozen weights in bf16.
Latents and text states are given, as if they were cached. FLOPs are counted by `torch.utils.flop_counter` on the meta
device: the matrix products and convolutions that are computed, so no weight gradients of frozen layers.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.utils import logging
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from model.adapters.image_encoder import ImageEncoders, VisionTower
from model.adapters.realcustom_plus_plus import RealCustomPlusAdapter
from model.adapters.released_weights import SDXL_UNET
from model.backbone import PromptEmbedding
from model.training.adapter_loss import AdapterModule, FrozenModels
from model.training.precision import halve_products
from tests.benchmarks.support.command_line import benchmark_parser
from tests.benchmarks.support.random_models import SD15_UNET, TEXT_TOKENS, random_backbone

#: Dense bf16 FLOP/s of the tensor cores, by a part of the device's name (NVIDIA's data sheets).
PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}
PAPER_STEPS, PAPER_GPUS = 160_000, 8
_HALF = (0.5, 0.5, 0.5)
_POOLED, _TIME_IDS = 1280, 6  # SDXL's added conditions


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a base model and its training.

    Attributes:
        unet: Arguments of diffusers' UNet.
        latent: Side of the latents.
        batch: Examples per step and GPU.
        paper_encoders: Whether the image encoders have the paper's size.
    """

    unet: dict[str, Any]
    latent: int
    batch: int
    paper_encoders: bool = True

    @property
    def width(self) -> int:
        """Width of the text states, c_t in the paper."""
        return int(self.unet["cross_attention_dim"])


SHAPES = {
    "sd15": Shape(unet=SD15_UNET, latent=64, batch=16),
    "sdxl": Shape(unet=SDXL_UNET, latent=128, batch=4),
    "tiny": Shape(
        unet={
            "cross_attention_dim": 32,
            "attention_head_dim": 2,
            "block_out_channels": (32, 64),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        },
        latent=8,
        batch=2,
        paper_encoders=False,
    ),
}


def paper_encoders() -> ImageEncoders:
    """Build SigLIP SO400M/14 and DINOv2 ViT-L/14 with registers, with random weights."""
    siglip = SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
        vision_use_head=False,
    )
    dino = Dinov2WithRegistersConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, image_size=378, patch_size=14
    )
    towers = [
        VisionTower(SiglipVisionModel(siglip), _HALF, _HALF, [7, 13, 19]),
        VisionTower(Dinov2WithRegistersModel(dino), _HALF, _HALF, [4, 10, 16]),
    ]
    return ImageEncoders(towers, reference_size=384, tiles=2)


def tiny_encoders() -> ImageEncoders:
    """Build one small CLIP."""
    clip = CLIPVisionConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
    )
    return ImageEncoders([VisionTower(CLIPVisionModel(clip), _HALF, _HALF, [0])], reference_size=32, tiles=2)


def build(shape: Shape, device: torch.device) -> AdapterModule:
    """Build the module to train, with frozen models of random weights."""
    with device:
        backbone = random_backbone(UNet2DConditionModel(**shape.unet), device, torch.float32)
        encoders = paper_encoders() if shape.paper_encoders else tiny_encoders()
        adapter = RealCustomPlusAdapter.from_unet(backbone.unet, encoders.width)
    if device.type == "cuda":
        halve_products(backbone.unet)
        halve_products(encoders)
    return AdapterModule(adapter, FrozenModels(backbone, encoders))


def make_batch(shape: Shape, device: torch.device) -> dict[str, Tensor]:
    """Draw a random batch with the names and shapes of `AdapterTask.batch`."""
    count, side = shape.batch, (768 if shape.paper_encoders else 64)
    latents = torch.randn(2, count, 4, shape.latent, shape.latent, device=device)
    batch = {
        "latents": latents[0],
        "noise": latents[1],
        "timesteps": torch.randint(1000, (count,), device=device),
        "hidden": torch.randn(count, TEXT_TOKENS, shape.width, device=device),
        "reference": torch.rand(count, 3, side, side, device=device),
        "keep_image": torch.ones(count, dtype=torch.bool, device=device),
        "multiview": torch.zeros(count, dtype=torch.bool, device=device),
        "crop_ratio": torch.ones(count, device=device),
        "measure_gain": torch.tensor([False]),
        "gamma_num": torch.tensor([1.0]),
    }
    if shape.unet.get("addition_embed_type") == "text_time":
        batch["text_embeds"] = torch.randn(count, _POOLED, device=device)
        batch["time_ids"] = torch.full((count, _TIME_IDS), 8.0 * shape.latent, device=device)
    return batch


@dataclass(frozen=True, kw_only=True)
class Flops:
    """FLOPs of one example's forward and backward pass."""

    encoders: int
    rest: int

    @property
    def total(self) -> int:
        """Encoders and the rest."""
        return self.encoders + self.rest


@functools.cache
def count_flops(name: str) -> Flops:
    """Count FLOPs of one example of `AdapterModule.forward`, without its curves; nothing is computed or allocated."""
    one, meta = dataclasses.replace(SHAPES[name], batch=1), torch.device("meta")
    module, batch = build(one, meta), make_batch(one, meta)
    backbone = module.frozen.backbone
    with FlopCounterMode(display=False) as encoding:
        features = module.frozen.encoders.features(batch["reference"])
    with FlopCounterMode(display=False) as training:
        added: dict[str, Tensor] = {name: batch[name] for name in ("text_embeds", "time_ids") if name in batch}
        prompt = PromptEmbedding(batch["hidden"], added)
        condition = module.adapter(features)
        predicted = backbone.predict(batch["latents"], batch["timesteps"], prompt, visual=condition)
        (predicted - batch["noise"]).square().mean().backward()
    return Flops(encoders=encoding.get_total_flops(), rest=training.get_total_flops())


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Speed and memory of a training.

    Attributes:
        images: Images per second.
        peak_bytes: Peak device memory; None on CPUs.
    """

    images: float
    peak_bytes: int | None


def measure(shape: Shape, device: torch.device, steps: int, *, compiled: bool) -> Speed:
    """Train for `steps` steps, after three steps of warm-up."""
    torch.manual_seed(0)
    module, batch = build(shape, device), make_batch(shape, device)
    if compiled:
        module.frozen.backbone.unet.compile()
    optimizer = torch.optim.AdamW(module.parameters(), 1e-4, fused=True)
    for _ in range(3):
        _step(module, optimizer, batch, device)
    _synchronize(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    for _ in range(steps):
        _step(module, optimizer, batch, device)
    _synchronize(device)
    seconds = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return Speed(images=steps * shape.batch / seconds, peak_bytes=peak)


def _step(
    module: AdapterModule, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor], device: torch.device
) -> None:
    optimizer.zero_grad()
    with torch.autocast(device.type, torch.bfloat16):
        loss = module(batch)["loss"]
    loss.backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_flops(device: torch.device) -> float | None:
    """The device's dense bf16 FLOP/s; None if unknown."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def days(flops: float, images_a_step: int, utilization: float) -> float:
    """Days of the papers' 160,000 steps on 8 A100 at this utilization of their peak."""
    return PAPER_STEPS * images_a_step * flops / (PAPER_GPUS * PEAKS["A100"] * utilization) / 86_400


def measured_rows(names: Sequence[str], device: torch.device, steps: int) -> Iterator[str]:
    """Measure, and yield the rows of the table."""
    peak = peak_flops(device)
    yield "| shape | batch | torch.compile | images/s | peak memory, GiB | share of the bf16 peak |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name in names:
        shape, flops = SHAPES[name], count_flops(name).total
        for compiled in (False, True) if device.type == "cuda" else (False,):
            speed = measure(shape, device, steps, compiled=compiled)
            memory = "unknown" if speed.peak_bytes is None else f"{speed.peak_bytes / 2**30:.1f}"
            share = "unknown" if peak is None else f"{speed.images * flops / peak:.0%}"
            switch = "on" if compiled else "off"
            yield f"| {name} | {shape.batch} | {switch} | {speed.images:.2f} | {memory} | {share} |"


def planned_rows(names: Sequence[str], utilization: float) -> Iterator[str]:
    """Count, and yield the rows of the table that is computed and not measured."""
    yield (
        f"| shape | TFLOP per image | of it image encoders | images per step on {PAPER_GPUS} GPUs | "
        f"days on {PAPER_GPUS} A100 at {utilization:.0%} of their peak |"
    )
    yield "| --- | --- | --- | --- | --- |"
    for name in names:
        flops, images = count_flops(name), PAPER_GPUS * SHAPES[name].batch
        yield (
            f"| {name} | {flops.total / 1e12:.2f} | {flops.encoders / 1e12:.2f} | {images} | "
            f"{days(flops.total, images, utilization):.1f} |"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure or count, and print."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["sd15", "sdxl"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--plan", action="store_true", help="count FLOPs only")
    parser.add_argument("--utilization", type=float, default=0.4, help="of the A100's peak, for the plan")
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()
    if not options.plan:
        print("\n".join(measured_rows(options.shapes, torch.device(options.device), options.steps)), end="\n\n")
    print(f"Computed, not measured: {PAPER_STEPS:,} steps.\n")
    print("\n".join(planned_rows(options.shapes, options.utilization)))


if __name__ == "__main__":
    main()
