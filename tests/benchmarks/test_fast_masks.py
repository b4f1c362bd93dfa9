from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.adapters.image_encoder import ImageEncoders
from model.adapters.realcustom_plus_plus import RealCustomPlusAdapter
from model.backbone import load_backbone
from model.micro_sd.weights import WEIGHTS_FOLDER
from tests.benchmarks.fast_masks import Painted, compare, draw_cases, main


def test_cases_are_unseen_objects_in_two_pictures_each() -> None:
    cases = draw_cases(12)
    assert len({case.instance for case in cases}) == 12
    assert cases[0].prompt == f"a photo of a {cases[0].word} on the beach"
    assert {case.background for case in cases[:10]} == {case.background for case in cases}
    assert all(case.reference.tobytes() != case.view.tobytes() for case in cases)
    assert all(case.instance.startswith(f"test-{case.word}-") for case in cases)


def test_columns_by_hand() -> None:
    """Two pictures; of 24 steps the first 12 find masks. From step 6 on half of the second one's fast mask is wrong."""
    exact = torch.zeros(24, 2, 1, 4)
    exact[:, :, 0, :2] = 0.5
    fast = exact.clone()
    fast[6:, 1] = torch.tensor([0.0, 1.0, 0.2, 0.0])  # one of two, and another one: 1 / 3
    columns = compare(
        Painted(exact, similarity=torch.tensor([0.5, 0.5]), background=torch.tensor([1.0, 0.5])),
        Painted(fast, similarity=torch.tensor([0.75, 0.5]), background=torch.tensor([0.5, 0.5])),
        ["first", "second"],
    )
    assert {name: round(one.mean, 4) for name, one in columns.items()} == {
        "IoU, steps with new masks": round((1 + (6 + 6 / 3) / 12) / 2, 4),
        "IoU, all steps": round((1 + (6 + 18 / 3) / 24) / 2, 4),
        "similarity, difference": 0.125,
        "background, difference": -0.25,
    }


def test_exact_masks_are_those_of_the_exact_mode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoders = ImageEncoders.from_pretrained(("clip", "dino"), WEIGHTS_FOLDER, ((0, 1, 2), (0, 1, 2)), 64, 2)
    unet = load_backbone(WEIGHTS_FOLDER).unet
    torch.manual_seed(0)
    RealCustomPlusAdapter.from_unet(unet, encoders.width).save_pretrained(tmp_path)
    main([str(tmp_path), "--count", "1", "--steps", "8", "--mask-every", "1", "4"])
    same, held = capsys.readouterr().out.splitlines()
    assert same.startswith("k = 1: IoU, steps with new masks 1.000 (1.000 to 1.000); IoU, all steps 1.000")
    assert "similarity, difference 0.000 (0.000 to 0.000)" in same
    assert held.startswith("k = 4: IoU, steps with new masks 0.")
