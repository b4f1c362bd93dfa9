from __future__ import annotations

import pytest
import torch

from tests.benchmarks.training_parts import PARTS, ROWS, Job, Meter, Row, measure, table_row


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_every_row_measures_every_part(row: Row, process_group: None) -> None:
    meter = measure(Job(shape="tiny", row=row, device="cpu", batch=2, steps=2))
    assert meter.parts.keys() == set(PARTS)
    assert all(seconds >= 0 and peak > 1e8 for seconds, peak in meter.parts.values())


def test_a_row_of_the_table_by_hand() -> None:
    parts = {part: (number + 0.5, (number + 1) * 10**9) for number, part in enumerate(PARTS)}
    row = table_row(Row(checkpointing=True, cached=True), Meter(torch.device("cpu"), parts))
    assert row.startswith("| bf16, ZeRO 2, checkpointing, cached | 12.5 | 5.0 | 0.5 s, 1.0 | 1.5 s, 2.0 |")
