"""Concepts at the full size of Stable Diffusion 1.5 and XL with random weights: memory and CPU seconds a step.

    python -m tests.benchmarks.customization_shapes PICTURES --word dog
    python -m tests.benchmarks.customization_shapes PICTURES --backbone sdxl --word dog

Hardware and time: two cores, 18 GB of memory, 12 GB of disk; some minutes for each method.

PICTURES is a folder of pictures of one subject. For each method, a new process learns a concept from them in two steps
(`CustomizationTask`, AdamW, one picture a step), writes its folder, and loads it into the backbone again. It fails
unless the UNet's prediction then is that of the training, differs from the backbone's own, and is the backbone's own
again after unloading. SD-1.5 computes in fp32; the frozen layers of SDXL have bf16, with gradient checkpointing.
Memory is the most that the process held (RSS), from its start to the end of loading, and during the steps.
"""

from __future__ import annotations

import gc
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from model.backbone import Backbone, load_backbone
from model.concepts.customization_loss import CustomizationModule
from model.concepts.customization_settings import ConceptSubject, CustomizationSettings, Method
from model.concepts.customization_task import CustomizationTask
from model.concepts.loading import load_concept, unload_concepts
from model.pictures.crops import square_crop
from model.pictures.decoding import load_picture, picture_files, to_png
from tests.benchmarks.support.command_line import benchmark_parser
from tests.benchmarks.support.memory import peak_bytes, reset_peak
from tests.benchmarks.support.model_folders import write_sd15, write_sdxl

METHODS: tuple[Method, ...] = get_args(Method)
BACKBONES: dict[str, Callable[[Path], None]] = {"sd15": write_sd15, "sdxl": write_sdxl}
STEPS = 2
_RATE = 1e-3
_TIMESTEP = 500


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a process measures: the backbone's folder, the subject, the method and the dtype of the frozen layers."""

    backbone: str
    subject: ConceptSubject
    method: Method
    half: torch.dtype | None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Of a method.

    Attributes:
        trained: Number of trained parameters.
        loading: Most bytes of the process until the models are loaded.
        training: Most bytes of the process in the steps.
        seconds: CPU time of the last step.
        file: Bytes of the concept's folder.
        change: Mean absolute change of the UNet's prediction by the concept.
    """

    trained: int
    loading: int
    training: int
    seconds: float
    file: int
    change: float


def measure(job: Job) -> Measurement:
    """Train a concept, write it, load it again and unload it.

    Raises:
        RuntimeError: A prediction is not what it should be.
    """
    task = _task(job)
    module = task.module()
    loading = peak_bytes()
    reset_peak()
    seconds = _train(task, module)
    training = peak_bytes()
    prompt = f"a photo of a {job.subject.placeholder} {job.subject.word}"
    learned = predict(module.frozen[0], prompt, job.half)
    trained = sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
    with tempfile.TemporaryDirectory() as folder:
        task.export(module, Path(folder))
        del task, module
        gc.collect()
        file = sum(path.stat().st_size for path in Path(folder).iterdir())
        change = _check_round_trip(job, Path(folder), prompt, learned)
    return Measurement(trained=trained, loading=loading, training=training, seconds=seconds, file=file, change=change)


def _task(job: Job) -> CustomizationTask:
    return CustomizationTask(
        backbone=job.backbone,
        subjects=(job.subject,),
        settings=CustomizationSettings(method=job.method, batch_size=1),
        seed=0,
        half=job.half,
        gradient_checkpointing=job.half is not None,
    )


def _train(task: CustomizationTask, module: CustomizationModule) -> float:
    """Steps of AdamW; the CPU seconds of the last one."""
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=_RATE, weight_decay=0.0)
    start = 0.0
    for step in range(STEPS):
        start = time.process_time()
        optimizer.zero_grad()
        with _autocast(task.half):
            loss = module(task.batch(step, 0, 1))["loss"]
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    return time.process_time() - start


def _check_round_trip(job: Job, folder: Path, prompt: str, learned: Tensor) -> float:
    """Load and unload a concept; returns how much it changes the prediction."""
    backbone = load_backbone(job.backbone, half=job.half)
    before = predict(backbone, prompt, job.half)
    load_concept(backbone, folder)
    loaded = predict(backbone, prompt, job.half)
    unload_concepts(backbone)
    change = _distance(loaded, before)
    if not change:
        raise RuntimeError(f"{job.method}: the concept changes nothing.")
    if _distance(loaded, learned) > change / 2:
        raise RuntimeError(f"{job.method}: what was loaded is not what was learned.")
    if not torch.equal(predict(backbone, prompt, job.half), before):
        raise RuntimeError(f"{job.method}: unloading leaves a trace.")
    return change


def _distance(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().mean())


@torch.no_grad()
def predict(backbone: Backbone, prompt: str, half: torch.dtype | None) -> Tensor:
    """The UNet's prediction (1, 4, 32, 32) for a prompt."""
    noise = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    with _autocast(half):
        text = backbone.encode_prompt([prompt])
        return backbone.predict(noise, torch.tensor([_TIMESTEP]), text).float()


def _autocast(half: torch.dtype | None) -> torch.autocast:
    return torch.autocast("cpu", half or torch.bfloat16, enabled=half is not None)


def read_subject(folder: Path, word: str, placeholder: str, side: int) -> ConceptSubject:
    """The subject of a folder of pictures, as squares."""
    pictures = tuple(to_png(square_crop(load_picture(path), 0.5, 0.5, side)) for path in picture_files(folder))
    return ConceptSubject(name=folder.name, word=word, placeholder=placeholder, pictures=pictures)


def _work(job: Job, pipe: Any) -> None:
    pipe.send(measure(job))


def measure_in_process(job: Job) -> Measurement:
    """`measure` in a new process."""
    spawning = multiprocessing.get_context("spawn")
    receiver, sender = spawning.Pipe(duplex=False)
    process = spawning.Process(target=_work, args=(job, sender))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{job.method}: the process failed")
    found: Measurement = receiver.recv()
    return found


def markdown(found: Mapping[str, Measurement]) -> str:
    """The table of measurements."""
    lines = [
        "| method | trained parameters | GiB, loading | GiB, steps | CPU seconds a step | MB of the file | change |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, one in found.items():
        cells = [f"{one.trained:,}", *(f"{size / 2**30:.1f}" for size in (one.loading, one.training))]
        cells += [f"{one.seconds:.1f}", f"{one.file / 1e6:.2f}", f"{one.change:.2g}"]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("pictures", type=Path, help="folder of pictures of one subject")
    parser.add_argument("--word", default="dog", help="its class word")
    parser.add_argument("--backbone", choices=list(BACKBONES), default="sd15")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--side", type=int, default=256, help="of the pictures, pixels")
    options = parser.parse_args(arguments)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        BACKBONES[options.backbone](Path(folder))
        for method in options.methods:
            placeholder = "sks" if method == "dreambooth" else "[v]"
            subject = read_subject(options.pictures, options.word, placeholder, options.side)
            half = torch.bfloat16 if options.backbone == "sdxl" else None
            found[method] = measure_in_process(Job(backbone=folder, subject=subject, method=method, half=half))
            print(f"{method}: {found[method]}", flush=True)
    print(f"\n{options.backbone}, {options.side} x {options.side} pixels:\n\n{markdown(found)}")


if __name__ == "__main__":
    main()
