"""Memory of training and painting, before activations, in the shapes of SD-1.5 and SDXL, and of a process.

    python -m tests.benchmarks.training_memory

Hardware and time: none, a quarter of a minute on one core: the models are on the meta device, which has no memory.

The parameters of every part are counted, and `pipelines.doctor.sizes` makes bytes of them, as the command `doctor` does
for models that are on the machine. The process has imported PyTorch, DeepSpeed, diffusers, transformers and Ray.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from model.adapters.released_weights import SDXL_UNET
from model.methods.registry import METHODS
from pipelines.doctor.sizes import GIGABYTE, TrainingSizes
from tests.benchmarks.gpu_training import paper_encoders
from tests.benchmarks.support.command_line import benchmark_parser
from tests.benchmarks.support.random_models import CLIP_G, CLIP_L, SD15_UNET, VAE

SHAPES: dict[str, tuple[dict[str, Any], list[tuple[Any, dict[str, Any]]]]] = {
    "sd15": (SD15_UNET, [(CLIPTextModel, CLIP_L)]),
    "sdxl": (SDXL_UNET, [(CLIPTextModel, CLIP_L), (CLIPTextModelWithProjection, CLIP_G)]),
}
#: (training in half precision, ZeRO stage, workers)
CASES = ((False, 0, 1), (True, 0, 1), (True, 2, 8))
_PROCESS = "import deepspeed, diffusers, ray, torch, transformers, psutil; print(psutil.Process().memory_info().rss)"


def sizes_of(name: str) -> TrainingSizes:
    """The parameters of all parts of a training with RealCustom++."""
    shape, texts = SHAPES[name]
    with torch.device("meta"):
        unet, encoders = UNet2DConditionModel(**shape), paper_encoders()
        adapter = METHODS["realcustom++"].new_adapter(unet, encoders.width)
        text = [kind(CLIPTextConfig(**sizes)) for kind, sizes in texts]
        vae = AutoencoderKL(**VAE)
    return TrainingSizes(
        unet=_count(unet),
        vae=_count(vae),
        text=sum(map(_count, text)),
        encoders=_count(encoders),
        adapter=_count(adapter),
    )


def rows() -> list[str]:
    """A line for each shape, in millions of parameters and gigabytes."""
    lines = []
    for name in SHAPES:
        sizes = sizes_of(name)
        counts = (sizes.unet, sizes.vae, sizes.text, sizes.encoders, sizes.adapter)
        needed = [
            sizes.bytes_of_worker(is_half=is_half, zero_stage=stage, workers=workers) / GIGABYTE
            for is_half, stage, workers in CASES
        ]
        painting = 2 * sum(counts) / GIGABYTE  # all in bf16
        cells = [*(f"{count / 10**6:,.0f}" for count in counts), *(f"{count:.1f}" for count in (*needed, painting))]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _count(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def main() -> None:
    """Print the table and the size of a process."""
    benchmark_parser(__doc__).parse_args()
    print("| | UNet | VAE | text | image encoders | adapter | fp32 | bf16 | bf16, ZeRO 2, one of 8 | painting, bf16 |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    print("\n".join(rows()))
    found = subprocess.run([sys.executable, "-c", _PROCESS], capture_output=True, text=True, check=True)
    print(f"A process before it has loaded a model: {int(found.stdout.split()[-1]) / GIGABYTE:.1f} GB.")


if __name__ == "__main__":
    main()
