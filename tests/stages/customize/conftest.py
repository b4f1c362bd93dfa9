"""What the tests of the stage `customize` share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.random_backbone import write_random_backbone


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the stage `base`: a micro Stable Diffusion of random weights."""
    folder = tmp_path_factory.mktemp("base")
    write_random_backbone(folder / "backbone")
    return folder
