from __future__ import annotations

import pytest
import torch

from model.devices import fastest_device


@pytest.mark.parametrize(("found", "device"), [(None, "cpu"), ("cuda", "cuda"), ("mps", "mps")])
def test_an_accelerator_is_used_where_there_is_one(
    found: str | None, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerator = None if found is None else torch.device(found)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: accelerator)
    assert str(fastest_device()) == device
