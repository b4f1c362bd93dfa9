"""All that is measured on a GPU, within ten minutes, as one page.

    python -m tests.benchmarks.gpu_report --output gpu.md
    python -m tests.benchmarks.gpu_report --output gpu.md --device cpu --narrow --minutes 1    # to try it

Hardware and time: one GPU with 40 GB (not run on one yet); 10 GB of disk.

Training and inference in the shapes of SD-1.5 and SDXL (`gpu_training`, `gpu_inference`), then the micro Stable
Diffusion from scratch for the rest of the time. The page is written after each row, and says which table failed.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from tests.benchmarks import gpu_inference, gpu_training
from tests.benchmarks.support.command_line import benchmark_parser

_STEPS = 20
_BATCHES = (1, 4)


def sections(device: torch.device, end: float, *, narrow: bool) -> dict[str, Callable[[], Iterator[str]]]:
    """The tables of the page by their titles; `end` is when they must be ready, as `time.monotonic` counts."""
    shapes = ["tiny"] if narrow else ["sd15", "sdxl"]
    return {
        "Training": lambda: gpu_training.measured_rows(shapes, device, 1 if narrow else _STEPS),
        "Inference": lambda: gpu_inference.measured_rows(
            ["sd15"] if narrow else ["sd15", "sdxl"], device, _BATCHES[:1] if narrow else _BATCHES, narrow=narrow
        ),
        "The micro Stable Diffusion from scratch": lambda: base_rows(device, end),
    }


def base_rows(device: torch.device, end: float) -> Iterator[str]:
    """Train the base model until `end`: what it had done by then."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        lines = "\n".join(_base_output(Path(folder), device, end))
    steps = re.findall(r"(\d+)/(\d+) (\w+)", lines)
    yield "| part | steps done | of |"
    yield "| --- | --- | --- |"
    for part, (done, total) in {part: (done, total) for done, total, part in steps}.items():
        yield f"| {part} | {done} | {total} |"
    yield f"\n{time.monotonic() - began:.0f} seconds, with the start of the run."


def _base_output(folder: Path, device: torch.device, end: float) -> list[str]:
    settings = (f"run.folder={folder}", f"compute.use_gpu={device.type == 'cuda'}", "compute.workers=1")
    chosen = [argument for setting in settings for argument in ("--set", setting)]
    process = subprocess.Popen(
        [sys.executable, "pipeline.py", "run", "--stage", "base", "--force", "base", *chosen],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=max(1.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.terminate()
        output, _ = process.communicate()
    return output.splitlines()


def write_page(output: Path, device: torch.device, minutes: float, *, narrow: bool) -> None:
    """Measure, and write the page after each table."""
    end = time.monotonic() + 60 * minutes
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    page = f"# {name}, torch {torch.__version__}\n"
    for title, rows in sections(device, end, narrow=narrow).items():
        page += f"\n## {title}\n\n"
        try:
            for row in rows():
                page += row + "\n"
                output.write_text(page)
        except Exception as error:  # the next table may fit into memory, or need no compiler
            page += f"\n{type(error).__name__}: {error}\n"
            output.write_text(page)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the page."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=9.5)
    parser.add_argument("--narrow", action="store_true", help="small shapes")
    options = parser.parse_args(arguments)
    write_page(options.output, torch.device(options.device), options.minutes, narrow=options.narrow)
    print(options.output.read_text())


if __name__ == "__main__":
    main()
