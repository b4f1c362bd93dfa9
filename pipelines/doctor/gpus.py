"""This machine's GPUs against what the stages ask for. PyTorch is imported only when something asks for one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipelines.doctor.findings import Finding, Setup, good, problem, warning
from stages.config import Config
from stages.contract import StageError
from stages.ray_tools.gpus import GpuNeed, gpu_needs, judge_gpus

_MACHINE = "this machine"


def check(setup: Setup) -> Iterator[Finding]:
    """Whether PyTorch finds as many GPUs as are needed, and whether they compute in bf16."""
    needs = gpu_needs(setup.config, setup.graph.order)
    if not needs:
        yield good("no stage asks for a GPU (compute.use_gpu=false)")
        return
    import torch

    if reason := _why_no_cuda(torch):
        yield problem(f"{needs[0].switch} is true, but {reason}")
        return
    yield from check_gpu_count(needs, torch.cuda.device_count())
    if uses_bf16(setup.config) and not torch.cuda.is_bf16_supported(including_emulation=False):
        yield warning(
            f"{torch.cuda.get_device_name()} has no bf16 of its own, which is slow: set compute.precision=fp16 and "
            "backbone.dtype=float16"
        )


def check_gpu_count(needs: list[GpuNeed], count: int) -> Iterator[Finding]:
    """Which stages ask for more GPUs than there are."""
    sentences = dict.fromkeys(filter(None, (_lack_of(need, count) for need in needs)))
    yield from map(problem, sentences)
    if not sentences:
        yield good(f"GPUs: {count}, of which a stage uses up to {max(need.at_most for need in needs)}")


def uses_bf16(config: Config) -> bool:
    """Whether something trains or paints in bf16."""
    trainers = (config.train_adapter.trainer, config.contextualizer.trainer, config.customize.trainer)
    return config.backbone.dtype == "bfloat16" or any(trainer.precision == "bf16" for trainer in trainers)


def _lack_of(need: GpuNeed, count: int) -> str | None:
    try:
        judge_gpus([need], _MACHINE, available=count, later=0, may_grow=False)
    except StageError as error:
        return str(error)
    return None


def _why_no_cuda(torch: Any) -> str | None:
    """Why PyTorch cannot use a GPU, in PyTorch's own words where it has some; None: it can."""
    if torch.version.cuda is None and torch.version.hip is None:
        if torch.backends.mps.is_available():
            return (
                "Ray trains and paints on NVIDIA's GPUs, not on Apple's: set compute.use_gpu=false; `generate` uses "
                "Apple's by itself"
            )
        return (
            f"PyTorch {torch.__version__} is built without CUDA: install the build for your driver (pytorch.org), or "
            "set compute.use_gpu=false"
        )
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        words = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        return f"PyTorch {torch.__version__} finds no GPU ({words}): correct the driver, or set compute.use_gpu=false"
    return None if torch.cuda.device_count() else "there is no GPU: set compute.use_gpu=false"
