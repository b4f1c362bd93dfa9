"""Held-out subjects: objects that no training data shows, each in several pictures with its mask."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from model.microworld.captions import GENERIC_NOUN
from model.microworld.scenes import SceneShares, categories_of, draw_specs, render_scenes
from model.microworld.shapes import HELD_OUT_CATEGORIES

SUBJECTS_PER_CATEGORY = 2
PICTURES_PER_SUBJECT = 5


def write_subjects(folder: Path, picture_size: int, seed: int) -> int:
    """Write `word/instance/NN.png`, `NN_mask.png` and `subjects.json`; return the number of subjects.

    The class word is the category; objects of a category that the base model has never seen are called "toy".
    Categories take turns in `subjects.json`, so that its first few subjects already differ. Its paths are relative to
    `folder`.
    """
    categories = categories_of("test")
    shares = SceneShares(two_objects=0.0)
    listing = []
    for turn in range(SUBJECTS_PER_CATEGORY):
        for category in HELD_OUT_CATEGORIES + tuple(name for name in categories if name not in HELD_OUT_CATEGORIES):
            specs = draw_specs(
                "test",
                PICTURES_PER_SUBJECT,
                seed + turn * 1000 + categories.index(category),
                views=PICTURES_PER_SUBJECT,
                categories=[category],
                shares=shares,
            )
            word = GENERIC_NOUN if category in HELD_OUT_CATEGORIES else category
            subject = str(specs[0].subject.instance)
            place = folder / word / subject
            place.mkdir(parents=True)
            scenes = render_scenes(specs, picture_size)
            for number, scene in enumerate(scenes[index] for index in range(len(scenes))):
                Image.fromarray(scene.image).save(place / f"{number:02d}.png")
                Image.fromarray(scene.mask).save(place / f"{number:02d}_mask.png")
            pictures = [f"{word}/{subject}/{number:02d}.png" for number in range(len(scenes))]
            listing.append({"subject": subject, "word": word, "category": category, "pictures": pictures})
    (folder / "subjects.json").write_text(json.dumps(listing, indent=2) + "\n")
    return len(listing)
