"""The uninterrupted run of all stages that these tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiny_run import run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run folder, and what the run printed."""
    folder = tmp_path_factory.mktemp("end_to_end") / "run"
    return folder, run(folder, "--stage", "all")
