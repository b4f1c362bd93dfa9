"""Adapters as training writes them, and a pipeline with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model.adapters.usage import AdapterUsage
from model.diffusers_pipelines.attachment import attach_adapter
from tests.support.tiny_diffusers_pipelines import (
    METHODS,
    build_pipeline,
    settings_for,
)
from tests.support.tiny_models import ENCODERS
from tests.support.tiny_pipelines import build


@pytest.fixture(scope="session")
def adapters(
    tmp_path_factory: pytest.TempPathFactory, sd_folder: Path, sdxl_folder: Path
) -> dict[tuple[str, str], Path]:
    """Family and method -> the folder of an adapter, as training writes it."""
    folders = {}
    for family, base in (("sd", sd_folder), ("sdxl", sdxl_folder)):
        for method, kind in METHODS.items():
            folder = tmp_path_factory.mktemp("adapter")
            adapter = build(base, method=kind).adapter
            assert adapter is not None
            adapter.save_pretrained(folder)
            AdapterUsage(image_encoders=ENCODERS, inference=settings_for(family), base_model=None).write(folder)
            folders[family, method] = folder
    return folders


@pytest.fixture
def pipe(sd_folder: Path, adapters: dict[tuple[str, str], Path]) -> Any:
    return attach_adapter(build_pipeline("StableDiffusionPipeline", sd_folder), adapters["sd", "realcustom++"])
