"""Features of the reference picture, from frozen image encoders (RealCustom++ Sec. III-C1: SigLIP and DINOv2).

Legend of shapes: B batch, S side of the picture, n patches of one view, L shallow levels, T tiles, c width of all
encoders' features together.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.utils.accelerate_utils import apply_forward_hook
from PIL import Image
from torch import Tensor, nn

from model.adapters.encoding_cache import Encoding, EncodingCache
from model.adapters.vision_models import ImageEncoderError, load_vision_model, normalization
from model.pictures.crops import square_crop
from model.pictures.tensors import to_tensor


@dataclass(frozen=True)
class ReferenceFeatures:
    """The projector's input."""

    deep: Tensor  # (B, n, c), last hidden states, or those of a block before
    shallow: Tensor  # (B, L * n, c), levels one after the other
    high: Tensor  # (B, T * n, c), deep features of the high-resolution tiles, row by row

    def with_rows(self, where: Tensor, rows: "ReferenceFeatures") -> "ReferenceFeatures":
        """These features with others, one row for each true value of `where` (B,), in those places."""
        return ReferenceFeatures(
            _with_rows(self.deep, where, rows.deep),
            _with_rows(self.shallow, where, rows.shallow),
            _with_rows(self.high, where, rows.high),
        )

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "ReferenceFeatures":
        """Move all three tensors."""
        return ReferenceFeatures(*(tensor.to(device, dtype) for tensor in (self.deep, self.shallow, self.high)))

    @staticmethod
    def cat(features: Sequence["ReferenceFeatures"]) -> "ReferenceFeatures":
        """Batches one after the other."""
        return ReferenceFeatures(
            torch.cat([one.deep for one in features]),
            torch.cat([one.shallow for one in features]),
            torch.cat([one.high for one in features]),
        )


class VisionTower(nn.Module):
    """One frozen encoder: normalizes with its own mean and std, returns patch features of chosen blocks.

    Args:
        model: a transformers vision model (CLIP, SigLIP, DINOv2 with or without registers).
        mean: of the three colour channels, for pictures in [0, 1].
        std: of the three colour channels.
        shallow_layers: blocks whose output is a shallow level, counted from 0 as timm does.
        deep_layer: block whose output is the deep features, without the encoder's final norm; None: the last hidden
            states.

    Raises:
        ImageEncoderError: a layer does not exist.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        shallow_layers: Sequence[int],
        deep_layer: int | None = None,
    ) -> None:
        super().__init__()
        config: Any = model.config
        blocks = config.num_hidden_layers
        if not all(0 <= layer < blocks for layer in shallow_layers):
            raise ImageEncoderError(
                f"shallow_layers {list(shallow_layers)}: the encoder's blocks are 0 to {blocks - 1}."
            )
        if deep_layer is not None and deep_layer >= blocks:
            raise ImageEncoderError(f"the deep features are those of block {deep_layer}, but the encoder has {blocks}.")
        self.model = model.eval().requires_grad_(False)
        self.shallow_layers = tuple(shallow_layers)
        self.deep_layer = deep_layer
        self.patch_size: int = config.patch_size
        self.width: int = config.hidden_size
        self.native_size: int = config.image_size
        self._interpolates = "interpolate_pos_encoding" in inspect.signature(type(model).forward).parameters
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, pictures: Tensor, *, shallow: bool = True) -> tuple[Tensor, list[Tensor]]:
        """Pictures (B, 3, S, S) in [0, 1] -> deep features (B, n, c), shallow levels each (B, n, c).

        Without `shallow` there are no levels, and no states of the other blocks are kept.

        The last hidden states are transformers': before the encoder's final norm for CLIP, after it for SigLIP and
        DINOv2. Class and register tokens are dropped.
        """
        normalized = (pictures.to(self.mean.dtype) - self.mean) / self.std
        options: dict[str, Any] = {}
        if self._interpolates and pictures.shape[-1] != self.native_size:
            options["interpolate_pos_encoding"] = True
        states_needed = shallow or self.deep_layer is not None
        output = self.model(pixel_values=normalized, output_hidden_states=states_needed, **options)
        patches = (pictures.shape[-2] // self.patch_size) * (pictures.shape[-1] // self.patch_size)
        levels = self.shallow_layers if shallow else ()
        states = [output.hidden_states[layer + 1][:, -patches:] for layer in levels]
        deep = output.last_hidden_state if self.deep_layer is None else output.hidden_states[self.deep_layer + 1]
        return deep[:, -patches:], states


class ImageEncoders(nn.Module):
    """All image encoders; their features are concatenated on channels.

    Args:
        towers: with the same number of shallow layers, and the same number of patches at `reference_size`.
        reference_size: side of the encoders' input, pixels.
        tiles: the high-resolution reference is cut into tiles x tiles views of `reference_size`.

    Attributes:
        cache: of `encode` or `encode_tokens`, whichever the adapter's method uses; it keeps nothing by default.

    Raises:
        ImageEncoderError: the towers do not fit together.
    """

    def __init__(self, towers: Sequence[VisionTower], reference_size: int, tiles: int) -> None:
        super().__init__()
        if len({len(tower.shallow_layers) for tower in towers}) != 1 or not towers[0].shallow_layers:
            raise ImageEncoderError(
                "shallow_layers: every image encoder needs the same number of shallow layers, at least one."
            )
        sides = [reference_size // tower.patch_size for tower in towers]
        if len(set(sides)) != 1:
            raise ImageEncoderError(
                f"the image encoders have {sides} patches a side at reference_size {reference_size}; they must agree."
            )
        self.towers = nn.ModuleList(towers)
        self.reference_size = reference_size
        self.tiles = tiles
        self.patches = sides[0] ** 2
        self.levels = len(towers[0].shallow_layers)
        self.width = sum(tower.width for tower in towers)
        self.cache = EncodingCache(0)
        self._black: ReferenceFeatures | None = None

    @classmethod
    def from_pretrained(
        cls,
        image_encoders: Sequence[str],
        backbone_folder: str | Path | None,
        shallow_layers: Sequence[Sequence[int]],
        reference_size: int,
        tiles: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> "ImageEncoders":
        """Load the encoders, frozen.

        Args:
            image_encoders: subfolders of the backbone's folder (micro: "clip", "dino"), other folders, or hub ids.
            backbone_folder: searched for subfolders first.
            shallow_layers: for each encoder the blocks of its shallow levels, counted from 0.
            reference_size: see the class.
            tiles: see the class.
            dtype: of the weights.
            device: of the weights.

        Raises:
            ImageEncoderError: an encoder is missing, or the encoders do not fit together.
        """
        if not image_encoders or len(image_encoders) != len(shallow_layers):
            raise ImageEncoderError(
                f"image_encoders has {len(image_encoders)} entries, but shallow_layers has {len(shallow_layers)}."
            )
        towers = [
            _load_tower(located(name, backbone_folder), layers, dtype)
            for name, layers in zip(image_encoders, shallow_layers, strict=True)
        ]
        return cls(towers, reference_size, tiles).to(device)

    @torch.no_grad()
    def features(self, pictures: Tensor, *, tiled: bool = True) -> ReferenceFeatures:
        """Features of square references.

        Args:
            pictures: (B, 3, S, S) in [0, 1], S at least `reference_size`. The tiles have full detail at
                S = tiles * reference_size (768 in the paper); a smaller reference is enlarged for them.
            tiled: whether to encode the tiles; without them `high` is (B, 0, c).
        """
        deep, levels = self._encode(self._low_view(pictures))
        high = self._deep(self._high_views(pictures)).reshape(len(pictures), -1, self.width) if tiled else deep[:, :0]
        return ReferenceFeatures(deep, torch.cat(levels, dim=1), high)

    def _low_view(self, pictures: Tensor) -> Tensor:
        """(B, 3, S, S) -> the encoders' input (B, 3, reference_size, reference_size)."""
        return _resize(pictures, self.reference_size)

    def _high_views(self, pictures: Tensor) -> Tensor:
        """(B, 3, S, S) -> the tiles of each picture, row by row (B * T, 3, reference_size, reference_size)."""
        high = _resize(pictures, self.reference_size * self.tiles)
        size, tiles = self.reference_size, self.tiles
        views = high.view(len(pictures), 3, tiles, size, tiles, size)
        return views.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)

    def features_or_black(self, pictures: Tensor, keep: Tensor, *, tiled: bool = True) -> ReferenceFeatures:
        """`features` where `keep` (B,) is true, `black` elsewhere: dropped pictures are not encoded."""
        black = self.black(len(keep))
        if not tiled:
            black = replace(black, high=black.high[:, :0])
        return black.with_rows(keep, self.features(pictures[keep], tiled=tiled)) if keep.any() else black

    @torch.no_grad()
    def tokens(self, pictures: Tensor) -> Tensor:
        """RealCustom's image tokens f_ci (B, n, c): the deep features alone; `pictures` as for `features`."""
        return self._deep(_resize(pictures, self.reference_size))

    def tokens_or_black(self, pictures: Tensor, keep: Tensor) -> Tensor:
        """`tokens` where `keep` (B,) is true, those of a black picture elsewhere."""
        black = self.black(len(keep)).deep
        return _with_rows(black, keep, self.tokens(pictures[keep])) if keep.any() else black

    @apply_forward_hook
    def encode(self, pictures: Sequence[Image.Image]) -> ReferenceFeatures:
        """Features of the central squares of RGB pictures of any size.

        A picture of at least tiles * reference_size is resized to that, a smaller one to `reference_size`. Pictures are
        encoded one by one, so that a picture's features do not depend on the batch.
        """
        return ReferenceFeatures.cat([ReferenceFeatures(*self.cache.get(one, self._features_of)) for one in pictures])

    @apply_forward_hook
    def encode_tokens(self, pictures: Sequence[Image.Image]) -> Tensor:
        """RealCustom's image tokens (B, n, c) of the central squares of RGB pictures of any size."""
        return torch.cat([self.cache.get(picture, self._tokens_of)[0] for picture in pictures])

    def _features_of(self, picture: Image.Image) -> Encoding:
        features = self.features(self._prepare(picture)[None])
        return features.deep, features.shallow, features.high

    def _tokens_of(self, picture: Image.Image) -> Encoding:
        return (self.tokens(self._prepare(picture)[None]),)

    def black(self, batch: int) -> ReferenceFeatures:
        """The dropped image condition: features of a black picture (zeros before normalization), `batch` times."""
        if self._black is None or self._black.deep.device != self.device:
            size = self.reference_size * self.tiles
            self._black = self.features(torch.zeros(1, 3, size, size, device=self.device))
        black = self._black
        return ReferenceFeatures(*(t.expand(batch, -1, -1) for t in (black.deep, black.shallow, black.high)))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.buffers()).device

    def _prepare(self, picture: Image.Image) -> Tensor:
        large = self.reference_size * self.tiles
        size = large if min(picture.size) >= large else self.reference_size
        return to_tensor(square_crop(picture.convert("RGB"), 0.5, 0.5, size)).to(self.device)

    def _deep(self, views: Tensor) -> Tensor:
        return torch.cat([tower(views, shallow=False)[0] for tower in self.towers], dim=-1)

    def _encode(self, views: Tensor) -> tuple[Tensor, list[Tensor]]:
        outputs = [tower(views) for tower in self.towers]
        deep = torch.cat([deep for deep, _ in outputs], dim=-1)
        return deep, [torch.cat(level, dim=-1) for level in zip(*(levels for _, levels in outputs), strict=True)]


def _with_rows(tensor: Tensor, where: Tensor, rows: Tensor) -> Tensor:
    return tensor.to(rows.dtype).index_put((where,), rows)


def _resize(pictures: Tensor, size: int) -> Tensor:
    if pictures.shape[-1] == size:
        return pictures
    return F.interpolate(pictures, (size, size), mode="bicubic", antialias=True).clamp(0, 1)


def located(name: str, backbone_folder: str | Path | None) -> str:
    """Where an image encoder is: the subfolder of the backbone's folder, if there is one, or as named."""
    if backbone_folder is not None and (Path(backbone_folder) / name).is_dir():
        return str(Path(backbone_folder) / name)
    return name


def _load_tower(location: str, shallow_layers: Sequence[int], dtype: torch.dtype) -> VisionTower:
    model = load_vision_model(location, dtype)
    return VisionTower(model, *normalization(location), shallow_layers).to(dtype)
