"""LAION's aesthetic predictors: a small head on CLIP's picture embeddings.

Two forms of state dict are published, both for the unit embeddings of CLIP ViT-L/14: a single linear layer (LAION
Aesthetics V1, `aesthetic-predictor`) and five linear layers without activations, with dropout between them (V2,
`improved-aesthetic-predictor`, whose scores are LAION's column AESTHETIC_SCORE).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from model.adapters.adapter import AdapterError
from model.adapters.released_weights import read_state_dict
from model.errors import ModelError

_KEY = re.compile(r"(?:layers\.(\d+)\.)?(weight|bias)")


class AestheticHeadError(ModelError):
    """A file is not an aesthetic predictor; the message says why."""


class AestheticHead(nn.Module):
    """A stack of linear layers; LAION's dropout has no effect at inference and is left out.

    Args:
        widths: Of the embedding and of each layer, the last one 1: (768, 1024, 128, 64, 16, 1) for V2, (768, 1) for V1.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(widths)))

    @property
    def width(self) -> int:
        """Width of the input embeddings."""
        first = self.layers[0]
        assert isinstance(first, nn.Linear)
        return first.in_features

    @classmethod
    def from_pretrained(cls, path: str | Path) -> AestheticHead:
        """Load either form from a .safetensors file, or from a .pth file that holds only tensors.

        Raises:
            AestheticHeadError: The file cannot be read, or holds something else.
        """
        try:
            state = read_state_dict(path)
        except (AdapterError, OSError) as error:
            raise AestheticHeadError(f"the aesthetic head {path} cannot be read: {error}") from error
        layers = _linear_layers(state, path)
        widths = (layers[0][0].shape[1], *(weight.shape[0] for weight, _ in layers))
        head = cls(widths)
        renamed = {f"layers.{n}.weight": weight for n, (weight, _) in enumerate(layers)}
        renamed |= {f"layers.{n}.bias": bias for n, (_, bias) in enumerate(layers)}
        head.load_state_dict({name: tensor.float() for name, tensor in renamed.items()})
        return head.eval().requires_grad_(False)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Unit picture embeddings (B, D) -> scores (B,), about 1 to 10."""
        return self.layers(embeddings).squeeze(-1)


def _linear_layers(state: Mapping[str, Tensor], path: str | Path) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias of every layer, in order."""
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        match = _KEY.fullmatch(name)
        if match is None:
            raise AestheticHeadError(f"{path} is not LAION's aesthetic head: it has a tensor {name!r}.")
        found.setdefault(int(match[1] or 0), {})[match[2]] = tensor
    layers = [found[number] for number in sorted(found)]
    fit = all(set(layer) == {"weight", "bias"} and layer["weight"].dim() == 2 for layer in layers)
    if not layers or not fit or layers[-1]["weight"].shape[0] != 1:
        raise AestheticHeadError(f"{path} is not LAION's aesthetic head: its layers do not end in one number.")
    chained = all(a["weight"].shape[0] == b["weight"].shape[1] for a, b in itertools.pairwise(layers))
    if not chained or any(layer["bias"].shape != layer["weight"].shape[:1] for layer in layers):
        raise AestheticHeadError(f"{path} is not LAION's aesthetic head: its layers do not fit together.")
    return [(layer["weight"], layer["bias"]) for layer in layers]
