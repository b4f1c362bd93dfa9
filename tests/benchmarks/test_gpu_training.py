from __future__ import annotations

import pytest
import torch

from tests.benchmarks.gpu_training import SHAPES, count_flops, days, measured_rows, planned_rows


def test_flops_of_the_small_image_encoder_by_hand() -> None:
    """Five views of 2 x 2 patches and a class token; a product of (n, k) and (k, m) is 2 n k m."""
    width, patches, tokens = 64, 4, 5
    embedding = 2 * patches * (3 * 16 * 16) * width
    attention = 4 * 2 * tokens * width * width + 2 * 2 * tokens * tokens * width
    mlp = 2 * 2 * tokens * width * width
    assert count_flops("tiny").encoders == 5 * (embedding + 2 * (attention + mlp))


def test_days_by_hand() -> None:
    """160,000 steps of 8 images of 1 TFLOP, half of 8 times 312 TFLOP/s: 1026 seconds."""
    assert days(1e12, 8, 0.5) == pytest.approx(160_000 * 8 / (8 * 312 * 0.5) / 86_400)


def test_the_measured_table_on_a_cpu() -> None:
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in measured_rows(["tiny"], torch.device("cpu"), 1)]
    (measured,) = rows[2:]
    assert measured[:3] == ["tiny", "2", "off"]
    assert float(measured[3]) > 0
    assert measured[4:] == ["unknown", "unknown"]


def test_the_planned_table() -> None:
    (row,) = list(planned_rows(["tiny"], 0.5))[2:]
    assert row.split("|")[4].strip() == str(8 * SHAPES["tiny"].batch)
