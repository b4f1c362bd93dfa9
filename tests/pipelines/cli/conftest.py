"""A run folder, one with a trained adapter, and the picture of a subject."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines.config.keys import flat_values
from pipelines.config.loading import config_to_dict, load_config
from pipelines.fingerprint import Ingredients
from pipelines.store.store import Output, Store
from stages.config import Config
from stages.contract import StageResult
from stages.local_copies import local_copy
from tests.support.random_adapter import write_random_adapter
from tests.support.tiny_models import write_sd
from tests.support.toy_pipeline import commit_stage


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return f"run.folder={tmp_path / 'run'}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Output:
    """A run folder with a tiny base and an adapter with random weights."""
    store = Store(tmp_path_factory.mktemp("trained") / "run")
    config = load_config("micro", [f"run.folder={store.folder}", "inference.steps=2", "inference.mask_steps=1"])
    base = Ingredients(config={}, inputs={}, files={}, code="base")
    work = store.begin("base", base.fingerprint, restart=True)
    write_sd(local_copy(work.output) / "backbone")
    backbone = local_copy(commit_stage(store, "base", StageResult(), base, work).folder / "backbone")
    mine = Ingredients(config=config_slice(config), inputs={"base": base.fingerprint}, files={}, code="adapter")
    work = store.begin("train_adapter", mine.fingerprint, restart=True)
    write_random_adapter(local_copy(work.output) / "adapter", backbone)
    adapter = commit_stage(store, "train_adapter", StageResult(), mine, work)
    store.write_latest(config_to_dict(config), {"base": base.fingerprint, "train_adapter": mine.fingerprint})
    return adapter


def config_slice(config: Config) -> dict[str, Any]:
    return {key: value for key, value in flat_values(config).items() if key.startswith("backbone.")}


@pytest.fixture
def subject(tmp_path: Path) -> Path:
    path = tmp_path / "cat.png"
    Image.new("RGB", (40, 30), "red").save(path)
    return path
