from __future__ import annotations

import math

import pytest
import torch

from tests.benchmarks.visual_attention import entropy_and_information, main, patterned_views


def test_a_palette_has_no_information_and_a_copy_all() -> None:
    palette = torch.full((2, 8, 4), 0.25)
    assert entropy_and_information(palette) == pytest.approx((1.0, 0.0), abs=1e-6)
    copy = torch.eye(4).repeat(2, 1)[None]  # eight places, each sees one of four tokens
    assert entropy_and_information(copy) == pytest.approx((0.0, math.log(4)), abs=1e-6)


def test_the_measures_are_those_of_a_naive_loop() -> None:
    attention = torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(0))
    attention /= attention.sum(-1, keepdim=True)
    entropy = information = 0.0
    for head in attention.tolist():
        mean = [sum(place[token] for place in head) / 6 for token in range(5)]
        for place in head:
            entropy -= sum(p * math.log(p) for p in place) / 6 / 3 / math.log(5)
            information += sum(p * math.log(p / mean[token]) for token, p in enumerate(place)) / 6 / 3
    assert entropy_and_information(attention) == pytest.approx((entropy, information), abs=1e-5)


def test_the_views_are_in_the_subjects_masks() -> None:
    for view in patterned_views(3, seed=0):
        assert view.reference.shape == view.picture.shape == (3, 64, 64)
        assert 0.02 < view.mask.mean() < 0.8


@pytest.mark.slow
def test_the_table_has_every_cross_attention_layer(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--subjects", "2"])
    rows = [line.split("|")[1:4] for line in capsys.readouterr().out.splitlines() if "attentions" in line]
    assert len(rows) == 7
    for _, entropy, information in rows:
        assert 0 < float(entropy) <= 1
        assert 0 <= float(information) < math.log(128)
