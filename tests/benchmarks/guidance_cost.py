"""Time and memory of mask guidance, compared with plain text-to-image (RealCustom++ Table XIII).

    python -m tests.benchmarks.guidance_cost                      # micro backbone
    python -m tests.benchmarks.guidance_cost --backbone sd15      # SD-1.5's UNet with random weights
    python -m tests.benchmarks.guidance_cost --memory             # mask extraction at SDXL's shape

Hardware and time: one core, or a GPU; about a minute for micro, minutes and 5 GB of memory for sd15.

All modes run with the same model, steps, size and seed, in an order that alternates between repetitions. The seconds
of a step run from the UNet's first call to the end of the last step; encoding prompts and references and decoding
pictures are not included. The benchmark reports the process's CPU seconds, which hold on a busy machine too (on a
CPU, torch gets one thread, so that they equal the time on an idle machine), and wall-clock seconds, which count on a
GPU. A ratio is the median over the repetitions of a mode's time divided by that of plain text-to-image in the same
repetition.

Ratios of CPU seconds on one core of a Xeon, for the modes without early stop, in full, and fast:

    micro, batch 8 (--repetitions 5)                                                1.427  1.185  1.101
    SD-1.5's UNet, 256 x 256, batch 1 (--backbone sd15 --steps 25 --repetitions 2)  1.569  1.228  1.115

By FLOPs the first row is 1.53, 1.26 and 1.09: a guidance pass is 0.52 of a step. RealCustom++ reports 1.70 without
early stop and 1.44 in full.

For a single micro picture, half of a pass does not depend on the number of rows: a pass of one row takes 0.65 of the
time of a pass of two. `--memory` gave 1.8 % of the bytes of the naive maps in fp32, and 1.3 % in bf16.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from model.adapters.image_encoder import ImageEncoders
from model.adapters.realcustom_plus_plus import RealCustomPlusAdapter
from model.adapters.released_weights import sdxl_unet
from model.adapters.visual_attention import VisualAttentionProcessor
from model.backbone import load_backbone
from model.guidance.guidance_branch import GuidanceLayers, GuidanceRecorder, PassEnded
from model.guidance.masks import grid_at
from model.guidance.settings import InferenceSettings
from model.micro_sd.weights import WEIGHTS_FOLDER
from model.pipeline import RealCustomPipeline
from tests.benchmarks.support.command_line import benchmark_parser
from tests.benchmarks.support.memory import peak_extra_bytes
from tests.benchmarks.support.random_models import TEXT_TOKENS, random_encoders, random_sd15

_PROMPT, _WORD = "a photo of a mug in the snow", "mug"
_SDXL_LATENT = 128
_MICRO_ENCODER: dict[str, Any] = {"shallow_layers": [[0, 1, 2]], "reference_size": 64, "tiles": 2}


@dataclass
class Mode:
    """A way to generate, and the costs of its runs."""

    name: str
    subject: dict[str, Any]  # arguments of the pipeline
    settings: InferenceSettings
    processor: list[float] = field(default_factory=list)  # CPU seconds per step, of each repetition
    wall: list[float] = field(default_factory=list)  # wall-clock seconds per step, of each repetition
    peak: int | None = None  # bytes beyond the loaded model


def modes_of(steps: int, mask_every: int, cross_downscales: Sequence[int]) -> list[Mode]:
    """All modes, plain text-to-image first; T_stop is half the steps, as in the paper."""
    subject = {"subjects": Image.effect_mandelbrot((64, 64), (-2, -1, 1, 1), 50).convert("RGB"), "words": _WORD}
    stop = max(1, steps // 2)
    settings = InferenceSettings(steps=steps, mask_steps=stop, mask_cross_downscales=list(cross_downscales))
    return [
        Mode("text-to-image", {}, settings),
        Mode("without early stop", subject, replace(settings, mask_steps=steps)),
        Mode("in full", subject, settings),
        Mode("fast", subject, replace(settings, mask_every=mask_every)),
    ]


def micro_pipeline(device: torch.device, dtype: torch.dtype) -> RealCustomPipeline:
    """Load the shipped micro backbone, with a random adapter."""
    backbone = load_backbone(WEIGHTS_FOLDER, dtype, device)
    encoders = ImageEncoders.from_pretrained(["clip"], WEIGHTS_FOLDER, **_MICRO_ENCODER, dtype=dtype, device=device)
    adapter = RealCustomPlusAdapter.from_unet(backbone.unet, encoders.width)
    return RealCustomPipeline(backbone, adapter.to(device, dtype), encoders)


def sd15_pipeline(device: torch.device, dtype: torch.dtype) -> RealCustomPipeline:
    """Build a pipeline in the shapes of Stable Diffusion 1.5, with random weights."""
    backbone, encoders = random_sd15(device, dtype), random_encoders(device, dtype)
    adapter = RealCustomPlusAdapter.from_unet(backbone.unet, encoders.width)
    return RealCustomPipeline(backbone, adapter.to(device, dtype), encoders)


@dataclass(frozen=True)
class Setting:
    """Defaults of a backbone."""

    build: Callable[[torch.device, torch.dtype], RealCustomPipeline]
    cross_downscales: Sequence[int]  # low-resolution cross-attention, see `model.guidance.guidance_branch`
    steps: int
    batch: int
    side: int  # of the pictures, pixels


SETTINGS = {
    "micro": Setting(micro_pipeline, [1, 2], steps=25, batch=8, side=64),
    "sd15": Setting(sd15_pipeline, [4], steps=8, batch=1, side=256),
}


def run(pipeline: RealCustomPipeline, mode: Mode, steps: int, batch: int, side: int) -> None:
    """Call the pipeline once, and add its times to the mode's."""
    device = pipeline.backbone.device
    stamps: list[tuple[float, float]] = []

    def stamp(*_: Any) -> dict[str, Any]:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        stamps.append((time.process_time(), time.perf_counter()))
        return {}

    def stamp_once(*_: Any) -> None:
        if not stamps:
            stamp()

    hook = pipeline.backbone.unet.register_forward_pre_hook(stamp_once)
    try:
        request: dict[str, Any] = {**mode.subject, "height": side, "width": side}
        settings = mode.settings.with_steps(steps)
        pipeline([_PROMPT] * batch, **request, settings=settings, callback_on_step_end=stamp)
    finally:
        hook.remove()
    for seconds, first, last in zip((mode.processor, mode.wall), stamps[0], stamps[-1], strict=True):
        seconds.append((last - first) / steps)


def measure(
    pipeline: RealCustomPipeline, modes: Sequence[Mode], steps: int, repetitions: int, batch: int, side: int
) -> None:
    """Measure the modes' times and peaks, after a warm-up call of each with one step."""
    for mode in modes:
        run(pipeline, Mode(mode.name, mode.subject, mode.settings), 1, batch, side)
    for repetition in range(repetitions):
        for mode in modes if repetition % 2 == 0 else reversed(modes):
            work = partial(run, pipeline, mode, steps, batch, side)
            mode.peak = peak_extra_bytes(work, pipeline.backbone.device)


def report(modes: Sequence[Mode]) -> str:
    """The table of times, ratios and peaks."""
    lines = [f"{'mode':<20}{'CPU s/step':>14}{'ratio':>8}{'wall s/step':>15}{'ratio':>8}{'peak extra':>14}"]
    for mode in modes:
        processor, wall = statistics.median(mode.processor), statistics.median(mode.wall)
        ratios = _ratio(mode.processor, modes[0].processor), _ratio(mode.wall, modes[0].wall)
        peak = "unknown" if mode.peak is None else f"{mode.peak / 2**20:.0f} MiB"
        lines.append(f"{mode.name:<20}{processor:>14.4f}{ratios[0]:>8.3f}{wall:>15.4f}{ratios[1]:>8.3f}{peak:>14}")
    return "\n".join(lines)


def _ratio(seconds: Sequence[float], plain: Sequence[float]) -> float:
    return statistics.median(mine / others for mine, others in zip(seconds, plain, strict=True))


@dataclass(frozen=True)
class LayerShape:
    """Sizes of an attention layer of a UNet."""

    layer: str
    heads: int
    positions: int
    keys: int
    width: int  # of a head


def sdxl_layers() -> tuple[GuidanceLayers, list[LayerShape]]:
    """The layers of SDXL at 1024 x 1024 that determine the mask, in the UNet's order; nothing is allocated."""
    unet = sdxl_unet()
    with torch.device("meta"):
        RealCustomPlusAdapter.from_unet(unet, 64).attach(unet)
    latent = (_SDXL_LATENT, _SDXL_LATENT)
    layers = GuidanceLayers.of(unet.attn_processors.values(), [2])
    shapes = list(_shapes(unet, latent))
    return layers, [shape for shape in shapes if shape.layer in {**layers.cross_attention, **layers.self_attention}]


def _shapes(unet: UNet2DConditionModel, latent: tuple[int, int]) -> Iterator[LayerShape]:
    """All attention layers in the order of a forward pass: down, middle, up."""
    names = unet.attn_processors
    for part in ("down_blocks", "mid_block", "up_blocks"):
        for name, processor in names.items():
            if name.startswith(part):
                assert isinstance(processor, VisualAttentionProcessor)
                attention = unet.get_submodule(processor.layer)
                positions = math.prod(grid_at(latent, processor.downscale))
                keys = TEXT_TOKENS if processor.layer.endswith(".attn2") else positions
                width = attention.to_q.out_features // attention.heads
                yield LayerShape(processor.layer, attention.heads, positions, keys, width)


def naive_bytes(shapes: Sequence[LayerShape], batch: int, size: int) -> int:
    """Bytes of all heads' probabilities of these layers at once, `size` bytes per number."""
    return sum(batch * shape.heads * shape.positions * shape.keys * size for shape in shapes)


def mask_memory(device: torch.device, dtype: torch.dtype, batch: int) -> tuple[int | None, int]:
    """Peak bytes of the mask extraction at SDXL's shape, and the bytes of all attention probabilities."""
    layers, shapes = sdxl_layers()
    naive = naive_bytes(shapes, batch, torch.empty((), dtype=dtype).element_size())
    indicator = torch.zeros(batch, TEXT_TOKENS, 1, device=device)
    indicator[:, 5] = 1

    def extract() -> None:
        recorder = GuidanceRecorder(layers, indicator, (_SDXL_LATENT, _SDXL_LATENT))
        for shape in shapes:
            query, key = (
                torch.randn(batch, shape.heads, n, shape.width, device=device, dtype=dtype)
                for n in (shape.positions, shape.keys)
            )
            try:
                recorder.record(shape.layer, query, key)
            except PassEnded:
                recorder.maps()

    return peak_extra_bytes(extract, device), naive


def memory_report(device: torch.device, dtype: torch.dtype, batch: int) -> str:
    """Measure the memory of the mask extraction, and describe it in a line."""
    peak, naive = mask_memory(device, dtype, batch)
    share = "unknown" if peak is None else f"{peak / 2**20:.0f} MiB, {100 * peak / naive:.1f} %"
    return (
        f"mask extraction at SDXL's shape, {dtype}, batch {batch}: {share} of the naive maps' {naive / 2**20:.0f} MiB"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--backbone", choices=SETTINGS, default="micro")
    parser.add_argument("--steps", type=int, help="denoising steps")
    parser.add_argument("--size", type=int, help="side of the pictures, in pixels")
    parser.add_argument("--batch", type=int, help="pictures at once")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--mask-every", type=int, default=3, help="of the fast mode")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--memory", action="store_true", help="measure the mask's extraction at SDXL's shape instead")
    options = parser.parse_args(arguments)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    if device.type == "cpu":
        torch.set_num_threads(1)
    if options.memory:
        print(memory_report(device, dtype, options.batch or 1))
        return
    setting = SETTINGS[options.backbone]
    steps, batch, side = options.steps or setting.steps, options.batch or setting.batch, options.size or setting.side
    modes = modes_of(steps, options.mask_every, setting.cross_downscales)
    measure(setting.build(device, dtype), modes, steps, options.repetitions, batch, side)
    print(report(modes))


if __name__ == "__main__":
    main()
