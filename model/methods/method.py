"""The interface of a method: all that differs between RealCustom and RealCustom++ in training and inference.

To add a method, write a module with its adapter (a `VisualAdapter`), its generation branch and its `Method`, add the
name to `model.methods.names` and an instance to `model.methods.registry.METHODS`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from diffusers import UNet2DConditionModel
from torch import Tensor

from model.adapters.adapter import VisualAdapter
from model.adapters.image_encoder import ImageEncoders
from model.adapters.visual_attention import VisualCondition
from model.backbone import Backbone
from model.guidance.denoising import Generation, Guidance
from model.guidance.generation_branch import DenoisingStep, GenerationBranch
from model.guidance.samplers import new_scheduler
from model.guidance.settings import InferenceSettings, Sampler
from model.guidance.subjects import Subject

_MICRO_ENCODERS = {
    "image_encoders": ("clip", "dino"),
    "shallow_layers": ((0, 1, 2), (0, 1, 2)),
    "reference_size": 64,
    "tiles": 2,
}
AdapterT = TypeVar("AdapterT", bound=VisualAdapter)


class Method(ABC, Generic[AdapterT]):
    """A method without state, for any number of adapters.

    Attributes:
        name: In configurations, one of `MethodName`.
        adapter_class: Class of its adapters.
        adapter_options: Arguments of `new_adapter` that a configuration sets.
        reference_is_target: Whether a training example's reference is cut from the target's own square, instead of the
            reference picture of the plan.
        takes_auxiliary_branch: Whether DCI can run beside it: the prompt has one branch, and `predict` uses
            `predict_guided_rows`.
        guides_by_text_branch: Whether the guided prediction also has the text branch's, so that `conditional_rows`
            needs it.
    """

    name: ClassVar[str]
    adapter_class: ClassVar[type[VisualAdapter]]
    adapter_options: ClassVar[tuple[str, ...]] = ()
    reference_is_target: ClassVar[bool] = False
    takes_auxiliary_branch: ClassVar[bool] = False
    guides_by_text_branch: ClassVar[bool] = False

    @abstractmethod
    def new_adapter(self, unet: UNet2DConditionModel, image_width: int, **options: Any) -> AdapterT:
        """An untrained adapter for a base UNet.

        Args:
            unet: of the base model.
            image_width: `ImageEncoders.width`.
            options: of `adapter_options`; those of ablations.
        """

    def own_settings(self, unet: UNet2DConditionModel) -> InferenceSettings | None:
        """The settings that come with the method's adapters, whatever is configured; None: none do.

        Args:
            unet: of the base model, with an adapter attached.
        """
        return None

    def loading_options(
        self, config: Mapping[str, Any], backbone: str | Path, given: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Arguments of `ImageEncoders.from_pretrained`, checked before anything large is loaded.

        Args:
            config: of the adapter.
            backbone: its location.
            given: those that the caller gives; for the others there are the method's own, or the micro encoders'.

        Raises:
            ModelError: they do not fit the adapter.
        """
        return {**_MICRO_ENCODERS, **given}

    def prepare_backbone(self, backbone: Backbone) -> Backbone:
        """The base model as the method uses it, with the same weights.

        Raises:
            AdapterError: it is of another family.
        """
        return backbone

    def prepare_encoders(self, encoders: ImageEncoders) -> ImageEncoders:
        """The image encoders as the method uses them, with the same weights.

        Raises:
            ImageEncoderError: they are not those that the method needs.
        """
        return encoders

    def new_scheduler(self, sampler: Sampler, config: Mapping[str, Any]) -> Any:
        """A scheduler without timesteps; `config` is that of the backbone's."""
        return new_scheduler(sampler, config)

    @abstractmethod
    def training_condition(
        self,
        adapter: AdapterT,
        encoders: ImageEncoders,
        batch: Mapping[str, Tensor],
        noisy: Tensor,
        alpha_bar: Tensor,
    ) -> VisualCondition:
        """The visual condition of a training batch.

        Args:
            adapter: in training.
            encoders: frozen.
            batch: of `AdapterTask`, with B references and M rows for each; the image condition is dropped for those
                without `keep_image`.
            noisy: z_t (B * M, 4, h, w).
            alpha_bar: of each row's timestep (B * M,).
        """

    @abstractmethod
    def generation_branch(
        self,
        adapter: AdapterT,
        encoders: ImageEncoders,
        subjects: Sequence[Sequence[Subject]],
        settings: InferenceSettings,
    ) -> GenerationBranch:
        """Encode the references of each picture's subjects, every distinct picture once.

        Args:
            adapter: trained.
            encoders: that the adapter was trained with.
            subjects: of each picture, with their strengths.
            settings: of the request.

        Raises:
            GenerationError: a setting does not fit the encoders.
        """

    @abstractmethod
    def predict(self, backbone: Backbone, generation: Generation, guidance: Guidance, step: DenoisingStep) -> Tensor:
        """The guided prediction (B, 4, h, w) of a step in which the subjects take part."""

    def conditional_rows(
        self, text: Tensor, visual: Tensor, guidance_scale: float, image_guidance_scale: float
    ) -> Tensor:
        """The rows (B, 4, h, w) from which classifier-free guidance makes this method's guided prediction.

        For pipelines that do the guidance themselves: eps_0 + omega (rows - eps_0) is what `predict` returns.

        Args:
            text: The text branch's prediction (B, 4, h, w).
            visual: The generation branch's.
            guidance_scale: omega.
            image_guidance_scale: See `InferenceSettings`.
        """
        return visual
