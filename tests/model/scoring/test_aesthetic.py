"""LAION's aesthetic heads in both published forms, and files that are not aesthetic heads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model.scoring.aesthetic import AestheticHead, AestheticHeadError

WIDTHS = (12, 10, 6, 4, 3, 1)


def v2() -> nn.Sequential:
    """The layers of `improved-aesthetic-predictor`, with its dropout, at small widths."""
    return nn.Sequential(
        nn.Linear(WIDTHS[0], WIDTHS[1]),
        nn.Dropout(0.2),
        nn.Linear(WIDTHS[1], WIDTHS[2]),
        nn.Dropout(0.2),
        nn.Linear(WIDTHS[2], WIDTHS[3]),
        nn.Dropout(0.1),
        nn.Linear(WIDTHS[3], WIDTHS[4]),
        nn.Linear(WIDTHS[4], WIDTHS[5]),
    ).eval()


def test_the_second_version_as_torch_saves_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs, embeddings = v2(), torch.randn(5, 12)
    torch.save({f"layers.{name}": tensor for name, tensor in theirs.state_dict().items()}, tmp_path / "v2.pth")
    head = AestheticHead.from_pretrained(tmp_path / "v2.pth")
    assert head.width == 12
    torch.testing.assert_close(head(embeddings), theirs(embeddings)[:, 0])


def test_the_first_version_as_safetensors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs, embeddings = nn.Linear(12, 1), torch.randn(5, 12)
    save_file(theirs.state_dict(), tmp_path / "v1.safetensors")
    torch.testing.assert_close(
        AestheticHead.from_pretrained(tmp_path / "v1.safetensors")(embeddings), theirs(embeddings)[:, 0]
    )


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"unet.weight": torch.ones(1, 2)}, "it has a tensor 'unet.weight'"),
        ({"weight": torch.ones(3, 2), "bias": torch.ones(3)}, "do not end in one number"),
        ({"weight": torch.ones(1, 2)}, "do not end in one number"),
        ({}, "do not end in one number"),
        (
            {
                "layers.0.weight": torch.ones(3, 2),
                "layers.0.bias": torch.ones(3),
                "layers.2.weight": torch.ones(1, 4),
                "layers.2.bias": torch.ones(1),
            },
            "do not fit together",
        ),
        ({"weight": torch.ones(1, 2), "bias": torch.ones(2)}, "do not fit together"),
    ],
)
def test_another_state_dict_is_refused(state: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "head.pth")
    with pytest.raises(AestheticHeadError, match=message):
        AestheticHead.from_pretrained(tmp_path / "head.pth")


def test_an_unreadable_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("no weights")
    for name in ("text.pth", "missing.pth"):
        with pytest.raises(AestheticHeadError, match=rf"the aesthetic head .*{name} cannot be read"):
            AestheticHead.from_pretrained(tmp_path / name)
