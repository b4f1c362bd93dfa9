"""Tiny backbones, written once a session; each test loads its own, so that none sees another's processors."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.backbone import Backbone, load_backbone
from tests.support.tiny_models import write_sd, write_sdxl


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sd(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="session")
def sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture
def sd(sd_folder: Path) -> Backbone:
    return load_backbone(sd_folder)


@pytest.fixture
def sdxl(sdxl_folder: Path) -> Backbone:
    return load_backbone(sdxl_folder)
