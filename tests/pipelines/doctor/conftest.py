"""Data for `doctor`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.doctor_data import write_data


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    """Of the profile sd15 on small data that are all right."""
    return write_data(tmp_path)
