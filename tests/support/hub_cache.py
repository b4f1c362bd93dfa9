"""The Hugging Face hub's cache on a disk, as its library lays it out; and a process that reads nothing else."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants


def use_hub_cache(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Path:
    """Let this process find hub ids in `cache` alone, as with HF_HUB_OFFLINE=1."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


def add_to_hub_cache(cache: Path, hub_id: str, folder: Path, revision: str = "main", kind: str = "models") -> Path:
    """Put a folder's files into the cache as `hub_id`; returns the snapshot's folder."""
    repository = cache / f"{kind}--{hub_id.replace('/', '--')}"
    commit = hashlib.sha1(f"{folder}{revision}".encode()).hexdigest()
    reference = repository / "refs" / revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(commit)
    snapshot = repository / "snapshots" / commit
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot
