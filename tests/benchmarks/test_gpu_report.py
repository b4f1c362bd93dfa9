from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks import gpu_inference, gpu_report


@pytest.mark.slow
def test_the_table_of_inference_on_a_cpu() -> None:
    rows = list(gpu_inference.measured_rows(["sd15", "sdxl"], torch.device("cpu"), [1, 2], narrow=True))
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert cells[0] == ["shape", "way", "s/picture, batch 1", "s/picture, batch 2"]
    ways = ["text-to-image", "exact mask", "fast mask", "diffusers' IP-Adapter"]
    assert [row[:2] for row in cells[2:]] == [[shape, way] for shape in ("sd15", "sdxl") for way in ways]
    assert all(float(cell) > 0 for row in cells[2:] for cell in row[2:])


def test_a_table_that_fails_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Iterator[str]:
        yield "| half |"
        raise RuntimeError("out of memory")

    def sections(*_: Any, **__: Any) -> dict[str, Any]:
        return {"Whole": lambda: iter(["| a |", "| 1 |"]), "Broken": fail, "Last": lambda: iter(["| z |"])}

    monkeypatch.setattr(gpu_report, "sections", sections)
    gpu_report.write_page(tmp_path / "page.md", torch.device("cpu"), 1, narrow=True)
    page = (tmp_path / "page.md").read_text()
    assert (
        "## Whole\n\n| a |\n| 1 |\n\n## Broken\n\n| half |\n\nRuntimeError: out of memory\n\n## Last\n\n| z |\n" in page
    )


@pytest.mark.slow
def test_the_base_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    rows = list(gpu_report.base_rows(torch.device("cpu"), began + 3))
    assert rows[:2] == ["| part | steps done | of |", "| --- | --- | --- |"]
    assert time.monotonic() - began < 60
