"""What a step's prediction says of the finished picture."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from model.guidance.sampling import clean_latents


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_right_prediction_gives_the_clean_latents(kind: str) -> None:
    clean, noise = torch.randn(2, 2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    alpha_bar = torch.tensor(0.3)
    signal, spread = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    predictions = {"epsilon": noise, "v_prediction": signal * noise - spread * clean, "sample": clean}
    scheduler = SimpleNamespace(config=SimpleNamespace(prediction_type=kind))
    found = clean_latents(scheduler, predictions[kind], signal * clean + spread * noise, alpha_bar)
    torch.testing.assert_close(found, clean)
