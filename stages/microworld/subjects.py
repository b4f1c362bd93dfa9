"""Held-out subjects: objects that no training data shows, each in some pictures with masks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from model.microworld.captions import GENERIC_NOUN
from model.microworld.instances import InstanceId
from model.microworld.scenes import SceneShares, SceneSpec, categories_of, draw_spec, draw_specs, render_scenes
from model.microworld.shapes import CATEGORIES, HELD_OUT_CATEGORIES, TRAINED_CATEGORIES

SUBJECTS_PER_CATEGORY = 5
PICTURES_PER_SUBJECT = 5
ALBUM_PICTURES = 4
_ALBUM_JITTER = 0.05  # radians


def write_subjects(folder: Path, picture_size: int, seed: int) -> int:
    """Write `word/instance/NN.png`, `NN_mask.png`, `album_NN.png`, `subjects.json` and pairs; returns their number.

    The pictures of a subject have nothing in common but the subject. Its album has what a customization method can
    overfit to: one background, one neighbour, almost one pose.

    The class word is the category; objects of a category that the base model has never seen are called "toy". The
    categories alternate in `subjects.json`, so that its first entries already differ. Its paths are relative to
    `folder`.
    """
    listing: list[dict[str, Any]] = []
    instances: dict[str, InstanceId] = {}
    categories = categories_of("test")
    for turn in range(SUBJECTS_PER_CATEGORY):
        for category in HELD_OUT_CATEGORIES + tuple(name for name in categories if name not in HELD_OUT_CATEGORIES):
            specs = draw_specs(
                "test",
                PICTURES_PER_SUBJECT,
                seed + turn * 1000 + categories.index(category),
                views=PICTURES_PER_SUBJECT,
                categories=[category],
                shares=SceneShares(two_objects=0.0),
            )
            listing.append(_write_subject(folder, category, specs, picture_size))
            instances[listing[-1]["subject"]] = specs[0].subject.instance
    (folder / "subjects.json").write_text(json.dumps(listing, indent=2) + "\n")
    _write_albums(folder, listing, instances, picture_size)
    _write_pairs(folder, listing, instances, picture_size, seed)
    return len(listing)


def _write_subject(folder: Path, category: str, specs: Sequence[SceneSpec], picture_size: int) -> dict[str, Any]:
    """Write the pictures and masks of one subject; returns its entry of `subjects.json`."""
    word = GENERIC_NOUN if category in HELD_OUT_CATEGORIES else category
    subject = str(specs[0].subject.instance)
    subject_folder = folder / word / subject
    subject_folder.mkdir(parents=True)
    scenes = render_scenes(specs, picture_size)
    for number, scene in enumerate(scenes[index] for index in range(len(scenes))):
        Image.fromarray(scene.image).save(subject_folder / f"{number:02d}.png")
        Image.fromarray(scene.mask).save(subject_folder / f"{number:02d}_mask.png")
    pictures = [f"{word}/{subject}/{number:02d}.png" for number in range(len(scenes))]
    album = [f"{word}/{subject}/album_{number:02d}.png" for number in range(ALBUM_PICTURES)]
    return {"subject": subject, "word": word, "category": category, "pictures": pictures, "album": album}


def _write_albums(
    folder: Path, listing: Sequence[dict[str, Any]], instances: dict[str, InstanceId], picture_size: int
) -> None:
    """Write the album of every subject, all rendered together."""
    specs = [spec for entry in listing for spec in _album_specs(instances[entry["subject"]])]
    names = [name for entry in listing for name in entry["album"]]
    for name, picture in zip(names, render_scenes(specs, picture_size).image, strict=True):
        Image.fromarray(picture).save(folder / name)


def _album_specs(instance: InstanceId) -> list[SceneSpec]:
    """Scenes of a subject beside one object of another category, seen from almost the same direction."""
    rng = np.random.default_rng([instance.index, CATEGORIES.index(instance.category)])
    others = [name for name in TRAINED_CATEGORIES if name != instance.category]
    neighbour = InstanceId(split="test", category=str(rng.choice(others)), index=instance.index)
    scene = draw_spec(rng, instance, SceneShares(), neighbour=neighbour)
    turns = rng.uniform(-_ALBUM_JITTER, _ALBUM_JITTER, ALBUM_PICTURES)
    return [replace(scene, subject=replace(scene.subject, yaw=scene.subject.yaw + float(turn))) for turn in turns]


def _write_pairs(
    folder: Path, listing: Sequence[dict[str, Any]], instances: dict[str, InstanceId], picture_size: int, seed: int
) -> None:
    """Write `pairs.json` and `pairs/NN.png`: pairs of subjects with different words, together in one scene."""
    pairs = disjoint_pairs([entry["word"] for entry in listing])
    names = [(listing[first]["subject"], listing[second]["subject"]) for first, second in pairs]
    specs = [
        draw_spec(np.random.default_rng([seed, number]), instances[first], SceneShares(), neighbour=instances[second])
        for number, (first, second) in enumerate(names)
    ]
    (folder / "pairs").mkdir()
    entries = []
    for number, (pair, picture) in enumerate(zip(names, render_scenes(specs, picture_size).image, strict=True)):
        together = f"pairs/{number:02d}.png"
        Image.fromarray(picture).save(folder / together)
        entries.append({"subjects": pair, "together": together})
    (folder / "pairs.json").write_text(json.dumps(entries, indent=2) + "\n")


def disjoint_pairs(words: Sequence[str]) -> list[tuple[int, int]]:
    """Pair each index with the next unpaired index that has another word; an index without one is left out."""
    free, pairs = list(range(len(words))), []
    while free:
        first = free.pop(0)
        second = next((other for other in free if words[other] != words[first]), None)
        if second is not None:
            free.remove(second)
            pairs.append((first, second))
    return pairs
