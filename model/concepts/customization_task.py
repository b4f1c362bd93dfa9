"""The training problem of every customization method, with or without the MLM loss, class pictures and ICO."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from model.backbone import Backbone, load_backbone
from model.concepts.concept import ConceptError
from model.concepts.contextualizer import Contextualizer
from model.concepts.customization_examples import (
    DiffusionExamples,
    RichPrompts,
    class_examples,
    slots_of,
    subject_examples,
)
from model.concepts.customization_loss import CustomizationModule
from model.concepts.customization_settings import (
    WITH_PRIOR,
    ConceptSubject,
    CustomizationSettings,
    placeholder_key,
)
from model.concepts.folder import write_concept


@dataclass(frozen=True)
class _Loaded:
    """The models and examples of a process."""

    backbone: Backbone
    module: CustomizationModule
    pictures: DiffusionExamples
    class_pictures: DiffusionExamples | None
    rich: RichPrompts | None


@dataclass(kw_only=True)
class CustomizationTask:
    """`SamplingTask` and `RatedTask` of a concept. Fields that do not change its weights are not compared.

    Attributes:
        backbone: Folder or hub id of the base model.
        subjects: One; several are learned together by Custom Diffusion.
        settings: What is learned, and how.
        seed: Of the initial weights and the examples.
        contextualizer: Folder of psi and p_mask; needed with `settings.mlm`.
        rich_prompts: Context-rich prompts with the placeholders; needed with `settings.mlm`.
        half: Dtype of the frozen linear and convolution layers; None: unchanged.
        gradient_checkpointing: Whether the activations of UNet and text encoders are computed again in the backward
            pass: less memory, more time, the same gradients.
        sample_every: See `SamplingTask`.
        device: Of the models.
    """

    backbone: str
    subjects: tuple[ConceptSubject, ...]
    settings: CustomizationSettings
    seed: int
    contextualizer: str | None = None
    rich_prompts: tuple[str, ...] = ()
    half: torch.dtype | None = None
    gradient_checkpointing: bool = field(default=False, compare=False)
    sample_every: int | None = field(default=None, compare=False)
    device: str = field(default="cpu", compare=False)
    _loaded: _Loaded | None = field(default=None, init=False, repr=False)

    def module(self) -> CustomizationModule:
        """What is trained, with the backbone.

        Raises:
            ModelError: The models, the subjects or the settings do not fit together.
        """
        return self._load().module

    def batch(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        """This rank's share of a step's pictures, class pictures and context-rich prompts.

        Returns:
            See `DiffusionExamples.batch` and `RichPrompts.batch`.
        """
        settings, loaded = self.settings, self._load()
        slots = slots_of(settings, rank, world)
        batch = loaded.pictures.batch(self.seed, step, slots, settings.flip, settings.crop, settings.resize)
        if loaded.class_pictures is not None:
            batch |= loaded.class_pictures.batch(self.seed, step, slots, settings.flip, settings.crop)
        if loaded.rich is not None:
            batch |= loaded.rich.batch(self.seed, step, slots, settings.mask_rate)
        return batch

    def rates(self, module: nn.Module) -> Mapping[str, float]:
        """ICO's contexts learn faster than the rest."""
        assert isinstance(module, CustomizationModule)
        return module.rates()

    def after_step(self, module: nn.Module, step: int) -> None:
        """Do nothing."""

    def export(self, module: nn.Module, folder: Path) -> None:
        """Write a concept folder."""
        assert isinstance(module, CustomizationModule)
        is_folder = Path(self.backbone).is_dir()  # its path is this machine's matter
        write_concept(folder, module.concept(Path(self.backbone).name if is_folder else self.backbone))

    def sample(self, module: nn.Module, step: int, folder: Path) -> None:
        """Write the concept to `folder/step-<step>`, from which pictures can be painted."""
        self.export(module, folder / f"step-{step:06d}")

    def _load(self) -> _Loaded:
        """The models and examples; loaded once in a process."""
        if self._loaded is None:
            self._check()
            backbone = load_backbone(self.backbone, device=self.device, half=self.half)
            if self.gradient_checkpointing:
                backbone.unet.enable_gradient_checkpointing()
                for encoder in backbone.text_encoders:
                    _checkpoint_layers(encoder)
            psi = self._load_psi(backbone)
            module = CustomizationModule(backbone, self.subjects, self.settings, self.seed, psi)
            self._loaded = self._with_examples(backbone, module)
        return self._loaded

    def _load_psi(self, backbone: Backbone) -> Contextualizer | None:
        if not self.settings.mlm:
            return None
        psi = Contextualizer.from_pretrained(self.contextualizer).to(self.device).eval().requires_grad_(False)
        table = backbone.text_encoders[0].get_input_embeddings().weight
        if (psi.config["vocabulary"], psi.config["width"]) != tuple(table.shape):
            raise ConceptError(
                f"the contextualizer {self.contextualizer} was trained for another text encoder than the backbone's."
            )
        return psi

    def _with_examples(self, backbone: Backbone, module: CustomizationModule) -> _Loaded:
        settings, placeholders = self.settings, [subject.placeholder for subject in self.subjects]
        return _Loaded(
            backbone,
            module,
            subject_examples(backbone, self.subjects, settings.says_size),
            class_examples(backbone, self.subjects) if settings.prior_weight else None,
            RichPrompts(module.frozen[2], self.rich_prompts, placeholders, module.layers) if settings.mlm else None,
        )

    def _check(self) -> None:
        settings = self.settings
        if settings.mlm and self.contextualizer is None:
            raise ConceptError("the MLM loss needs a contextualizer.")
        if len(self.subjects) > 1 and settings.method != "custom_diffusion":
            raise ConceptError(f"{settings.method} learns one subject, not {len(self.subjects)}: use custom_diffusion.")
        if len({placeholder_key(subject.placeholder) for subject in self.subjects}) < len(self.subjects):
            raise ConceptError("two subjects have one placeholder: give each its own.")
        if settings.prompts == "ico" and any(subject.captions is not None for subject in self.subjects):
            raise ConceptError("ICO learns its prompts and uses no captions.")
        if settings.prior_weight and settings.method not in WITH_PRIOR:
            raise ConceptError(f"{settings.method} leaves the class word as it is and needs no class pictures.")


def _checkpoint_layers(encoder: PreTrainedModel) -> None:
    """transformers does it in training mode only. The layers' parts stay in evaluation mode, without dropout."""
    encoder.activation_checkpointing_enable()
    for module in encoder.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True
