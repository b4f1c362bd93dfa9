"""A folder of held-out subjects, as the stage `microworld` writes it, with noise for pictures."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def png(seed: int, size: tuple[int, int] = (64, 64)) -> bytes:
    """Noise, encoded."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(256, size=(*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_subjects(folder: Path, words: Mapping[str, str], views: int = 3, listing: bool = True) -> Path:
    """Subject `n` has the pictures `png(10 * n)`, `png(10 * n + 1)`, ..."""
    entries = []
    for number, (name, word) in enumerate(words.items()):
        (folder / name).mkdir(parents=True)
        pictures = [f"{name}/{view:02d}.png" for view in range(views)]
        for view, path in enumerate(pictures):
            (folder / path).write_bytes(png(10 * number + view))
        entries.append({"subject": name, "word": word, "category": word, "pictures": pictures, "album": pictures[:1]})
    if listing:
        (folder / "subjects.json").write_text(json.dumps(entries))
    return folder


def write_pairs(folder: Path, pairs: Sequence[Sequence[str]]) -> Path:
    """Pair `n` is shown together in `png(1000 + n)`."""
    entries = []
    for number, names in enumerate(pairs):
        (folder / f"pair-{number}.png").write_bytes(png(1000 + number))
        entries.append({"subjects": list(names), "together": f"pair-{number}.png"})
    (folder / "pairs.json").write_text(json.dumps(entries))
    return folder
