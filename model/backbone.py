"""The frozen latent diffusion model that is customized: Stable Diffusion 1.5, XL, or the micro one.

It is loaded from diffusers' folder layout (`vae/`, `unet/`, `scheduler/`, `tokenizer/`, `text_encoder/`, and for XL
`tokenizer_2/`, `text_encoder_2/`), local or on the hub, from safetensors only.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel, CLIPTextModelWithProjection
from transformers.utils import cached_file

from model.backbone_layout import check_backbone_files
from model.errors import BackboneError
from model.phrases import composed
from model.pooled_text import keep_projection_inputs
from model.pretrained import load_pretrained, split_revision
from model.prompt_tokens import TOKENIZING, cut_off, token_positions
from model.training.precision import halve_products

Family = Literal["sd", "sdxl"]
#: The text encoders' classes, by the suffix of their folders.
_TEXT_PARTS: dict[Family, dict[str, Any]] = {
    "sd": {"": CLIPTextModel},
    "sdxl": {"": CLIPTextModel, "_2": CLIPTextModelWithProjection},
}
#: The other files of a tokenizer, of which each has some.
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json")
_LOADING_ERRORS = (OSError, ValueError, KeyError)


@dataclass(frozen=True)
class PromptEmbedding:
    """A batch of encoded prompts."""

    hidden: Tensor  # (B, n_t, c_t)
    added_conditions: dict[str, Tensor] = field(default_factory=dict)  # SDXL: text_embeds (B, c_p), time_ids (B, 6)

    @staticmethod
    def cat(embeddings: Sequence["PromptEmbedding"]) -> "PromptEmbedding":
        """Concatenate batches."""
        added = {
            name: torch.cat([one.added_conditions[name] for one in embeddings])
            for name in embeddings[0].added_conditions
        }
        return PromptEmbedding(torch.cat([one.hidden for one in embeddings]), added)


@dataclass
class Backbone:
    """A loaded base model, frozen and in evaluation mode. Parts without weights are on the device "meta"."""

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler: Any  # a diffusers scheduler
    tokenizers: list[Any]
    text_encoders: list[Any]
    family: Family
    zero_empty_prompt: bool = False  # SDXL's `force_zeros_for_empty_prompt`: without a negative prompt, all zeros
    released_text: bool = False  # SDXL's conditions as the authors of RealCustom++ make them (`model.methods.release`)
    negative_prompt: str | None = None  # where none is given

    @property
    def device(self) -> torch.device:
        """Where the UNet runs; with `model.offload` its weights are there only while it runs."""
        hook = getattr(self.unet, "_hf_hook", None)
        if hook is not None:
            return hook.execution_device
        device = next(self.unet.parameters()).device  # diffusers' property walks through all modules: 2 ms
        return self.vae.device if device.type == "meta" else device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the UNet's weights."""
        return next(self.unet.parameters()).dtype

    @property
    def latent_scale(self) -> int:
        """Width of a latent position, pixels."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def resolution(self) -> int:
        """Side of the backbone's training pictures, pixels."""
        return self.unet.config.sample_size * self.latent_scale

    def check_resolution(self, side: int) -> None:
        """Refuse pictures whose side the VAE cannot divide.

        Raises:
            BackboneError: the side is no multiple of `latent_scale`.
        """
        if side % self.latent_scale:
            raise BackboneError(
                f"resolution {side}: the backbone's VAE needs sides that are multiples of {self.latent_scale}."
            )

    def free_encoders(self) -> None:
        """Free the memory of the VAE and the text encoders, for a training that reads cached encodings."""
        for module in (self.vae, *self.text_encoders):
            module.to("meta")

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str | None], size: tuple[int, int] | None = None) -> PromptEmbedding:
        """Text states of a batch of prompts.

        Args:
            prompts: B prompts; the encoder truncates long ones. None is no prompt: "", or SDXL's zeros.
            size: height and width of the picture to generate, pixels (SDXL's time ids); by default the resolution.

        Returns:
            hidden (B, n_t, c_t); for SDXL also the pooled embedding and the time ids.
        """
        ids = self.token_ids([prompt or "" for prompt in prompts])
        encoded = self.encode_ids([of_encoder.to(self.device) for of_encoder in ids], size)
        without = torch.tensor([prompt is None for prompt in prompts], device=self.device)
        if not self.zero_empty_prompt or not without.any():
            return encoded
        hidden, added = encoded.hidden, encoded.added_conditions
        pooled = added["text_embeds"].masked_fill(without[:, None], 0)
        return PromptEmbedding(hidden.masked_fill(without[:, None, None], 0), added | {"text_embeds": pooled})

    def token_ids(self, prompts: Sequence[str]) -> list[Tensor]:
        """The ids (B, n_t) of B prompts for each text encoder, padded; long prompts are truncated."""
        texts = [composed(prompt) for prompt in prompts]
        with TOKENIZING:
            return [
                tokenizer(
                    texts,
                    padding="max_length",
                    max_length=tokenizer.model_max_length,
                    truncation=True,
                    return_tensors="pt",
                ).input_ids
                for tokenizer in self.tokenizers
            ]

    def token_count(self, prompt: str) -> int:
        """Tokens of a prompt with the special ones, also of its part that `encode_prompt` truncates."""
        with TOKENIZING:
            return len(self.tokenizers[0](composed(prompt), truncation=False, verbose=False).input_ids)

    def encode_ids(self, ids: Sequence[Tensor], size: tuple[int, int] | None = None) -> PromptEmbedding:
        """`encode_prompt` of token ids (B, n_t) for each text encoder, on its device; gradients flow."""
        pooled: list[Tensor] = []
        with keep_projection_inputs(self.text_encoders[-1], pooled) if self.released_text else nullcontext():
            encoded = [
                encoder(one, output_hidden_states=True) for encoder, one in zip(self.text_encoders, ids, strict=True)
            ]
        if self.family == "sd":
            return PromptEmbedding(encoded[0].last_hidden_state)
        hidden = torch.cat([output.hidden_states[-2] for output in encoded], dim=-1)
        return PromptEmbedding(hidden, self._added_conditions((pooled or [encoded[-1].text_embeds])[0], size))

    def encode_negative_prompt(
        self, negative_prompt: str | None, batch: int, size: tuple[int, int] | None = None
    ) -> PromptEmbedding:
        """The unconditional embedding, `batch` times: of the negative prompt, the model's own one, or no prompt."""
        chosen = self.negative_prompt if negative_prompt is None else negative_prompt
        encoded = self.encode_prompt([chosen], size)
        added = {name: tensor.expand(batch, -1) for name, tensor in encoded.added_conditions.items()}
        return PromptEmbedding(encoded.hidden.expand(batch, -1, -1), added)

    def token_positions(self, prompt: str, phrase: str) -> list[int]:
        """Positions of a phrase's tokens in the encoded prompt: of all occurrences, in upper or lower case.

        Args:
            prompt: as given to `encode_prompt`.
            phrase: one or more whole words of the prompt.

        Raises:
            GenerationError: the phrase is empty, not in the prompt (the message lists the prompt's words), or only in
                the part that is truncated.
        """
        return token_positions(self.tokenizers[0], prompt, phrase)

    def cut_off(self, prompt: str) -> str:
        """The end of a prompt that a text encoder does not read; "" if they read all."""
        return max((cut_off(tokenizer, prompt) for tokenizer in self.tokenizers), key=len)

    @torch.no_grad()
    def encode_pictures(self, pictures: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] -> scaled latents (B, 4, H / scale, W / scale).

        With a generator the latents are sampled from the encoder's distribution; without one they are its mode.
        """
        distribution = self.vae.encode(pictures.to(self.device, self.vae.dtype)).latent_dist
        latents = distribution.mode() if generator is None else distribution.sample(generator)
        return latents * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, 4, h, w) -> pictures (B, 3, H, W) in [-1, 1]; values are not clipped."""
        scaled = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
        with torch.autocast(self.device.type, enabled=False):  # in fp16 SDXL's decoder overflows
            return self.vae.decode(scaled).sample

    def predict(self, latents: Tensor, timestep: Tensor, prompt: PromptEmbedding, **attention: Any) -> Tensor:
        """The UNet's output; `attention` goes to the attention processors (`visual`, `recorder`)."""
        return self.unet(
            latents,
            timestep,
            prompt.hidden,
            added_cond_kwargs=prompt.added_conditions or None,
            cross_attention_kwargs=attention or None,
        ).sample

    def _added_conditions(self, pooled: Tensor, size: tuple[int, int] | None) -> dict[str, Tensor]:
        """SDXL: original size, no crop, target size; the authors of RealCustom++ give the width first."""
        first, second = size or (self.resolution, self.resolution)
        if self.released_text:
            first, second = second, first
        time_ids = torch.tensor([[first, second, 0, 0, first, second]], device=self.device, dtype=pooled.dtype)
        return {"text_embeds": pooled, "time_ids": time_ids.expand(len(pooled), -1)}


def load_backbone(
    folder_or_hub_id: str | Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    *,
    half: torch.dtype | None = None,
    encoders_only: bool = False,
) -> Backbone:
    """Load a frozen base model in diffusers' layout; a part of which only a variant is there (fp16) from that.

    A VAE that overflows in fp16, such as SDXL's, is loaded in fp32. No more than one model is there in `dtype` when the
    others are to be halved.

    Args:
        folder_or_hub_id: where the model is: a folder, `org/name` or `org/name@revision`.
        dtype: of the weights.
        device: of the weights.
        half: dtype of the linear and convolution layers of UNet and text encoders (`halve_products`); None: `dtype`.
        encoders_only: leave the UNet without weights, on the device "meta".

    Raises:
        BackboneError: a part is missing, damaged, of another kind, or does not fit the UNet; names the part.
    """
    location = folder_or_hub_id
    check_backbone_files(location)
    unet = _halved(_load_unet(location, dtype, with_weights=not encoders_only), half)
    vae = load_part(AutoencoderKL, location, "vae", torch_dtype=dtype)
    if dtype == torch.float16 and vae.config.force_upcast:
        vae = vae.to(torch.float32)
    family = family_of(unet.config)
    parts = _TEXT_PARTS[family]
    encoders = [
        _halved(load_part(kind, location, f"text_encoder{suffix}", dtype=dtype), half) for suffix, kind in parts.items()
    ]
    for module in (unet, vae, *encoders):
        module.eval().requires_grad_(False)
    for module in (vae, *encoders) if encoders_only else (unet, vae, *encoders):
        module.to(device)
    _check_widths(location, unet, vae, encoders)
    index = _read_config(DiffusionPipeline, location)
    schedule = _read_config(DDIMScheduler, location, subfolder="scheduler")
    return Backbone(
        vae=vae,
        unet=unet,
        scheduler=getattr(diffusers, schedule["_class_name"]).from_config(schedule),
        tokenizers=[load_tokenizer(location, f"tokenizer{suffix}") for suffix in parts],
        text_encoders=encoders,
        family=family,
        zero_empty_prompt=family == "sdxl" and bool(index.get("force_zeros_for_empty_prompt", True)),
    )


def _halved(model: Any, half: torch.dtype | None) -> Any:
    if half is not None:
        halve_products(model, half)
    return model


def read_family(folder_or_hub_id: str | Path) -> Family:
    """The family of a backbone, from its UNet's configuration alone.

    Raises:
        BackboneError: it is not in diffusers' layout.
    """
    return family_of(_read_config(UNet2DConditionModel, folder_or_hub_id, subfolder="unet"))


def family_of(unet_config: Mapping[str, Any]) -> Family:
    """The family of a UNet's configuration."""
    return "sdxl" if unet_config.get("addition_embed_type") == "text_time" else "sd"


def _load_unet(location: str | Path, dtype: torch.dtype, *, with_weights: bool) -> UNet2DConditionModel:
    if with_weights:
        return load_part(UNet2DConditionModel, location, "unet", torch_dtype=dtype)
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(_read_config(UNet2DConditionModel, location, subfolder="unet"))


def _check_widths(location: str | Path, unet: Any, vae: Any, encoders: Sequence[Any]) -> None:
    """Refuse parts of different models, which would fail in the first pass of the UNet."""
    states, needed = sum(encoder.config.hidden_size for encoder in encoders), unet.config.cross_attention_dim
    if states != needed:
        raise BackboneError(
            f"backbone {location}: its text states have width {states}, but its UNet needs width {needed}."
        )
    channels, needed = vae.config.latent_channels, unet.config.in_channels
    if channels != needed:
        raise BackboneError(
            f"backbone {location}: its VAE's latents have {channels} channels, but its UNet needs {needed}; models for "
            "inpainting or editing are not supported."
        )


def load_part(kind: Any, location: str | Path, part: str, **options: Any) -> Any:
    """Load a part with weights, as `load_pretrained`.

    Raises:
        BackboneError: the part is missing or damaged.
    """
    try:
        return load_pretrained(kind, location, part, **options)
    except _LOADING_ERRORS as error:
        raise _part_error(location, part, error) from error


def load_tokenizer(location: str | Path, part: str = "tokenizer") -> Any:
    """Load a tokenizer of a backbone.

    Raises:
        BackboneError: it is missing or damaged.
    """
    try:
        return AutoTokenizer.from_pretrained(_tokenizer_folder(location, part))
    except _LOADING_ERRORS as error:
        raise _part_error(location, part, error) from error


def _tokenizer_folder(location: str | Path, part: str) -> str:
    """The folder of a tokenizer's files; those of a hub id are downloaded if the cache does not have them.

    By a hub id `AutoTokenizer` also asks for a `config.json`, which a tokenizer in a subfolder does not have; without a
    network that ends in an error.
    """
    name, options = split_revision(location)
    if Path(name).is_dir():
        return str(Path(name) / part)
    needed = cached_file(name, "tokenizer_config.json", subfolder=part, **options)
    for file in _TOKENIZER_FILES:
        cached_file(name, file, subfolder=part, _raise_exceptions_for_missing_entries=False, **options)
    return str(Path(needed).parent)


def _part_error(location: str | Path, part: str, error: Exception) -> BackboneError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if not Path(location).exists() and "does not appear to have a file" in reason:  # so does diffusers say both
        reason = f"{reason.rstrip('.')}, or it is not in the hub's cache and the hub cannot be reached."
    return BackboneError(f"backbone {location}: its {part} cannot be loaded: {reason}")


def _read_config(kind: Any, location: str | Path, **options: Any) -> dict[str, Any]:
    name, revision = split_revision(location)
    try:
        return kind.load_config(name, **revision, **options)
    except OSError as error:
        raise BackboneError(f"backbone {location} is not in diffusers' layout: {str(error).splitlines()[0]}") from error
