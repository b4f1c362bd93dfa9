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
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.adapters.adapter import RealCustomPlusAdapter
from model.adapters.adaptive_scoring import ScoreFusion, sample_gamma_num
from model.adapters.image_encoder import ImageEncoders
from model.adapters.projector import Combination
from model.adapters.realcustom import RealCustomAdapter
from model.backbone import Backbone, BackboneError, load_backbone
from model.guidance.subjects import GenerationError
from model.seeding import generator_of
from model.training.adapter_examples import ExamplePictures, Method, PlanRow, share_of
from model.training.adapter_loss import AdapterModule, FrozenModels
from model.training.adapter_previews import Sample, column, paint_samples
from model.training.encodings import encode_captions, encode_squares, square_key
from model.training.precision import halve_products
from model.training.task import Prepared

#: The gain over the base without adapter is measured this often; it costs a forward pass.
GAIN_EVERY = 20
#: Pictures of a step that are named when it goes wrong.
_DESCRIBED = 16


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
    """`FedTask` and `SamplingTask` of the adapter. Fields that change nothing but time and memory are not compared.

    Attributes:
        backbone: Folder or hub id of the frozen base.
        encoders: Arguments of `ImageEncoders.from_pretrained`: image_encoders, shallow_layers, reference_size, tiles.
        rows: Step -> the plan's rows of that step, by slot.
        picture: Id of the plan -> encoded picture.
        resolution: Side of the target pictures, pixels.
        drop_text: Share of examples that lose their caption, likewise `drop_image` and `drop_both`; disjoint.
        method: Whose adapter, and so whose references; see `ExamplePictures`.
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

    @property
    def feed(self) -> ExamplePictures:
        """The part of a batch that needs none of the models."""
        return ExamplePictures(
            rows=self.rows,
            picture=self.picture,
            method=self.method,
            resolution=self.resolution,
            reference_size=self.encoders["reference_size"],
            tiles=self.encoders["tiles"],
            targets=self.cache is None,
        )

    def batch(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        """The tensors of this rank's rows of the plan; see `encode`."""
        return self.encode(self.feed.prepare(step, rank, world), step, rank, world)

    def encode(self, prepared: Prepared, step: int, rank: int, world: int) -> dict[str, Tensor]:
        """What `feed` has prepared, with what the frozen models make of it.

        Returns:
            latents, noise (B, 4, h, w); timesteps (B,); hidden (B, n_t, c_t), for SDXL text_embeds and time_ids;
            reference (B, 3, S, S) in [0, 1]; keep_image (B,) bool; multiview (B,) bool; crop_ratio (B,); measure_gain
            (1,) bool; gamma_num (1,) of Eq. 10, the same for all ranks.
        """
        rows = share_of(self.rows(step), rank, world)
        generators = [generator_of(self.seed, step, row.slot) for row in rows]
        fate = torch.stack([torch.rand((), generator=generator) for generator in generators])
        keep_text, keep_image = self._keep(fate)
        captions = [row.caption if keep else "" for row, keep in zip(rows, keep_text.tolist(), strict=True)]
        latents = self._latents(rows, prepared)
        steps = self.load().backbone.scheduler.config.num_train_timesteps
        return {
            "latents": latents,
            "noise": torch.stack([torch.randn(latents.shape[1:], generator=generator) for generator in generators]),
            "timesteps": torch.cat([torch.randint(steps, (1,), generator=generator) for generator in generators]),
            **self._texts(captions),
            "reference": _unit_tensor(prepared["reference"]),
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

    def _latents(self, rows: Sequence[PlanRow], prepared: Prepared) -> Tensor:
        """Latents (B, 4, h, w) of the target pictures' squares."""
        if self.cache is not None:
            return self.cache.latents(rows)
        frozen = self.load()
        places = [_place(row, whole) for row, whole in zip(rows, prepared["target_is_square"].tolist(), strict=True)]
        squares = dict(zip(places, prepared["target"], strict=True))

        def encode(missing: list[str]) -> tuple[Tensor, ...]:
            targets = _unit_tensor(np.stack([squares[place] for place in missing]))
            return (encode_squares(frozen.backbone, targets),)

        return frozen.latents.get(places, encode)[0]


def _place(row: PlanRow, is_square: bool) -> str:
    """The name of a target's square."""
    return square_key(row.target_id, None if is_square else (row.target_crop_x, row.target_crop_y))


def _unit_tensor(pictures: NDArray[Any]) -> Tensor:
    """Pictures (B, S, S, 3), of bytes or already in [0, 1] -> (B, 3, S, S) in [0, 1]."""
    tensor = torch.tensor(pictures).permute(0, 3, 1, 2).contiguous()  # a copy: what a feeder gives may be read-only
    return tensor.float() / 255 if pictures.dtype == np.uint8 else tensor
