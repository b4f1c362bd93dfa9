"""The weights that the tests of the evaluation share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.random_adapter import write_random_adapter
from tests.support.random_backbone import write_random_backbone


@pytest.fixture(scope="package")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The outputs of `base` and `train_adapter`, with random weights."""
    root = tmp_path_factory.mktemp("weights")
    backbone = write_random_backbone(root / "base" / "backbone")
    write_random_adapter(root / "train_adapter" / "adapter", backbone)
    return {name: root / name for name in ("base", "train_adapter")}
