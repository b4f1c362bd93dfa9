"""Training problem of an adapter on a plan (RealCustom Sec. 3.2; RealCustom++ Sec. III-C).

The target picture is noised, the frozen UNet predicts with the adapter's visual condition of the reference, and only
the adapter learns. A step is a function of the plan and of (seed, step, slot), whatever the number of workers.

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

from model.adapters.adaptive_scoring import ScoreFusion, sample_gamma_num
from model.adapters.image_encoder import ImageEncoders
from model.adapters.projector import Combination
from model.adapters.usage import AdapterUsage
from model.adapters.visual_attention import attached_processors
from model.backbone import Backbone, load_backbone
from model.errors import GenerationError
from model.guidance.guidance_branch import GuidanceLayers
from model.guidance.settings import InferenceSettings
from model.methods.names import MethodName
from model.methods.registry import METHODS
from model.pictures.sheets import column
from model.pretrained import hub_name
from model.seeding import generator_of
from model.training.adapter_examples import ExamplePictures, PlanRow, share_of
from model.training.adapter_loss import AdapterModule, FrozenModels
from model.training.adapter_previews import PreviewSubject, generate_previews
from model.training.encodings import encode_captions, encode_targets, target_key
from model.training.precision import half_precision, halve_products
from model.training.target_sizes import Phase, resolution_at
from model.training.task import Prepared

#: Steps between two measurements of the gain over the base model; each takes a forward pass.
GAIN_EVERY = 20
#: Pictures of a step that an error message names.
_DESCRIBED = 16


class EncodingCache(Protocol):
    """Encodings of a plan's examples that were computed before the training (stage `cache_latents`)."""

    def latents(self, rows: Sequence[PlanRow]) -> Tensor:
        """What `encode_targets` makes of the rows' targets."""

    def texts(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """What `encode_captions` makes of the captions."""

    def check(self, backbone: Backbone) -> None:
        """Raise EncodingCacheError if they are of another backbone."""


@dataclass(kw_only=True)
class AdapterTask:
    """`FedTask` and `SamplingTask` of the adapter. Fields that do not change its weights are not compared.

    Attributes:
        backbone: Folder or hub id of the frozen base model.
        encoders: Arguments of `ImageEncoders.from_pretrained`: image_encoders, shallow_layers, reference_size, tiles.
        rows: Step -> the plan's rows of that step, by slot.
        picture: Id of the plan -> encoded picture.
        phases: The resolutions of the targets, whose sizes the plan's rows have.
        drop_text: Share of the examples that lose their caption only.
        drop_image: Share of the examples that lose their image condition only.
        drop_both: Share of the examples that lose both.
        method: One of `METHODS`.
        cross_layer: How f_shallow' joins in RealCustom++'s CCP; see `CrossLayerCrossScaleProjector`.
        cross_scale: How f_high' joins.
        score_fusion: Of RealCustom's adaptive scoring module; see `RealCustomAdapter`.
        min_snr_gamma: Of the loss weights; see `AdapterModule`.
        noises_per_example: M, timesteps and noises drawn for each example, which share the encoded reference.
        half: Dtype of the weights of the linear and convolution layers of UNet, text and image encoders, which autocast
            would otherwise cast in every pass, and of the encoding; None: unchanged.
        gradient_checkpointing: Whether the UNet's activations are computed again in the backward pass: less memory,
            more time, the same gradients.
        cache: Latents and text states of the plan; None: they are computed, and kept in memory up to a limit. With a
            cache and without `preview_subjects` the weights of VAE and text encoders are freed.
        preview_subjects: The pictures that `sample` generates.
        preview_settings: Of the pipeline that generates them.
        sample_every: See `SamplingTask`.
        device: Of the frozen models.
    """

    backbone: str
    encoders: dict[str, Any]
    rows: Callable[[int], Sequence[PlanRow]]
    picture: Callable[[str], bytes]
    phases: Sequence[Phase]
    drop_text: float
    drop_image: float
    drop_both: float
    seed: int
    method: MethodName = "realcustom++"
    cross_layer: Combination | None = "concat"
    cross_scale: Combination | None = "add"
    score_fusion: ScoreFusion | None = "scheduled"
    min_snr_gamma: float | None = None
    noises_per_example: int = 1
    half: torch.dtype | None = None
    gradient_checkpointing: bool = field(default=False, compare=False)
    cache: EncodingCache | None = field(default=None, compare=False)
    preview_subjects: Sequence[PreviewSubject] = field(default=(), compare=False)
    preview_settings: InferenceSettings = field(default_factory=InferenceSettings, compare=False)
    sample_every: int | None = field(default=None, compare=False)
    device: str = field(default="cpu", compare=False)
    _frozen: FrozenModels | None = field(default=None, init=False, repr=False)

    def module(self) -> AdapterModule:
        """A new adapter with the frozen models.

        Raises:
            ModelError: the models or the settings do not fit together.
        """
        frozen, method = self.load(), METHODS[self.method]
        options = {name: getattr(self, name) for name in method.adapter_options}
        adapter = method.new_adapter(frozen.backbone.unet, frozen.encoders.width, **options)
        module = AdapterModule(adapter, frozen, self.min_snr_gamma)
        if self.preview_subjects:  # a wrong setting must not show only when the first previews are due
            settings = self.preview_settings
            processors = attached_processors(frozen.backbone.unet)
            GuidanceLayers.of(processors, settings.mask_cross_downscales, settings.mask_self_downscales)
        return module

    def load(self) -> FrozenModels:
        """The frozen models; loaded once in a process."""
        if self._frozen is None:
            backbone = self._load_backbone()
            encoders = ImageEncoders.from_pretrained(backbone_folder=self.backbone, device=self.device, **self.encoders)
            if self.half is not None:
                halve_products(encoders, self.half)
            self._frozen = FrozenModels(backbone, encoders)
        return self._frozen

    def _load_backbone(self) -> Backbone:
        if self.cache is not None:
            self.cache.check(load_backbone(self.backbone, encoders_only=True))
        backbone = load_backbone(self.backbone, device=self.device, half=self.half)
        for phase in self.phases:
            backbone.check_resolution(phase.resolution)
        if self.cache is not None and not self.preview_subjects:
            backbone.free_encoders()
        if self.gradient_checkpointing:
            backbone.unet.enable_gradient_checkpointing()
        return backbone

    @property
    def feed(self) -> ExamplePictures:
        """The part of a batch that needs no model."""
        return ExamplePictures(
            rows=self.rows,
            picture=self.picture,
            reference_size=self.encoders["reference_size"],
            tiles=self.encoders["tiles"],
            reference_is_target=METHODS[self.method].reference_is_target,
            targets=self.cache is None,
        )

    def batch(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        """The tensors of this rank's rows of the plan; see `encode`."""
        return self.encode(self.feed.prepare(step, rank, world), step, rank, world)

    def encode(self, prepared: Prepared, step: int, rank: int, world: int) -> dict[str, Tensor]:
        """Encode what `feed` has prepared with the frozen models.

        Returns:
            latents, noise (B * M, 4, h, w); timesteps (B * M,); hidden (B * M, n_t, c_t), for SDXL text_embeds and
            time_ids; multiview (B * M,) bool; reference (B, 3, S, S) in [0, 1]; keep_image (B,) bool; crop_ratio (B,);
            measure_gain (1,) bool; gamma_num (1,) of Eq. 10, the same for all ranks.
        """
        rows = share_of(self.rows(step), rank, world)
        generators = [generator_of(self.seed, step, row.slot) for row in rows]
        uniform = torch.stack([torch.rand((), generator=generator) for generator in generators])
        keep_text, keep_image = self._keep(uniform)
        captions = [row.caption if keep else "" for row, keep in zip(rows, keep_text.tolist(), strict=True)]
        latents, count = self._latents(rows, prepared), self.noises_per_example
        shape = (count, *latents.shape[1:])
        multiview = torch.tensor([row.source == "multiview" for row in rows])
        targets = {"latents": latents, **self._texts(captions), **self._sizes(rows), "multiview": multiview}
        return {
            **{name: tensor.repeat_interleave(count, dim=0) for name, tensor in targets.items()},
            "noise": torch.cat([torch.randn(shape, generator=generator) for generator in generators]),
            "timesteps": torch.cat([self._timesteps(generator) for generator in generators]),
            "reference": _unit_tensor(prepared["reference"]),
            "keep_image": keep_image,
            "crop_ratio": torch.tensor([row.crop_ratio for row in rows]),
            "measure_gain": torch.tensor([step % GAIN_EVERY == 0]),
            "gamma_num": torch.tensor([sample_gamma_num(self.seed, step)]),
        }

    def describe(self, step: int) -> str:
        """The ids of a step's target pictures in the plan; of many the first ones."""
        ids = list(dict.fromkeys(row.target_id for row in self.rows(step)))
        more = f" and {len(ids) - _DESCRIBED} more" if len(ids) > _DESCRIBED else ""
        return f"pictures {', '.join(ids[:_DESCRIBED])}{more}"

    def after_step(self, module: nn.Module, step: int) -> None:
        """Do nothing."""

    def export(self, module: nn.Module, folder: Path) -> None:
        """Write the adapter with `save_pretrained`, and how it is used."""
        assert isinstance(module, AdapterModule)
        adapter = module.adapter
        adapter.usage = AdapterUsage(
            image_encoders=self.encoders, inference=self.preview_settings, base_model=hub_name(self.backbone)
        )
        adapter.save_pretrained(folder)

    def sample(self, module: nn.Module, step: int, folder: Path) -> None:
        """Write the previews to `folder/<step>.png`, one below the other. If they fail, warn and go on."""
        assert isinstance(module, AdapterModule)
        try:
            pictures = generate_previews(
                module, self.preview_subjects, self.preview_settings, resolution_at(self.phases, step - 1), self.half
            )
        except GenerationError as error:  # such as NaN latents: the training may still recover
            warnings.warn(f"no preview pictures of step {step}: {error}", stacklevel=2)
            return
        column(pictures).save(folder / f"{step:07d}.png")

    def _timesteps(self, generator: torch.Generator) -> Tensor:
        """The timesteps (M,) of an example: each uniform, evenly spread over the schedule (systematic sampling)."""
        steps = self.load().backbone.scheduler.config.num_train_timesteps
        first = torch.randint(steps, (1,), generator=generator)
        return (first + torch.arange(self.noises_per_example) * steps // self.noises_per_example) % steps

    def _keep(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each example keeps its text and its image condition, by a uniform draw in [0, 1) for each."""
        text, image = self.drop_text, self.drop_text + self.drop_image
        both = image + self.drop_both
        keep_text = (uniform >= text) & ~((uniform >= image) & (uniform < both))
        keep_image = (uniform < text) | (uniform >= both)
        return keep_text, keep_image

    def _texts(self, captions: list[str]) -> dict[str, Tensor]:
        if self.cache is not None:
            return self.cache.texts(captions)
        backbone = self.load().backbone

        def encode(missing: list[str]) -> tuple[Tensor, ...]:
            with half_precision(backbone.device, self.half):
                return tuple(encode_captions(backbone, missing).values())

        names = ["hidden"] if backbone.family == "sd" else ["hidden", "text_embeds"]
        return dict(zip(names, self.load().texts.get(captions, encode), strict=True))

    def _sizes(self, rows: Sequence[PlanRow]) -> dict[str, Tensor]:
        """For SDXL time_ids (B, 6)."""
        if self.load().backbone.family == "sd":
            return {}
        return {"time_ids": torch.tensor([row.time_ids for row in rows], dtype=torch.float32)}

    def _latents(self, rows: Sequence[PlanRow], prepared: Prepared) -> Tensor:
        """Latents (B, 4, h, w) of the targets."""
        if self.cache is not None:
            return self.cache.latents(rows)
        frozen = self.load()
        keys = [_key(row, whole) for row, whole in zip(rows, prepared["target_is_whole"].tolist(), strict=True)]
        pictures = dict(zip(keys, prepared["target"], strict=True))

        def encode(missing: list[str]) -> tuple[Tensor, ...]:
            targets = _unit_tensor(np.stack([pictures[key] for key in missing]))
            with half_precision(frozen.backbone.device, self._vae_half(frozen.backbone)):
                return (encode_targets(frozen.backbone, targets),)

        return frozen.latents.get(keys, encode)[0]

    def _vae_half(self, backbone: Backbone) -> torch.dtype | None:
        """SDXL's VAE overflows in fp16."""
        return None if self.half == torch.float16 and backbone.vae.config.force_upcast else self.half


def _key(row: PlanRow, is_whole: bool) -> str:
    return target_key(row.target_id, row.size, None if is_whole else (row.target_crop_x, row.target_crop_y))


def _unit_tensor(pictures: NDArray[Any]) -> Tensor:
    """Pictures (B, H, W, 3), of bytes or already in [0, 1] -> (B, 3, H, W) in [0, 1]."""
    tensor = torch.tensor(pictures).permute(0, 3, 1, 2).contiguous()  # a copy: a feeder's arrays may be read-only
    return tensor.float() / 255 if pictures.dtype == np.uint8 else tensor
