"""The guidance branch (RealCustom++ Sec. III-D1, Eq. 12): a pass of the UNet with text alone, for its attention only.

Layers: low-resolution cross-attention finds *what* (the target word), self-attention of the highest resolution finds
*where exactly*. "Low" depends on the backbone. It is configured as downscales of the largest attention grid: SD-1.5 [4]
(16 x 16 of 64 x 64), SDXL [2] (32 x 32 of 64 x 64), micro [1, 2] (its 16 x 16 grid separates object and background,
its 8 x 8 grid separates two objects; its 4 x 4 grid adds little). Self-attention is configured in the same way: [1] is
RealCustom++'s, [] leaves M_cross as it is (RealCustom Sec. 3.3, with the cross-attention of all resolutions); more
resolutions are for the ablations of Table V.

Cost: Eq. 15 does not use the branch's prediction, so the pass ends as soon as the last of these layers has its queries
and keys. The recorder raises `PassEnded` there, and diffusers' UNet needs no change. A pass compiled by `torch.compile`
cannot end early. Maps are made layer by layer; self-attention layers before the last cross-attention layer keep their
queries and keys until M_cross is known. RealCustom uses the prediction of its text branch: its recorder does not end
the pass (`model.methods.realcustom`).

Legend of shapes: as in `model.guidance.masks`.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.adapters.visual_attention import VisualAttentionProcessor
from model.backbone import Backbone, PromptEmbedding
from model.errors import GenerationError
from model.guidance.masks import Grid, attend, grid_at, normalize_by_range, resize
from model.guidance.settings import MaskNormalization


class PassEnded(BaseException):
    """Ends a pass of the UNet: the last layer has been recorded.

    It is no error. Like `GeneratorExit` it is no `Exception`, so that no `except Exception` stops it on its way.
    """


@dataclass(frozen=True)
class GuidanceLayers:
    """The layers whose attention makes the masks, with the downscales of their grids."""

    cross_attention: Mapping[str, int]
    self_attention: Mapping[str, int]
    largest: int  # downscale of the largest grid
    visual_downscales: tuple[int, ...]  # of all cross-attention layers

    @property
    def names(self) -> tuple[frozenset[str], frozenset[str]]:
        """Of the layers: cross-attention, self-attention."""
        return frozenset(self.cross_attention), frozenset(self.self_attention)

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
            cross_downscales: the cross-attention layers that make the mask, as downscales of the largest grid.
            self_downscales: the self-attention layers that make the mask; empty: M is M_cross.

        Raises:
            GenerationError: the UNet has no layer of a downscale.
        """
        layers = {processor.layer: processor.downscale for processor in processors}
        largest = min(layers.values())
        cross_layers = {layer: downscale for layer, downscale in layers.items() if layer.endswith(".attn2")}
        self_layers = {layer: downscale for layer, downscale in layers.items() if layer not in cross_layers}
        if not cross_downscales:
            raise GenerationError("mask_cross_downscales []: the mask needs cross-attention of at least one downscale.")
        return cls(
            cross_attention=_at_downscales(cross_layers, largest, cross_downscales, "cross"),
            self_attention=_at_downscales(self_layers, largest, self_downscales, "self"),
            largest=largest,
            visual_downscales=tuple(sorted(set(cross_layers.values()))),
        )


def _at_downscales(layers: Mapping[str, int], largest: int, wanted: Collection[int], kind: str) -> dict[str, int]:
    """The layers that have one of the wanted downscales, relative to the largest attention grid."""
    present = sorted({downscale // largest for downscale in layers.values()})
    if not set(wanted) <= set(present):
        raise GenerationError(
            f"mask_{kind}_downscales {list(wanted)}: this base has {kind}-attention at downscales {present} of its "
            "largest attention grid."
        )
    return {layer: downscale for layer, downscale in layers.items() if downscale // largest in wanted}


@dataclass
class GuidanceRecorder:
    """Computes M = M_self M_cross from the layers of one pass, both the mean over heads and layers (Eq. 12).

    Every cross-attention map is resized to the largest grid before the mean. For self-attention of a coarser grid,
    M_cross is resized to that grid, multiplied there, and the product is resized back: the mean over layers is a mean
    of these products. With "min_max_per_channel" each layer's cross-attention map, and M, goes from 0 to 1, as in the
    authors' code.
    """

    layers: GuidanceLayers
    indicator: Tensor  # (B, n_t, S), 1 at the tokens of each subject's word
    latent: Grid
    ends_pass: bool = True  # when all layers are recorded
    normalization: MaskNormalization = "max_norm"
    _recorded: set[str] = field(default_factory=set)
    _cross_maps: list[Tensor] = field(default_factory=list)  # each layer's map at the largest grid, (B, N, S)
    _waiting: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)  # self-attention's queries and keys
    _products: list[Tensor] = field(default_factory=list)  # each layer's M_self M_cross, (B, N, S)

    def wants(self, layer: str) -> bool:
        """Whether the layer makes the mask."""
        return layer in self.layers.cross_attention or layer in self.layers.self_attention

    def record(self, layer: str, query: Tensor, key: Tensor) -> None:
        """`query` (B, H, N, d) and `key` (B, H, n, d) of a layer; of a larger batch the last B rows count."""
        query, key = query[-len(self.indicator) :], key[-len(self.indicator) :]
        self._recorded.add(layer)
        largest = grid_at(self.latent, self.layers.largest)
        if layer in self.layers.cross_attention:
            grid = grid_at(self.latent, self.layers.cross_attention[layer])
            self._cross_maps.append(self._normalized(resize(attend(query, key, self.indicator), grid, largest)))
        else:
            self._waiting.append((layer, query, key))
        if self._recorded.issuperset(self.layers.cross_attention):
            cross_map = torch.stack(self._cross_maps).mean(0)
            self._products += [self._product(*waiting, cross_map, largest) for waiting in self._waiting]
            self._waiting.clear()
        recorded_all = len(self._recorded) == len(self.layers.cross_attention) + len(self.layers.self_attention)
        if self.ends_pass and recorded_all and not torch.compiler.is_compiling():
            raise PassEnded

    def _product(self, layer: str, query: Tensor, key: Tensor, cross_map: Tensor, largest: Grid) -> Tensor:
        """M_self M_cross of a self-attention layer; `cross_map` and the product are (B, N, S) of the largest grid."""
        grid = grid_at(self.latent, self.layers.self_attention[layer])
        return resize(attend(query, key, resize(cross_map, largest, grid)), grid, largest)

    def maps(self) -> Tensor:
        """M (B, N, S) in fp32; without self-attention M_cross."""
        return self._normalized(torch.stack(self._products or self._cross_maps).mean(0))

    def _normalized(self, maps: Tensor) -> Tensor:
        return maps if self.normalization == "max_norm" else normalize_by_range(maps)


def run_guidance_branch(
    backbone: Backbone, latents: Tensor, timestep: Tensor, text: PromptEmbedding, recorder: GuidanceRecorder
) -> None:
    """Run the UNet with text alone until `recorder` has all layers.

    Args:
        backbone: with an attached adapter.
        latents: (B, 4, h, w), the UNet's input.
        timestep: of the step.
        text: B rows.
        recorder: has the maps afterwards.
    """
    with suppress(PassEnded):
        backbone.predict(latents, timestep, text, recorder=recorder)
