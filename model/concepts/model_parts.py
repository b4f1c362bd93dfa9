"""The parts of a model into which a concept goes, of diffusers' pipelines and of this project's, and their names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from diffusers import UNet2DConditionModel
from torch import nn

from model.concepts.concept import ConceptError

_TEXT_MODEL = "text_model."


@dataclass(frozen=True)
class ModelParts:
    """A model's UNet, tokenizers and text encoders."""

    unet: UNet2DConditionModel
    tokenizers: tuple[Any, ...]
    text_encoders: tuple[Any, ...]

    @classmethod
    def of(cls, model: Any) -> ModelParts:
        """The parts of a diffusers Stable Diffusion (XL) pipeline, a `RealCustomPipeline` or a `Backbone`.

        Raises:
            ConceptError: It is something else, or a pipeline without its first text encoder.
        """
        model = getattr(model, "backbone", model)
        unet, encoders, tokenizers = getattr(model, "unet", None), [], []
        if isinstance(getattr(model, "text_encoders", None), list):
            encoders, tokenizers = model.text_encoders, model.tokenizers
        else:
            encoders = [getattr(model, name, None) for name in ("text_encoder", "text_encoder_2")]
            tokenizers = [getattr(model, name, None) for name in ("tokenizer", "tokenizer_2")]
            if encoders[1] is None:
                encoders, tokenizers = encoders[:1], tokenizers[:1]
        if unet is None or None in encoders or None in tokenizers:
            raise ConceptError(
                f"a concept cannot be loaded into a {type(model).__name__}: a Stable Diffusion or Stable Diffusion XL "
                "pipeline with its text encoders and tokenizers is needed."
            )
        return cls(unet, tuple(tokenizers), tuple(encoders))

    @property
    def widths(self) -> list[int]:
        """The width of each text encoder's token embeddings."""
        return [encoder.get_input_embeddings().weight.shape[1] for encoder in self.text_encoders]

    def cross_attention(self) -> dict[str, Any]:
        """The UNet's cross-attention layers by their names, in the order of the UNet: down, middle, up."""
        places = ("down_blocks", "mid_block", "up_blocks")
        found = {name: module for name, module in self.unet.named_modules() if name.endswith(".attn2")}
        return dict(sorted(found.items(), key=lambda item: places.index(item[0].split(".")[0])))  # sorted() is stable

    def keys_values(self) -> dict[str, tuple[nn.Linear, nn.Linear]]:
        """The projections to keys and values of each cross-attention layer."""
        layers = self.layers()
        return {name: (layers[f"unet.{name}.to_k"], layers[f"unet.{name}.to_v"]) for name in self.cross_attention()}

    def layers(self) -> dict[str, Any]:
        """The linear and convolution layers by the names of `Concept.lora`; those within peft's too."""
        found = {name: module for name, module in self.modules() if isinstance(module, nn.Linear | nn.Conv2d)}
        return {name.replace(".base_layer", ""): module for name, module in found.items() if ".lora_" not in name}

    def parameters(self) -> dict[str, tuple[nn.Module, str]]:
        """All parameters by the names of `Concept.weights`: the module that has it, and its name there."""
        found = {
            f"{name}.{own}": (module, own)
            for name, module in self.modules()
            for own, _ in module.named_parameters(recurse=False)
        }
        return {name.replace(".base_layer", ""): place for name, place in found.items() if ".lora_" not in name}

    def unread(self) -> list[nn.Module]:
        """The ends of text encoders that nothing reads: the UNet of SDXL reads the first one's penultimate states."""
        found = []
        for encoder in self.text_encoders[:-1]:
            ends = (f"layers.{encoder.config.num_hidden_layers - 1}", "final_layer_norm")
            found += [module for name, module in encoder.named_modules() if name.endswith(ends)]
        return found

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """All modules of UNet and text encoders, with the names that files have for them."""
        for name, module in self.unet.named_modules():
            yield f"unet.{name}", module
        for suffix, encoder in zip(("", "_2"), self.text_encoders, strict=False):
            for name, module in encoder.named_modules():
                # Files have a prefix which the modules of a CLIPTextModel have lost in transformers 5.
                is_outside = name.startswith((_TEXT_MODEL, "text_projection"))
                yield f"text_encoder{suffix}.{'' if is_outside else _TEXT_MODEL}{name}", module


def compvis_names(unet: UNet2DConditionModel) -> dict[str, str]:
    """The names of the original Stable Diffusion code for a UNet's blocks: diffusers' name -> `input_blocks.1.1`, ...

    They depend on the number of layers of a block. Resnets, attentions, downsamplers and upsamplers are listed.
    """
    names: dict[str, str] = {}
    index = 1
    for number, block in enumerate(unet.down_blocks):
        for layer in range(len(block.resnets)):
            names[f"down_blocks.{number}.resnets.{layer}"] = f"input_blocks.{index}.0"
            names[f"down_blocks.{number}.attentions.{layer}"] = f"input_blocks.{index}.1"
            index += 1
        if block.downsamplers is not None:
            names[f"down_blocks.{number}.downsamplers.0.conv"] = f"input_blocks.{index}.0.op"
            index += 1
    middle = ("resnets.0", "attentions.0", "resnets.1")
    names |= {f"mid_block.{name}": f"middle_block.{place}" for place, name in enumerate(middle)}
    index = 0
    for number, block in enumerate(unet.up_blocks):
        has_attention = getattr(block, "attentions", None) is not None
        for layer in range(len(block.resnets)):
            names[f"up_blocks.{number}.resnets.{layer}"] = f"output_blocks.{index}.0"
            names[f"up_blocks.{number}.attentions.{layer}"] = f"output_blocks.{index}.1"
            index += 1
        if block.upsamplers is not None:
            names[f"up_blocks.{number}.upsamplers.0.conv"] = f"output_blocks.{index - 1}.{1 + has_attention}.conv"
    return names
