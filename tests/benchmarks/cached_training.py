"""Time that the stage `cache_latents` saves in training, time that it takes itself, and its storage.

    python -m tests.benchmarks.cached_training                    # the micro backbone
    python -m tests.benchmarks.cached_training --backbone sd15    # SD-1.5's shapes, random weights, 128 pixels
    python -m tests.benchmarks.cached_training --storage          # bytes per row, without training

Hardware and time: one core; about 3 minutes for micro, longer for sd15, seconds for `--storage`.

The same steps (examples, forward and backward pass, AdamW) run in three ways: with the stage's cache ("stage"), with
the cache that a training keeps in memory by itself, empty at the start ("memory"), and without a cache ("nothing").
Each picture is used about 2.6 times, as in the profile micro. Times are CPU seconds of all threads; the order of the
ways alternates, and ratios are medians over the repetitions.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel

from model.adapters.image_encoder import ImageEncoders
from model.backbone import Backbone, load_backbone
from model.micro_sd.weights import WEIGHTS_FOLDER
from model.training.adapter_examples import PlanRow
from model.training.adapter_loss import AdapterModule, FrozenModels
from model.training.adapter_task import AdapterTask
from model.training.target_sizes import Phase
from model.training.tensor_cache import Cache
from stages.cache_latents.config import CacheLatentsConfig
from stages.cache_latents.stage import DATASETS, Encoder, EncodingJob, parts_of, write_examples
from stages.data.datasets import write_dataset
from stages.data.encodings import StoredEncodings, encoding_rows, write_encodings
from stages.data.plan import PlanPictures, PlanReader
from stages.data.schemas import FRAMES, PLAN, SAMPLES
from stages.inference import loading_options
from stages.shared_config import BackboneConfig
from tests.benchmarks.support.command_line import benchmark_parser
from tests.benchmarks.support.noise_pictures import jpeg, smooth_noise
from tests.benchmarks.support.random_models import CLIP_L, TEXT_TOKENS, VAE, random_encoders, random_sd15

WAYS = ("stage", "memory", "nothing")
_USES = 2.6
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Size:
    """Size of a training."""

    resolution: int
    steps: int
    batch: int


SIZES = {"micro": Size(64, 20, 16), "sd15": Size(128, 4, 2)}


def write_examples_of(folder: Path, size: Size) -> dict[str, Path]:
    """Write a plan of square pictures, each with its own caption; returns the stages' output folders."""
    rng, count = np.random.default_rng(0), round(size.steps * size.batch / _USES)
    side = size.resolution
    samples: dict[str, list[Any]] = {
        "sample_id": [f"{number:06d}" for number in range(count)],
        "url": [""] * count,
        "caption": [f"a photo of a mug {number}" for number in range(count)],
        "picture": [jpeg(smooth_noise(rng, side, side)) for _ in range(count)],
        **{name: [side] * count for name in ("width", "height", "original_width", "original_height")},
        **{name: [None] * count for name in ("similarity", "unsafe", "watermark", "aesthetic", "language")},
    }
    rows = size.steps * size.batch
    drawn = rng.integers(0, count, rows)
    ids = [samples["sample_id"][number] for number in drawn]
    plan = {
        "step": np.repeat(np.arange(size.steps), size.batch),
        "slot": np.tile(np.arange(size.batch), size.steps),
        "source": ["image_text"] * rows,
        "reference_id": ids,
        "target_id": ids,
        "caption": [samples["caption"][number] for number in drawn],
        "crop_ratio": np.full(rows, 1.5),
        **{name: rng.random(rows) for name in PlanRow._fields if name.endswith(("_x", "_y"))},
        **{name: np.full(rows, side) for name in ("height", "width", "original_height", "original_width")},
    }
    write_dataset(folder / "filter" / "samples", pa.table(samples), SAMPLES)
    write_dataset(folder / "multiview" / "frames", FRAMES.empty_table(), FRAMES)
    write_dataset(folder / "curriculum" / "plan", pa.table(plan), PLAN, order=("step", "slot"))
    return {name: folder / name for name in ("filter", "multiview", "curriculum")}


def load_models(name: str) -> tuple[Backbone, ImageEncoders]:
    """Load or build the frozen models; for sd15, VAE and text encoder have their full size too."""
    if name == "micro":
        options = loading_options(BackboneConfig())
        encoders = ImageEncoders.from_pretrained(backbone_folder=WEIGHTS_FOLDER, **options)
        return load_backbone(WEIGHTS_FOLDER), encoders
    vae, encoder = AutoencoderKL(**VAE), CLIPTextModel(CLIPTextConfig(max_position_embeddings=TEXT_TOKENS, **CLIP_L))
    for module in (vae, encoder):
        module.eval().requires_grad_(False)
    backbone = random_sd15(_CPU, torch.float32)
    return dataclasses.replace(backbone, vae=vae, text_encoders=[encoder]), random_encoders(_CPU, torch.float32)


def encode(folder: Path, inputs: dict[str, Path], size: Size, backbone: Backbone) -> tuple[float, dict[str, int]]:
    """Write the cache into `folder` like an actor of the stage; returns the CPU seconds and the datasets' rows."""
    job = EncodingJob(
        backbone="",
        setting="backbone.weights",
        pictures=PlanPictures.of(inputs),
        settings=CacheLatentsConfig(batch_size=16),
        folder=folder,
    )
    began = time.process_time()
    rows = write_examples(job, PlanReader(inputs["curriculum"] / "plan"))
    encoder = Encoder(job)
    encoder.backbone = backbone
    for part in parts_of(rows):
        list(encoder(pa.Table.from_pylist([part])))
    return time.process_time() - began, rows


def make_task(way: str, inputs: dict[str, Path], cache: Path, size: Size, models: FrozenModels) -> AdapterTask:
    """Build the training problem, with empty in-memory caches."""
    task = AdapterTask(
        backbone="",
        encoders={"reference_size": models.encoders.reference_size, "tiles": models.encoders.tiles},
        rows=PlanReader(inputs["curriculum"] / "plan"),
        picture=PlanPictures.of(inputs),
        phases=(Phase(0, size.resolution),),
        drop_text=0.05,
        drop_image=0.05,
        drop_both=0.05,
        seed=0,
        cache=StoredEncodings.of(cache) if way == "stage" else None,
    )
    caches = {"capacity": 0} if way == "nothing" else {}
    # The task cannot load random models, because they are in no folder.
    task._frozen = FrozenModels(models.backbone, models.encoders, Cache(**caches), Cache(**caches))
    return task


def train(task: AdapterTask, module: AdapterModule, steps: int) -> Iterator[tuple[float, float]]:
    """Train, and yield the CPU seconds of each step's batch and of the rest of the step."""
    optimizer = torch.optim.AdamW(module.parameters(), 1e-5)
    for step in range(steps):
        began = time.process_time()
        batch = task.batch(step, 0, 1)
        made = time.process_time()
        optimizer.zero_grad()
        module(batch)["loss"].backward()
        optimizer.step()
        yield made - began, time.process_time() - made


def measure(name: str, repetitions: int) -> None:
    """Train in all ways, and print the times."""
    size, (backbone, encoders) = SIZES[name], load_models(name)
    models = FrozenModels(backbone, encoders)
    with tempfile.TemporaryDirectory() as temporary:
        cache = Path(temporary) / "cache"
        cache.mkdir()
        inputs = write_examples_of(Path(temporary), size)
        seconds, rows = encode(cache, inputs, size, backbone)
        print(
            f"stage: {seconds:.2f} s for {rows['latents']} squares and {rows['texts']} captions, "
            f"{1000 * seconds / rows['latents']:.1f} ms per pair; a plan of {size.steps} steps of {size.batch}"
        )
        module = make_task("nothing", inputs, cache, size, models).module()
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        for repetition in range(repetitions):
            for way in WAYS if repetition % 2 else reversed(WAYS):
                task = make_task(way, inputs, cache, size, models)
                batches, rest = zip(*train(task, module, size.steps), strict=True)
                found[way].append((sum(batches) / size.steps, (sum(batches) + sum(rest)) / size.steps))
                batch, step = found[way][-1]
                print(f"{way}: {step:.4f} s per step, of it {batch:.4f} for the batch", flush=True)
    for way in WAYS[1:]:
        pairs = list(zip(found["stage"], found[way], strict=True))
        ratios = [other / stage for (_, stage), (_, other) in pairs]
        saved = [(batch - cached) / other for (cached, _), (batch, other) in pairs]
        print(
            f"{way} / stage: {', '.join(f'{ratio:.3f}' for ratio in ratios)}; median {statistics.median(ratios):.3f}; "
            f"by the batches alone the stage saves {statistics.median(saved):.1%} of a step"
        )


#: Shapes of the tensors of a square and of a caption, at the papers' resolutions.
SHAPES: dict[str, tuple[tuple[int, ...], dict[str, tuple[int, ...]]]] = {
    "micro, 64 pixels": ((4, 16, 16), {"hidden": (16, 128)}),
    "sd15, 512 pixels": ((4, 64, 64), {"hidden": (77, 768)}),
    "sdxl, 1024 pixels": ((4, 128, 128), {"hidden": (77, 2048), "text_embeds": (1280,)}),
}


def print_storage(rows: int = 64) -> None:
    """Print the megabytes of 1,000 rows, in memory and on disk."""
    for name, (latent, text) in SHAPES.items():
        for dtype in (torch.float32, torch.float16):
            sizes = []
            for dataset, shapes in zip(DATASETS, ({"latent": latent}, text), strict=True):
                tensors = {key: torch.randn(rows, *shape) for key, shape in shapes.items()}
                numbers = sum(tensor[0].numel() for tensor in tensors.values()) * dtype.itemsize / 1000
                with tempfile.TemporaryDirectory() as folder:
                    file = Path(folder) / "part-00000.parquet"
                    keys = [f"{number:024d}" for number in range(rows)]
                    write_encodings(file, {}, [encoding_rows(keys, tensors, dtype)])
                    sizes.append(f"{dataset} {numbers:.1f} MB, stored {file.stat().st_size / rows / 1000:.1f}")
            print(f"{name}, {dtype}, 1,000 rows: {'; '.join(sizes)}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--backbone", choices=sorted(SIZES), default="micro")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--storage", action="store_true")
    options = parser.parse_args(arguments)
    if options.storage:
        print_storage()
    else:
        measure(options.backbone, options.repetitions)


if __name__ == "__main__":
    main()
