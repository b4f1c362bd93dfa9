"""A step of the adapter's training at true shapes, part by part: seconds and peak memory.

    python -m tests.benchmarks.training_parts                               # SD-1.5 on a CPU, all rows
    python -m tests.benchmarks.training_parts --shape sdxl --rows 5 --steps 1
    python -m tests.benchmarks.training_parts --device cuda --batch 16

Hardware and time: two cores and 20 GB of memory for SD-1.5, some minutes a row; or a GPU (not run on one yet).

The models have the sizes of the public ones and random weights: UNet, VAE and text encoders of SD-1.5 or SDXL, SigLIP
SO400M/14 and DINOv2 ViT-L/14 with registers. Each row runs in a process of its own. Its parts are the VAE and the text
encoders (not with cached latents), the image encoders with the projector, the UNet's forward pass, the backward pass,
and AdamW; the numbers are those of the last step. On a CPU, memory is what the process holds (RSS), which includes what
the allocator keeps from earlier parts. "bare" is a loop of plain PyTorch, whose autocast casts fp32 weights in every
pass. The other rows are steps of the trainer's engine (DeepSpeed), whose frozen models are halved for bf16.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from model.adapters.realcustom_plus_plus import RealCustomPlusAdapter
from model.backbone import Backbone
from model.training.adapter_loss import AdapterModule, FrozenModels
from model.training.encodings import encode_captions, encode_targets
from model.training.precision import half_precision, halve_products
from stages.training.config import TrainerConfig
from stages.training.engine import Engine, on_device
from tests.benchmarks.gpu_training import SHAPES, Shape, make_batch, paper_encoders, tiny_encoders
from tests.benchmarks.support.command_line import benchmark_parser
from tests.benchmarks.support.memory import peak_bytes, reset_peak
from tests.benchmarks.support.process_group import process_group
from tests.benchmarks.support.random_models import CLIP_G, CLIP_L, TEXT_TOKENS, VAE, random_backbone

PARTS = ("VAE and text encoders", "image encoders", "UNet forward", "backward", "AdamW")
_PIXELS_A_LATENT = 8


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a process measures.

    Attributes:
        bare: A loop of plain PyTorch instead of the trainer's engine.
        precision: Of the forward pass.
        checkpointing: Whether the UNet's activations are computed again in the backward pass.
        cached: Whether latents and texts are given, and VAE and text encoders are not in memory.
        zero_stage: DeepSpeed's.
    """

    bare: bool = False
    precision: Literal["fp32", "bf16"] = "bf16"
    checkpointing: bool = False
    cached: bool = False
    zero_stage: Literal[0, 1, 2, 3] = 2

    @property
    def half(self) -> torch.dtype | None:
        """Of autocast."""
        return torch.bfloat16 if self.precision == "bf16" else None

    def __str__(self) -> str:
        engine = "bare" if self.bare else f"ZeRO {self.zero_stage}"
        extras = [name for name in ("checkpointing", "cached") if getattr(self, name)]
        return ", ".join([self.precision, engine, *extras])


ROWS = (
    Row(bare=True, precision="fp32"),
    Row(bare=True),
    Row(precision="fp32"),
    Row(),
    Row(checkpointing=True),
    Row(checkpointing=True, cached=True),
    Row(checkpointing=True, cached=True, zero_stage=0),
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A row to measure in a process.

    Attributes:
        batch: Examples of a step.
        steps: The numbers of the last one count.
    """

    shape: str
    row: Row
    device: str
    batch: int
    steps: int


@dataclass
class Meter:
    """Seconds and peak bytes of the parts of a step."""

    device: torch.device
    parts: dict[str, tuple[float, int]] = field(default_factory=dict)
    _began: float = 0.0

    def begin(self) -> None:
        """Begin the next part."""
        _synchronize(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            reset_peak()
        self._began = time.perf_counter()

    def end(self, part: str) -> None:
        """End a part, and begin the next one."""
        _synchronize(self.device)
        seconds = time.perf_counter() - self._began
        on_gpu = self.device.type == "cuda"
        self.parts[part] = seconds, torch.cuda.max_memory_allocated(self.device) if on_gpu else peak_bytes()
        self.begin()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def build(shape: Shape, row: Row, device: torch.device) -> AdapterModule:
    """The module to train, with frozen models of random weights as `AdapterTask` has them."""
    torch.manual_seed(0)
    with device:
        backbone = random_backbone(UNet2DConditionModel(**shape.unet), device, torch.float32)
        if not row.bare and row.half is not None:
            halve_products(backbone.unet, row.half)
        encoders = paper_encoders() if shape.paper_encoders else tiny_encoders()
        if shape.paper_encoders and not row.cached:
            backbone = _with_full_encoders(backbone)
    if not row.bare and row.half is not None:
        for module in (encoders, *backbone.text_encoders):
            halve_products(module, row.half)
    if row.checkpointing:
        backbone.unet.enable_gradient_checkpointing()
    with device:
        adapter = RealCustomPlusAdapter.from_unet(backbone.unet, encoders.width)
    return AdapterModule(adapter, FrozenModels(backbone, encoders))


def _with_full_encoders(backbone: Backbone) -> Backbone:
    """The backbone with a VAE and text encoders of full size."""
    is_xl = backbone.unet.config.addition_embed_type == "text_time"
    kinds: list[tuple[Any, dict[str, Any]]] = [(CLIPTextModel, CLIP_L)]
    if is_xl:
        kinds.append((CLIPTextModelWithProjection, CLIP_G))
    texts = [kind(CLIPTextConfig(max_position_embeddings=TEXT_TOKENS, **sizes)) for kind, sizes in kinds]
    vae = AutoencoderKL(**VAE)
    for module in (vae, *texts):
        module.eval().requires_grad_(False)
    return dataclasses.replace(
        backbone,
        vae=vae,
        text_encoders=texts,
        tokenizers=backbone.tokenizers * len(texts),
        family="sdxl" if is_xl else "sd",
    )


def encode(module: AdapterModule, row: Row, pictures: Tensor) -> dict[str, Tensor]:
    """Latents and texts of a batch's targets (B, 3, H, W), as `AdapterTask` encodes them."""
    backbone = module.frozen.backbone
    with half_precision(backbone.device, row.half):
        latents = encode_targets(backbone, pictures)
        return {"latents": latents, **encode_captions(backbone, ["a photo of a mug"] * len(pictures))}


def measure(job: Job) -> Meter:
    """Do the steps of a row; returns the parts of the last one."""
    shape, row = dataclasses.replace(SHAPES[job.shape], batch=job.batch), job.row
    meter = Meter(torch.device(job.device))
    with torch.random.fork_rng(devices=[]), process_group():
        module = build(shape, row, meter.device)
        unet = module.frozen.backbone.unet
        unet.register_forward_pre_hook(lambda *_: meter.end("image encoders"))
        unet.register_forward_hook(lambda *_: meter.end("UNet forward"))
        step = _bare_step(module, row, meter) if row.bare else _engine_step(module, row, meter)
        batch = make_batch(shape, torch.device("cpu"))
        side = shape.latent * _PIXELS_A_LATENT
        pictures = torch.rand(job.batch, 3, side, side)
        with half_precision(meter.device, row.half):
            module.frozen.encoders.black(1)  # encoded once in a training
        for _ in range(job.steps):
            meter.begin()
            encoded = {} if row.cached else encode(module, row, pictures)
            meter.end("VAE and text encoders")
            step(on_device(batch | encoded, meter.device))
    return meter


def _bare_step(module: AdapterModule, row: Row, meter: Meter) -> Callable[[dict[str, Tensor]], None]:
    optimizer = torch.optim.AdamW(module.parameters(), 1e-4, fused=True)

    def step(batch: dict[str, Tensor]) -> None:
        optimizer.zero_grad()
        with half_precision(meter.device, row.half):
            loss = module(batch)["loss"]
        loss.backward()
        meter.end("backward")
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        meter.end("AdamW")

    return step


def _engine_step(module: AdapterModule, row: Row, meter: Meter) -> Callable[[dict[str, Tensor]], None]:
    config = TrainerConfig(workers=1, zero_stage=row.zero_stage, precision=row.precision, learning_rate=1e-4)
    engine = Engine(module, config, meter.device)

    def step(batch: dict[str, Tensor]) -> None:
        engine.backward([batch])
        meter.end("backward")
        engine.step(1e-4)
        meter.end("AdamW")

    return step


def table_row(row: Row, meter: Meter) -> str:
    """A row of the table: seconds of the step and of its parts, and the peak memory of each, GB."""
    seconds, peaks = zip(*(meter.parts[part] for part in PARTS), strict=True)
    cells = [f"{second:.1f} s, {peak / 1e9:.1f}" for second, peak in zip(seconds, peaks, strict=True)]
    return f"| {row} | {sum(seconds):.1f} | {max(peaks) / 1e9:.1f} | {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="sd15")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rows", nargs="+", type=int, choices=range(len(ROWS)), default=list(range(len(ROWS))))
    options = parser.parse_args(arguments)
    print(f"{options.shape}, {options.device}, batches of {options.batch}; memory in GB\n")
    print(f"| row | seconds | peak memory | {' | '.join(PARTS)} |\n|{' --- |' * (3 + len(PARTS))}", flush=True)
    for number in options.rows:
        job = Job(
            shape=options.shape,
            row=ROWS[number],
            device=options.device,
            batch=options.batch,
            steps=options.steps,
        )
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            print(table_row(job.row, process.submit(measure, job).result()), flush=True)


if __name__ == "__main__":
    main()
