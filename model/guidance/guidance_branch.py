"""The guidance branch (RealCustom++ Sec. III-D1, Eq. 12): text alone through the UNet, for its attention only.

Which layers: cross-attention of low resolution says *what* (the target word), self-attention of the highest resolution
says *where exactly*. "Low" depends on the backbone and is configured as the downscales relative to the largest
attention grid: SD-1.5 [4] (16 x 16 of 64 x 64), SDXL [2] (32 x 32 of 64 x 64), micro [1, 2] (of its 16 x 16
and 8 x 8 the finer parts object and ground, the coarser tells which of two objects a word means; 4 x 4 says little).
The self-attention is configured likewise: [1] is the method's, [] leaves M_cross as it is (RealCustom Sec. 3.3, with
the cross-attention of all resolutions), more resolutions are for Table V's ablations.

What it costs: Eq. 15 does not use the branch's prediction, so its pass ends where the last of these layers has its
queries and keys: an exception that the recorder raises there takes the shortest way out of diffusers' UNet, which is
neither copied nor changed. A graph of `torch.compile` has no such way out: a compiled pass runs to its end. Maps are
made as the layers come by; only self-attention that comes before the last cross-attention has to wait, as queries and
keys, until M_cross is known. RealCustom uses what its branch with text alone predicts: there the same recorder lets the
pass go on (see `model.guidance.denoising`).

Legend of shapes: as in `model.guidance.masks`.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.adapters.visual_attention import VisualAttentionProcessor
from model.backbone import Backbone, PromptEmbedding
from model.guidance.masks import Grid, attend, grid_at, resize
from model.guidance.subjects import GenerationError


class PassEnded(Exception):  # noqa: N818 - like StopIteration it is no error
    """Not an error, but the way out: the last layer that takes part has been recorded."""


@dataclass(frozen=True)
class GuidanceLayers:
    """The layers whose attention makes the masks, with the downscales of their grids."""

    cross: Mapping[str, int]
    selves: Mapping[str, int]
    largest: int
    visual_downscales: tuple[int, ...]  # of all cross-attention layers

    @classmethod
    def of(
        cls,
        processors: Iterable[VisualAttentionProcessor],
        cross_downscales: Sequence[int],
        self_downscales: Sequence[int] = (1,),
    ) -> "GuidanceLayers":
        """The layers of a UNet.

        Args:
            processors: of all its attention layers.
            cross_downscales: which cross-attention layers take part, as downscales of the largest attention grid.
            self_downscales: likewise for self-attention; none: M is M_cross.

        Raises:
            GenerationError: there are none of such a downscale.
        """
        layers = {processor.layer: processor.downscale for processor in processors}
        largest = min(layers.values())
        cross = {layer: downscale for layer, downscale in layers.items() if layer.endswith(".attn2")}
        selves = {layer: downscale for layer, downscale in layers.items() if layer not in cross}
        if not cross_downscales:
            raise GenerationError("mask_cross_downscales []: the mask needs cross-attention of at least one downscale.")
        return cls(
            cross=_at_downscales(cross, largest, cross_downscales, "cross"),
            selves=_at_downscales(selves, largest, self_downscales, "self"),
            largest=largest,
            visual_downscales=tuple(sorted(set(cross.values()))),
        )


def _at_downscales(layers: Mapping[str, int], largest: int, wanted: Collection[int], kind: str) -> dict[str, int]:
    """Those of the layers that have one of the wanted downscales, relative to the largest attention grid's."""
    present = sorted({downscale // largest for downscale in layers.values()})
    if not set(wanted) <= set(present):
        raise GenerationError(
            f"mask_{kind}_downscales {list(wanted)}: this base has {kind}-attention at downscales {present} of its "
            "largest attention grid."
        )
    return {layer: downscale for layer, downscale in layers.items() if downscale // largest in wanted}


@dataclass
class GuidanceRecorder:
    """Turns the recorded layers of one pass into M = M_self M_cross, both the mean over heads and layers (Eq. 12).

    Every cross-attention map is resized to the largest grid before the mean. Where self-attention of a coarser grid
    takes part, M_cross is resized to that grid, multiplied there, and the product resized back: the mean over layers is
    one over their products.
    """

    layers: GuidanceLayers
    indicator: Tensor  # (B, n_t, S), 1 at the tokens of each subject's word
    latent: Grid
    ends_pass: bool = True  # when all layers are recorded
    _seen: set[str] = field(default_factory=set)
    _crosses: list[Tensor] = field(default_factory=list)  # each layer's map at the largest grid, (B, N, S)
    _waiting: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)  # self-attention's queries and keys
    _products: list[Tensor] = field(default_factory=list)  # each layer's M_self M_cross, (B, N, S)

    def wants(self, layer: str) -> bool:
        """Whether the layer takes part."""
        return layer in self.layers.cross or layer in self.layers.selves

    def record(self, layer: str, query: Tensor, key: Tensor) -> None:
        """`query` (B, H, N, d) and `key` (B, H, n, d) of a layer; of more rows the last B count."""
        query, key = query[-len(self.indicator) :], key[-len(self.indicator) :]
        self._seen.add(layer)
        largest = grid_at(self.latent, self.layers.largest)
        if layer in self.layers.cross:
            grid = grid_at(self.latent, self.layers.cross[layer])
            self._crosses.append(resize(attend(query, key, self.indicator), grid, largest))
        else:
            self._waiting.append((layer, query, key))
        if self._seen.issuperset(self.layers.cross):
            cross = torch.stack(self._crosses).mean(0)
            self._products += [self._product(*waiting, cross, largest) for waiting in self._waiting]
            self._waiting.clear()
        recorded_all = len(self._seen) == len(self.layers.cross) + len(self.layers.selves)
        if self.ends_pass and recorded_all and not torch.compiler.is_compiling():
            raise PassEnded

    def _product(self, layer: str, query: Tensor, key: Tensor, cross: Tensor, largest: Grid) -> Tensor:
        """M_self M_cross of a self-attention layer, both (B, N, S) of the largest grid."""
        grid = grid_at(self.latent, self.layers.selves[layer])
        return resize(attend(query, key, resize(cross, largest, grid)), grid, largest)

    def maps(self) -> Tensor:
        """M (B, N, S) in fp32; without self-attention M_cross."""
        return torch.stack(self._products or self._crosses).mean(0)


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
