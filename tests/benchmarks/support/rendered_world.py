"""Training examples of the microworld in memory: captioned scenes, and view pairs from turntables, without files."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, permutations
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from model.micro_sd.architectures import IMAGE_SIZE
from model.microworld.scenes import draw_specs, render_scenes
from model.pictures.decoding import to_png
from model.training.adapter_examples import PlanRow
from model.training.curriculum import Recipe
from model.training.target_sizes import Phase, TargetSizes
from stages.curriculum.stage import plan_steps
from stages.microworld.turntables import render_turntable


@dataclass(frozen=True, kw_only=True)
class WorldSize:
    """The number of scenes, and of objects on turntables with their views."""

    scenes: int
    objects: int
    views: int

    def scaled(self, scale: float) -> WorldSize:
        """`scale` times the scenes and objects, at least one of each."""
        scenes, objects = (max(1, round(count * scale)) for count in (self.scenes, self.objects))
        return WorldSize(scenes=scenes, objects=objects, views=self.views)


class Picture(NamedTuple):
    """A rendered picture with the mask of its subject (H, W), bytes."""

    png: bytes
    mask: NDArray[np.uint8]
    text: str  # the caption of a scene, the category of a view


@dataclass(frozen=True, kw_only=True)
class RenderedWorld:
    """Pictures by id, and the tables that a training plan is made from.

    Attributes:
        pictures: Id -> picture.
        samples: Columns sample_id, caption and sizes: the scenes.
        pairs: Columns reference_frame_id, target_frame_id, category and sizes: all ordered pairs of views of an object.
    """

    pictures: dict[str, Picture]
    samples: pa.Table
    pairs: pa.Table

    def plan(self, recipe: Recipe, seed: int) -> list[list[PlanRow]]:
        """The rows of each step."""
        sizes = TargetSizes(phases=(Phase(0, IMAGE_SIZE),))
        plan = plan_steps(range(recipe.steps), self.samples, self.pairs, recipe, sizes, seed)
        rows = [PlanRow(**row) for row in plan.select(list(PlanRow._fields)).to_pylist()]
        return [rows[start : start + recipe.batch_size] for start in range(0, len(rows), recipe.batch_size)]

    def picture(self, picture_id: str) -> bytes:
        """An encoded picture."""
        return self.pictures[picture_id].png

    def masks(self, rows: Sequence[PlanRow]) -> Tensor:
        """The masks of the rows' targets (B, H, W), in [0, 1]."""
        return torch.from_numpy(np.stack([self.pictures[row.target_id].mask for row in rows])).float() / 255


@lru_cache(maxsize=1)
def render_world(size: WorldSize, seed: int) -> RenderedWorld:
    """Render objects of the split `adapter`; the last world is kept."""
    scenes = {f"scene-{number}": scene for number, scene in _render(partial(_scenes, seed=seed), size.scenes, 256)}
    turntables = partial(_turntables, views=size.views, seed=seed)
    views = {f"view-{number}": view for number, view in _render(turntables, size.objects, 32)}
    groups = [list(views)[first : first + size.views] for first in range(0, len(views), size.views)]
    size_of_all = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    pairs = [
        {"reference_frame_id": one, "target_frame_id": other, "category": views[other].text, **size_of_all}
        for group in groups
        for one, other in permutations(group, 2)
    ]
    sizes = {**size_of_all, "original_height": IMAGE_SIZE, "original_width": IMAGE_SIZE}
    samples = [{"sample_id": name, "caption": scene.text, **sizes} for name, scene in scenes.items()]
    tables = pa.Table.from_pylist(samples), pa.Table.from_pylist(pairs)
    return RenderedWorld(pictures=scenes | views, samples=tables[0], pairs=tables[1])


def _render(job: Callable[[int, int], list[Picture]], count: int, chunk: int) -> Iterator[tuple[int, Picture]]:
    """Number the pictures of `job(start, stop)` over `count` items; more than one chunk takes a process per core."""
    starts = range(0, count, chunk)
    stops = [min(start + chunk, count) for start in starts]
    if len(starts) == 1:
        yield from enumerate(job(0, count))
        return
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), spawning, torch.set_num_threads, (1,)) as executor:
        yield from enumerate(chain.from_iterable(executor.map(job, starts, stops)))


def _scenes(start: int, stop: int, seed: int) -> list[Picture]:
    specs = draw_specs("adapter", stop, seed, start=start)
    batch = render_scenes(specs, IMAGE_SIZE)
    return _encode(batch.image, batch.mask, [spec.caption.text for spec in specs])


def _turntables(start: int, stop: int, views: int, seed: int) -> list[Picture]:
    pictures = []
    for number in range(start, stop):
        batch = render_turntable(number, views, IMAGE_SIZE, seed)
        pictures += _encode(batch.image, batch.mask, [batch.instance.category] * views)
    return pictures


def _encode(images: NDArray[np.uint8], masks: NDArray[np.uint8], texts: Sequence[str]) -> list[Picture]:
    pngs = [to_png(Image.fromarray(image)) for image in images]
    return [Picture(*picture) for picture in zip(pngs, masks, texts, strict=True)]
