"""Training problem of an adapter on a plan (RealCustom Sec. 3.2; RealCustom++ Sec. III-C).

The target picture is noised, the frozen UNet predicts with the adapter's visual condition of the reference, and only
the adapter learns. RealCustom++ reads the reference of the plan; RealCustom is given the target picture itself. What a
step sees is a function of the plan and of (seed, step, slot): it does not depend on how many workers share the batch.

Legend of shapes: B batch, S side of the reference, h, w latent grid, n_t text tokens, c_t width of the text states.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from model.adapter import RealCustomPlusAdapter
from model.adapter_loss import AdapterModule, FrozenModels
from model.adapter_samples import Sample, column, paint_samples
from model.adaptive_scoring import ScoreFusion, sample_gamma_num
from model.backbone import Backbone, BackboneError, load_backbone
from model.encodings import encode_captions, encode_squares, square_key
from model.image_encoder import ImageEncoders
from model.pictures import PictureError, crop_reference, load_picture, square_crop, to_tensor
from model.precision import halve_products
from model.projector import Combination
from model.realcustom_adapter import RealCustomAdapter
from model.seeding import generator_of
from model.subjects import GenerationError

Method = Literal["realcustom++", "realcustom"]

#: The gain over the base without adapter is measured this often; it costs a forward pass.
GAIN_EVERY = 20
#: Pictures of a step that are named when it goes wrong.
_DESCRIBED = 16


class PlanRow(NamedTuple):
    """One training example; the columns of the plan that matter here."""

    slot: int
    source: str  # "image_text" or "multiview"
    reference_id: str
    target_id: str
    caption: str
    crop_ratio: float
    crop_x: float
    crop_y: float
    target_crop_x: float
    target_crop_y: float


class EncodingCache(Protocol):
    """Encodings of a plan's examples that were computed before the training (stage `cache_latents`)."""

    def latents(self, rows: Sequence[PlanRow]) -> Tensor:
        """As `encode_squares` of the rows' target squares."""

    def texts(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """As `encode_captions`."""

    def check(self, backbone: Backbone, resolution: int) -> None:
        """Raises EncodingCacheError: they are of another backbone or resolution."""


@dataclass(kw_only=True)
class AdapterTask:
    """`SamplingTask` of the adapter. Fields that change nothing but time and memory are not compared.

    Attributes:
        backbone: Folder or hub id of the frozen base.
        encoders: Arguments of `ImageEncoders.from_pretrained`: image_encoders, shallow_layers, reference_size, tiles.
        rows: Step -> the plan's rows of that step, by slot.
        picture: Id of the plan -> encoded picture.
        resolution: Side of the target pictures, pixels.
        drop_text: Share of examples that lose their caption, likewise `drop_image` and `drop_both`; disjoint.
        method: Whose adapter. RealCustom's reference is the target's own square (Sec. 3.2: the same picture is visual
            condition and input of the UNet); of the plan's reference only its crop is kept.
        cross_layer: How f_shallow' joins in RealCustom++'s CCP, likewise `cross_scale` f_high'; see
            `CrossLayerCrossScaleProjector`.
        score_fusion: Of RealCustom's adaptive scoring module; see `RealCustomAdapter`.
        min_snr_gamma: Of the loss weights; see `AdapterModule`.
        half: Dtype that the weights of the UNet's products are kept in, as autocast would make them anew in every pass;
            None: as they were loaded.
        gradient_checkpointing: Whether the UNet's activations are computed anew in the backward pass, not kept: less
            memory, more time, the same gradients.
        cache: Where latents and text states are read; None: they are computed, and kept while there is room. With a
            cache and no `samples` the weights of VAE and text encoders do not stay in memory.
        samples: What `sample` paints.
        sample_every: See `SamplingTask`.
        device: Where the frozen models are.
    """

    backbone: str
    encoders: dict[str, Any]
    rows: Callable[[int], Sequence[PlanRow]]
    picture: Callable[[str], bytes]
    resolution: int
    drop_text: float
    drop_image: float
    drop_both: float
    seed: int
    method: Method = "realcustom++"
    cross_layer: Combination | None = "concat"
    cross_scale: Combination | None = "add"
    score_fusion: ScoreFusion | None = "scheduled"
    min_snr_gamma: float | None = None
    half: torch.dtype | None = None
    gradient_checkpointing: bool = field(default=False, compare=False)
    cache: EncodingCache | None = field(default=None, compare=False)
    samples: Sequence[Sample] = field(default=(), compare=False)
    sample_every: int | None = field(default=None, compare=False)
    device: str = field(default="cpu", compare=False)
    _frozen: FrozenModels | None = field(default=None, init=False, repr=False)
    _square: dict[str, bool] = field(default_factory=dict, init=False, repr=False)

    def module(self) -> AdapterModule:
        """Load the frozen models and start an adapter that changes nothing yet."""
        frozen = self.load()
        shapes = frozen.backbone.unet, frozen.encoders.width
        if self.method == "realcustom":
            return AdapterModule(RealCustomAdapter.from_unet(*shapes, self.score_fusion), frozen, self.min_snr_gamma)
        combinations = {"cross_layer": self.cross_layer, "cross_scale": self.cross_scale}
        return AdapterModule(RealCustomPlusAdapter.from_unet(*shapes, **combinations), frozen, self.min_snr_gamma)

    def load(self) -> FrozenModels:
        """The frozen models; loaded once a process."""
        if self._frozen is None:
            backbone = load_backbone(self.backbone, device=self.device)
            if self.resolution % backbone.latent_scale:
                raise BackboneError(
                    f"pictures of {self.resolution} x {self.resolution} pixels: the backbone's VAE wants multiples of "
                    f"{backbone.latent_scale}."
                )
            if self.cache is not None:
                self.cache.check(backbone, self.resolution)
                if not self.samples:
                    backbone.forget_encoders()
            if self.half is not None:
                halve_products(backbone.unet, self.half)
            if self.gradient_checkpointing:
                backbone.unet.enable_gradient_checkpointing()
            options = dict(self.encoders)
            names = options.pop("image_encoders")
            encoders = ImageEncoders.from_pretrained(names, self.backbone, **options, device=self.device)
            self._frozen = FrozenModels(backbone, encoders)
        return self._frozen

    def batch(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        """The tensors of this rank's rows of the plan.

        Returns:
            latents, noise (B, 4, h, w); timesteps (B,); hidden (B, n_t, c_t), for SDXL text_embeds and time_ids;
            reference (B, 3, S, S) in [0, 1]; keep_image (B,) bool; multiview (B,) bool; crop_ratio (B,); measure_gain
            (1,) bool; gamma_num (1,) of Eq. 10, the same for all ranks.
        """
        rows = self.rows(step)
        if len(rows) % world:
            raise ValueError(f"{len(rows)} examples a step cannot be shared out evenly among {world} workers.")
        share = len(rows) // world
        rows = rows[rank * share : (rank + 1) * share]
        generators = [generator_of(self.seed, step, row.slot) for row in rows]
        fate = torch.stack([torch.rand((), generator=generator) for generator in generators])
        keep_text, keep_image = self._keep(fate)
        captions = [row.caption if keep else "" for row, keep in zip(rows, keep_text.tolist(), strict=True)]
        latents = self._latents(rows)
        steps = self.load().backbone.scheduler.config.num_train_timesteps
        return {
            "latents": latents,
            "noise": torch.stack([torch.randn(latents.shape[1:], generator=generator) for generator in generators]),
            "timesteps": torch.cat([torch.randint(steps, (1,), generator=generator) for generator in generators]),
            **self._texts(captions),
            "reference": self._references(rows),
            "keep_image": keep_image,
            "multiview": torch.tensor([row.source == "multiview" for row in rows]),
            "crop_ratio": torch.tensor([row.crop_ratio for row in rows]),
            "measure_gain": torch.tensor([step % GAIN_EVERY == 0]),
            "gamma_num": torch.tensor([sample_gamma_num(self.seed, step)]),
        }

    def describe(self, step: int) -> str:
        """The pictures that a step learns from, by their ids in the plan; of many the first ones."""
        ids = list(dict.fromkeys(row.target_id for row in self.rows(step)))
        more = f" and {len(ids) - _DESCRIBED} more" if len(ids) > _DESCRIBED else ""
        return f"pictures {', '.join(ids[:_DESCRIBED])}{more}"

    def after_step(self, module: nn.Module, step: int) -> None:
        """Nothing to do."""

    def export(self, module: nn.Module, folder: Path) -> None:
        """Write the adapter as diffusers does."""
        assert isinstance(module, AdapterModule)
        module.adapter.save_pretrained(folder)

    def sample(self, module: nn.Module, step: int, folder: Path) -> None:
        """Paint `samples` into `folder/<step>.png`, below each other. A look that fails is left out with a warning."""
        assert isinstance(module, AdapterModule)
        try:
            pictures = paint_samples(module, self.samples, self.half)
        except GenerationError as error:  # of NaN latents, for instance: the training may yet recover
            warnings.warn(f"no sample pictures of step {step}: {error}", stacklevel=2)
            return
        column(pictures).save(folder / f"{step:07d}.png")

    def _keep(self, fate: Tensor) -> tuple[Tensor, Tensor]:
        """One uniform number an example decides what it loses: nothing, text, image or both."""
        text, image = self.drop_text, self.drop_text + self.drop_image
        both = image + self.drop_both
        keep_text = (fate >= text) & ~((fate >= image) & (fate < both))
        keep_image = (fate < text) | (fate >= both)
        return keep_text, keep_image

    def _texts(self, captions: list[str]) -> dict[str, Tensor]:
        if self.cache is not None:
            return self.cache.texts(captions)
        backbone = self.load().backbone

        def encode(missing: list[str]) -> tuple[Tensor, ...]:
            return tuple(encode_captions(backbone, missing).values())

        names = ["hidden"] if backbone.family == "sd" else ["hidden", "text_embeds", "time_ids"]
        return dict(zip(names, self.load().texts.get(captions, encode), strict=True))

    def _latents(self, rows: Sequence[PlanRow]) -> Tensor:
        """Latents (B, 4, h, w) of the target pictures' squares."""
        if self.cache is not None:
            return self.cache.latents(rows)
        frozen = self.load()
        places = {self._place(row): row for row in rows}

        def encode(missing: list[str]) -> tuple[Tensor, ...]:
            return (encode_squares(frozen.backbone, [self._target(places[key]) for key in missing]),)

        return frozen.latents.get([self._place(row) for row in rows], encode)[0]

    def _place(self, row: PlanRow) -> str:
        """The name of a target's square."""
        if row.target_id not in self._square:
            with Image.open(BytesIO(self.picture(row.target_id))) as picture:  # the header only
                self._square[row.target_id] = picture.width == picture.height
        place = None if self._square[row.target_id] else (row.target_crop_x, row.target_crop_y)
        return square_key(row.target_id, place)

    def _target(self, row: PlanRow) -> Image.Image:
        return square_crop(self._open(row.target_id), row.target_crop_x, row.target_crop_y, self.resolution)

    def _references(self, rows: Sequence[PlanRow]) -> Tensor:
        """Crops (B, 3, S, S) of the reference pictures by Eq. 11, at the tiles' resolution where a picture has it."""
        crops = [to_tensor(self._reference(row)) for row in rows]
        size = max(crop.shape[-1] for crop in crops)
        return torch.stack([_enlarge(crop, size) for crop in crops])

    def _reference(self, row: PlanRow) -> Image.Image:
        if self.method == "realcustom":
            target = self._open(row.target_id)
            picture = square_crop(target, row.target_crop_x, row.target_crop_y, min(target.size))
        else:
            picture = self._open(row.reference_id)
        encoders = self.load().encoders
        large = encoders.reference_size * encoders.tiles
        size = large if min(picture.size) >= large else encoders.reference_size
        return crop_reference(picture, row.crop_ratio, row.crop_x, row.crop_y, size)

    def _open(self, picture_id: str) -> Image.Image:
        return open_picture(self.picture, picture_id)


def open_picture(picture: Callable[[str], bytes], picture_id: str) -> Image.Image:
    """A picture of the plan, decoded; raises PictureError, which names it."""
    try:
        return load_picture(picture(picture_id))
    except PictureError as error:
        raise PictureError(f"picture {picture_id} of the plan: {error}") from error


def _enlarge(crop: Tensor, size: int) -> Tensor:
    """A square (3, S, S) at a larger size, as `ImageEncoders` would do it."""
    if crop.shape[-1] == size:
        return crop
    return F.interpolate(crop[None], (size, size), mode="bicubic", antialias=True).clamp(0, 1)[0]
