"""A pool of rendered scenes on disk: rendered once, memory-mapped by every training problem.

Scenes 2i and 2i + 1 show the same instance in two views with two backgrounds. A scene takes 20 KiB at 64 x 64.
"""

import json
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model.microworld.appearance import PATTERN_NAMES, SECOND_COLOUR_NAMES, visible_appearances
from model.microworld.backgrounds import BACKGROUNDS
from model.microworld.instances import COLOUR_NAMES
from model.microworld.pool_config import PoolConfig
from model.microworld.scenes import SceneShares, SceneSpec, draw_specs, render_scenes
from model.microworld.shapes import CATEGORIES

_VIEWS = 2
_CHUNK = 256  # scenes; a multiple of _VIEWS
_LABELS = ("category", "colour", "second_colour", "pattern", "background", "neighbour")  # rows of labels.npy


@dataclass(frozen=True)
class ScenePool:
    """N scenes as arrays, memory-mapped; labels index CATEGORIES, BACKGROUNDS and the names of patterns and colours."""

    image: NDArray[np.uint8]  # (N, H, W, 3)
    mask: NDArray[np.uint8]  # (N, H, W)
    category: NDArray[np.int64]  # (N,)
    colour: NDArray[np.int64]  # (N,) the main colour
    second_colour: NDArray[np.int64]  # (N,) as far as the view shows it, and so the pattern
    pattern: NDArray[np.int64]  # (N,)
    background: NDArray[np.int64]  # (N,)
    neighbour: NDArray[np.int64]  # (N,) category of the second object, -1 without one
    captions: tuple[str, ...]
    nouns: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.captions)

    def partner(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Indices of the scenes that show the same instances in the other view."""
        return index ^ 1

    @classmethod
    def open(cls, folder: Path) -> "ScenePool":
        """Memory-map a pool that `build_pool` wrote."""
        text = json.loads((folder / "text.json").read_text())
        labels = np.load(folder / "labels.npy").astype(np.int64)
        return cls(
            image=np.load(folder / "image.npy", mmap_mode="r"),
            mask=np.load(folder / "mask.npy", mmap_mode="r"),
            **dict(zip(_LABELS, labels, strict=True)),
            captions=tuple(text["captions"]),
            nouns=tuple(text["nouns"]),
        )


def pool_specs(config: PoolConfig, start: int, stop: int) -> list[SceneSpec]:
    """Scenes `start` to `stop` of a pool."""
    shares = SceneShares(two_objects=config.two_objects)
    return draw_specs(
        config.split, stop, config.seed, start=start, views=_VIEWS, categories=config.categories, shares=shares
    )


@dataclass(frozen=True)
class _Chunk:
    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    labels: NDArray[np.int16]  # (labels, scenes)


def _render_chunk(config: PoolConfig, start: int, stop: int) -> _Chunk:
    specs = pool_specs(config, start, stop)
    batch = render_scenes(specs, config.size)
    return _Chunk(batch.image, batch.mask, _labels(specs))


def _render(config: PoolConfig, workers: int) -> Iterator[tuple[slice, _Chunk]]:
    """All scenes by chunks, in order."""
    chunks = [(start, min(start + _CHUNK, config.count)) for start in range(0, config.count, _CHUNK)]
    if workers == 1:
        for start, stop in chunks:
            yield slice(start, stop), _render_chunk(config, start, stop)
        return
    # A fork of a process with threads can inherit a lock that is never released, such as that of stdin.
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawning, torch.set_num_threads, (1,)) as executor:
        jobs = [executor.submit(_render_chunk, config, start, stop) for start, stop in chunks]
        for (start, stop), job in zip(chunks, jobs, strict=True):
            yield slice(start, stop), job.result()


def build_pool(folder: Path, config: PoolConfig, workers: int = 2) -> ScenePool:
    """Render a pool, or open an existing one of the same world and configuration.

    Args:
        folder: Where the pool is.
        config: Its scenes.
        workers: Processes; with 1, this process renders.
    """
    stamp = folder / "stamp.json"
    if stamp.exists() and stamp.read_text() == config.stamp():
        return ScenePool.open(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    shape = (config.count, config.size, config.size)
    image = np.lib.format.open_memmap(folder / "image.npy", mode="w+", dtype=np.uint8, shape=(*shape, 3))
    mask = np.lib.format.open_memmap(folder / "mask.npy", mode="w+", dtype=np.uint8, shape=shape)
    labels = np.empty((len(_LABELS), config.count), dtype=np.int16)
    for scenes, chunk in _render(config, workers):
        image[scenes], mask[scenes], labels[:, scenes] = chunk.image, chunk.mask, chunk.labels
    image.flush()
    mask.flush()
    np.save(folder / "labels.npy", labels)
    _write_text(folder, config)
    stamp.write_text(config.stamp())  # last: a pool without a stamp is incomplete
    return ScenePool.open(folder)


def _labels(specs: Sequence[SceneSpec]) -> NDArray[np.int16]:
    rows = [
        (
            CATEGORIES.index(spec.subject.instance.category),
            COLOUR_NAMES.index(appearance.colour),
            SECOND_COLOUR_NAMES.index(appearance.second_colour),
            PATTERN_NAMES.index(appearance.pattern),
            BACKGROUNDS.index(spec.background.name),
            CATEGORIES.index(spec.neighbour.instance.category) if spec.neighbour else -1,
        )
        for spec, appearance in zip(specs, visible_appearances([spec.subject for spec in specs]), strict=True)
    ]
    return np.array(rows, dtype=np.int16).T


def _write_text(folder: Path, config: PoolConfig) -> None:
    specs = pool_specs(config, 0, config.count)
    captions, nouns = [spec.caption.text for spec in specs], [spec.caption.noun for spec in specs]
    (folder / "text.json").write_text(json.dumps({"captions": captions, "nouns": nouns}))
