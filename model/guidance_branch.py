"""The guidance branch (RealCustom++ Sec. III-D1, Eq. 12): text alone through the UNet, for its attention only.

Which layers: cross-attention of low resolution says *what* (the target word), self-attention of the highest resolution
says *where exactly*. "Low" depends on the backbone and is configured as the downscales relative to the largest
attention grid: SD-1.5 [4] (16 x 16 of 64 x 64), SDXL [2] (32 x 32 of 64 x 64), micro [1] (16 x 16 is all it has;
its coarser maps localise worse).

What it costs: Eq. 15 does not use the branch's prediction, so its pass ends where the last of these layers has its
queries and keys: an exception that the recorder raises there takes the shortest way out of diffusers' UNet, which is
neither copied nor changed. Maps are made as the layers come by; only self-attention that comes before the last
cross-attention has to wait, as queries and keys, until M_cross is known.

Legend of shapes: as in `model.mask_guidance`.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.backbone import Backbone, PromptEmbedding
from model.mask_guidance import Grid, attend, grid_at, resize
from model.subjects import GenerationError
from model.visual_attention import VisualAttentionProcessor


class PassEnded(Exception):  # noqa: N818
    """Not an error, but the way out: the last layer that takes part has been recorded."""


@dataclass(frozen=True)
class GuidanceLayers:
    """The layers whose attention makes the masks, with the downscales of their grids."""

    cross: Mapping[str, int]
    selves: Collection[str]  # of the largest grid
    largest: int
    visual_downscales: tuple[int, ...]  # of all cross-attention layers

    @classmethod
    def of(cls, processors: Iterable[VisualAttentionProcessor], cross_downscales: Sequence[int]) -> "GuidanceLayers":
        """The layers of a UNet.

        Args:
            processors: of all its attention layers.
            cross_downscales: which cross-attention layers take part, as downscales of the largest attention grid.

        Raises:
            GenerationError: there are none of such a downscale.
        """
        layers = {processor.layer: processor.downscale for processor in processors}
        largest = min(layers.values())
        crosses = {layer: downscale for layer, downscale in layers.items() if layer.endswith(".attn2")}
        downscales = tuple(sorted(set(crosses.values())))
        present = [downscale // largest for downscale in downscales]
        if not cross_downscales or not set(cross_downscales) <= set(present):
            raise GenerationError(
                f"mask_cross_downscales {list(cross_downscales)}: this base has cross-attention at downscales "
                f"{present} of its largest attention grid."
            )
        wanted = {layer: at for layer, at in crosses.items() if at // largest in cross_downscales}
        selves = [layer for layer, at in layers.items() if at == largest and layer not in crosses]
        return cls(wanted, selves, largest, downscales)


@dataclass
class GuidanceRecorder:
    """Turns the recorded layers of one pass into M = M_self M_cross, both the mean over heads and layers (Eq. 12)."""

    layers: GuidanceLayers
    indicator: Tensor  # (B, n_t, S), 1 at the tokens of each subject's word
    latent: Grid
    ends_pass: bool = True  # when all layers are recorded
    _seen: set[str] = field(default_factory=set)
    _crosses: list[Tensor] = field(default_factory=list)  # each layer's map at the largest grid, (B, N, S)
    _waiting: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # self-attention's queries and keys
    _products: list[Tensor] = field(default_factory=list)  # each layer's M_self M_cross, (B, N, S)

    def wants(self, layer: str) -> bool:
        """Whether the layer takes part."""
        return layer in self.layers.cross or layer in self.layers.selves

    def record(self, layer: str, query: Tensor, key: Tensor) -> None:
        """`query` (B, H, N, d) and `key` (B, H, n, d) of a layer; of more rows the last B count."""
        query, key = query[-len(self.indicator) :], key[-len(self.indicator) :]
        self._seen.add(layer)
        if layer in self.layers.cross:
            grid, largest = (grid_at(self.latent, at) for at in (self.layers.cross[layer], self.layers.largest))
            self._crosses.append(resize(attend(query, key, self.indicator), grid, largest))
        else:
            self._waiting.append((query, key))
        if self._seen.issuperset(self.layers.cross):
            cross = torch.stack(self._crosses).mean(0)
            self._products += [attend(*waiting, cross) for waiting in self._waiting]
            self._waiting.clear()
        if self.ends_pass and len(self._seen) == len(self.layers.cross) + len(self.layers.selves):
            raise PassEnded

    def maps(self) -> Tensor:
        """M (B, N, S) in fp32."""
        return torch.stack(self._products).mean(0)


def run_guidance_branch(
    backbone: Backbone, latents: Tensor, timestep: Tensor, text: PromptEmbedding, recorder: GuidanceRecorder
) -> None:
    """One pass with text alone, until `recorder` has all layers.

    Args:
        backbone: with an attached adapter.
        latents: (B, 4, h, w), as the UNet takes them.
        timestep: of the step.
        text: B rows.
        recorder: has the maps afterwards.
    """
    with suppress(PassEnded):
        backbone.predict(latents, timestep, text, recorder=recorder)
