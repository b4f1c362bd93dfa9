"""A writer of prompts for a server on this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.prompt_writer import SmallWriter


@pytest.fixture
def writer(tmp_path: Path) -> Callable[..., SmallWriter]:
    """`writer(url, **settings of the endpoint)`; its answers lie in `tmp_path`."""

    def make(url: str, **settings: Any) -> SmallWriter:
        return SmallWriter(url, tmp_path, settings)

    return make
