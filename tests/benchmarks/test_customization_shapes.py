from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.concepts.customization_settings import Method
from tests.benchmarks.customization_shapes import METHODS, Job, Measurement, markdown, measure
from tests.support.customization import make_subject
from tests.support.tiny_models import write_sd, write_sdxl


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("half", [None, torch.bfloat16], ids=["fp32", "bf16"])
def test_every_method_goes_into_a_file_and_back(method: Method, half: torch.dtype | None, tmp_path: Path) -> None:
    (write_sd if half is None else write_sdxl)(tmp_path)
    subject = make_subject("sks" if method == "dreambooth" else "[v]")
    found = measure(Job(backbone=str(tmp_path), subject=subject, method=method, half=half))
    assert min(found.trained, found.loading, found.training, found.file) > 0
    assert found.change > 0


def test_the_table() -> None:
    found = Measurement(trained=768, loading=2**30, training=5 * 2**29, seconds=20.06, file=3460, change=0.0564)
    assert markdown({"xti": found}).splitlines()[-1] == "| xti | 768 | 1.0 | 2.5 | 20.1 | 0.00 | 0.056 |"
