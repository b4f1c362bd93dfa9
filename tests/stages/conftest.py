"""What tests of different stages share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.registered_model import Registry


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """A model registry; version 1 of `realword-micro` is its champion. Tests that add versions use other names."""
    from tests.support.registered_model import Registry  # imports MLflow and torch

    registry = Registry(tmp_path_factory.mktemp("registry"))
    registry.register(0.6)
    return registry
