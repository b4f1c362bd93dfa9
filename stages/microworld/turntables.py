"""Turntable sequences in MVImgNet's layout: category/instance/images and COLMAP's text files in sparse/0."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from model.microworld.backgrounds import BACKGROUNDS
from model.microworld.camera import CameraPose, PinholeIntrinsics
from model.microworld.instances import InstanceId
from model.microworld.scenes import Background, SceneShares, ViewBatch, categories_of, render_views
from stages.contract import Reporter
from stages.microworld.config import MicroworldConfig

_IMAGES_HEADER = (
    "# Image list with two lines of data per image:",
    "#   IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME",
    "#   POINTS2D[] as (X, Y, POINT3D_ID)",
)


def write_turntables(folder: Path, settings: MicroworldConfig, seed: int, report: Reporter) -> int:
    """Write `multiview_instances` objects with `views` frames each; return the number of frames."""
    folder.mkdir()
    for number in range(settings.multiview_instances):
        views = render_turntable(number, settings.views, settings.picture_size, seed)
        identity = views.instance
        write_instance(folder / identity.category / str(identity), list(views.image), views.poses, views.intrinsics)
        if number % 20 == 0:
            report.progress(number, settings.multiview_instances, "rendering turntable sequences")
    return settings.multiview_instances * settings.views


def render_turntable(number: int, views: int, picture_size: int, seed: int) -> ViewBatch:
    """Render the frames of one object: a function of its number and the seed."""
    shares, categories = SceneShares(), categories_of("adapter")
    rng = np.random.default_rng([seed, 3, number])
    # The index lies beyond the instances of the web's scenes, so that the web shows none of these objects.
    identity = InstanceId(
        split="adapter", category=categories[number % len(categories)], index=shares.instances + number
    )
    spread = np.linspace(-shares.yaw, shares.yaw, views)
    yaws = spread + rng.uniform(-0.4, 0.4, views) * shares.yaw / views
    pitches = rng.uniform(*shares.pitch) + rng.uniform(-0.05, 0.05, views)
    background = Background(name=str(rng.choice(BACKGROUNDS)), seed=int(rng.integers(2**31)))
    return render_views(identity, yaws.tolist(), pitches.tolist(), background=background, size=picture_size)


def write_instance(
    folder: Path, images: Sequence[np.ndarray], poses: Sequence[CameraPose], intrinsics: PinholeIntrinsics
) -> None:
    """Write one object's frames (H, W, 3) uint8 and its cameras.

    Numbers are written with all digits, so that reading them gives the same floats.
    """
    (folder / "images").mkdir(parents=True)
    sparse = folder / "sparse" / "0"
    sparse.mkdir(parents=True)
    lines = list(_IMAGES_HEADER)
    for number, (pixels, pose) in enumerate(zip(images, poses, strict=True), start=1):
        name = f"{number:03d}.jpg"
        Image.fromarray(pixels).save(folder / "images" / name, quality=95)
        numbers = " ".join(repr(float(value)) for value in (*pose.quaternion, *pose.translation))
        lines += [f"{number} {numbers} 1 {name}", ""]
    (sparse / "images.txt").write_text("\n".join(lines) + "\n")
    camera = f"1 SIMPLE_PINHOLE {intrinsics.width} {intrinsics.height}"
    camera += f" {intrinsics.focal!r} {intrinsics.cx!r} {intrinsics.cy!r}"
    (sparse / "cameras.txt").write_text(f"# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]\n{camera}\n")
    (sparse / "points3D.txt").write_text("# POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[] as (IMAGE_ID, POINT2D_IDX)\n")
