"""Small data that the profile sd15 can run on, and what `doctor` says of data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipelines.config.loading import load_config
from pipelines.doctor.data import check
from pipelines.doctor.findings import Finding, Level, Setup

LAION: dict[str, Any] = {
    "URL": ["http://example.org/1.jpg"],
    "TEXT": ["a dog"],
    "AESTHETIC_SCORE": [6.0],
    "similarity": [0.3],
    "punsafe": [0.1],
    "pwatermark": [0.1],
}


def paint(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (20, 30), (number, 40, 90)).save(folder / f"{number}.png")


def findings(settings: list[str], profile: str = "sd15") -> list[Finding]:
    return list(check(Setup.of(load_config(profile, settings))))


def problems(settings: list[str], profile: str = "sd15") -> list[str]:
    found = [finding.text for finding in findings(settings, profile) if finding.level is Level.PROBLEM]
    assert all("\n" not in text and not text.endswith(".") for text in found)
    return found


def about(key: str, settings: list[str]) -> list[Finding]:
    return [finding for finding in findings(settings) if finding.text.startswith(f"{key}: ")]


def write_data(folder: Path) -> list[str]:
    """Data that are all right; returns the settings that name them."""
    laion, views = folder / "laion", folder / "mvimgnet"
    laion.mkdir()
    pq.write_table(pa.table(LAION), laion / "part-0.parquet")
    (views / "7" / "a" / "images").mkdir(parents=True)
    paint(folder / "my_dog", 3)
    for name in ("dog", "backpack"):
        paint(folder / "dreambench" / name, 2)
    places = {
        "ingest.metadata": laion,
        "multiview.folders": f"[{views}]",
        "customize.subjects": f"[{folder / 'my_dog'}]",
        "evaluate.subjects_folder": folder / "dreambench",
        "run.folder": folder / "run",
    }
    return [f"{key}={value}" for key, value in places.items()]
