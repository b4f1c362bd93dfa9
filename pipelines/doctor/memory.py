"""What the training of the adapter needs of the memory of this machine and of its GPUs, before activations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pipelines.doctor.findings import Finding, Setup, good, problem, unknown, warning
from pipelines.doctor.sizes import GIGABYTE, TrainingSizes, gigabytes, training_sizes
from stages.config import Config

#: Of a worker before it has loaded a model (docs/hardware.md).
PROCESS_BYTES = GIGABYTE // 2
#: What Ray keeps for objects that processes exchange.
_OBJECT_STORE_SHARE = 0.3
#: More than this share of a GPU leaves little for activations.
_FULL_SHARE = 0.75
#: Limits of a container, by the version of control groups.
_CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def check(setup: Setup) -> Iterator[Finding]:
    """The memory of the workers of `train_adapter`."""
    total = machine_bytes()
    if "train_adapter" not in setup.graph.stages or setup.config.backbone.weights is None:
        yield good(f"{gigabytes(total)} of memory; the micro models are small")
        return
    sizes = training_sizes(setup.config)
    if sizes is None:
        yield unknown(
            f"{gigabytes(total)} of memory; what the training needs is known when its models are on this machine"
        )
        return
    trainer = setup.config.train_adapter.trainer
    is_half = trainer.precision != "fp32"
    held = replace(sizes, vae=0, text=0) if _frees_encoders(setup.config) else sizes
    each = held.bytes_of_worker(is_half=is_half, zero_stage=trainer.zero_stage, workers=trainer.workers)
    if trainer.use_gpu:
        yield from check_gpu_memory(each, _smallest_gpu_bytes())
        each = sizes.bytes_while_loading(is_half=is_half)
    needed = trainer.workers * (each + PROCESS_BYTES)
    yield check_memory(
        needed, trainer.workers, total, purpose="to load the models" if trainer.use_gpu else "before activations"
    )
    yield _parameters(sizes)


def _frees_encoders(config: Config) -> bool:
    """Whether the training does without VAE and text encoders once they have been compared with the cache."""
    return config.cache_latents.enabled and config.train_adapter.sample_every is None


def check_memory(needed: int, workers: int, total: int, purpose: str) -> Finding:
    """Whether the workers together fit beside Ray's object store."""
    text = f"the workers of train_adapter ({workers}) need {gigabytes(needed)} of the machine's memory {purpose}"
    text = f"{text}; there are {gigabytes(total)}"
    if needed > total:
        return problem(f"{text}: set compute.workers to fewer")
    if needed > (1 - _OBJECT_STORE_SHARE) * total:
        return warning(f"{text}, of which Ray keeps up to 30 % for data: set compute.workers to fewer")
    return good(text)


def check_gpu_memory(needed: int, smallest: int | None) -> Iterator[Finding]:
    """Whether a worker fits on the smallest GPU; None: there is no GPU, which is another finding."""
    text = f"a worker of train_adapter holds {gigabytes(needed)} on its GPU before activations"
    advice = "docs/hardware.md has settings for small GPUs"
    if smallest is None:
        yield unknown(f"{text}; no GPU is here to compare it with")
    elif needed > smallest:
        yield problem(f"{text}, and the smallest has {gigabytes(smallest)}: {advice}")
    elif needed > _FULL_SHARE * smallest:
        yield warning(f"{text}, and the smallest has {gigabytes(smallest)}, which leaves little for them: {advice}")
    else:
        yield good(f"{text}; the smallest has {gigabytes(smallest)}")


def machine_bytes() -> int:
    """The memory of this machine, or what its container may use of it."""
    import psutil

    limits = [int(text) for file in _CONTAINER_LIMITS if (text := _text(file)).isdecimal()]
    return min([int(psutil.virtual_memory().total), *limits])


def _text(file: str) -> str:
    try:
        return Path(file).read_text().strip()
    except OSError:
        return ""


def _smallest_gpu_bytes() -> int | None:
    import torch

    if not torch.cuda.is_available():
        return None
    return min(torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count()))


def _parameters(sizes: TrainingSizes) -> Finding:
    parts = {
        "UNet": sizes.unet,
        "VAE": sizes.vae,
        "text encoders": sizes.text,
        "image encoders": sizes.encoders,
        "adapter": sizes.adapter,
    }
    listed = ", ".join(f"{name} {count / 10**6:,.1f}" for name, count in parts.items())
    return good(f"millions of parameters: {listed}")
