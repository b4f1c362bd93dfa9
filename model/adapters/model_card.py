"""The model card of an adapter: the README.md beside its weights, in the Hugging Face hub's format."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCardData

from model.adapters.usage import AdapterUsage

_CARD = """---
{metadata}
---
# {method} adapter

Weights of `{module}.{name}`, for use with Realword's code. The adapter does not change the base model's weights: it is
attached and detached through attention processors.

Paper: *{paper}*.

    from diffusers import DiffusionPipeline
    from model.diffusers_pipelines.attachment import attach_adapter

    pipe = DiffusionPipeline.from_pretrained("{base_model}")
    pipe = attach_adapter(pipe, "this folder")
    picture = pipe("a dog in the snow", subjects=reference, words="dog").images[0]

`reference` is a picture of the subject (`PIL.Image`), `words` the word of the prompt that it stands for.

| setting | value |
|---|---|
{settings}

The adapter fits a base model whose UNet has the cross-attention layers that `config.json` lists. The record of the
training run has the training data and the evaluation.
"""


def model_card(
    model: type,
    method: str,
    paper: str,
    config: Mapping[str, Any],
    parameters: int,
    usage: AdapterUsage | None,
    licence: str,
) -> str:
    """The text of a model card.

    Args:
        model: the adapter's class.
        method: the method's name in the paper.
        paper: the paper's title.
        config: the adapter's config; of `layers` the card has only the number.
        parameters: number of parameters.
        usage: names the base model; None: not known.
        licence: an identifier of the hub.
    """
    base_model = None if usage is None else usage.base_model
    metadata = ModelCardData(
        base_model=base_model,
        base_model_relation=None if base_model is None else "adapter",
        library_name="diffusers",
        license=licence,
        pipeline_tag="text-to-image",
        tags=["subject-driven-generation", "realcustom"],
    )
    settings = {key: value for key, value in config.items() if not key.startswith("_") and key != "layers"}
    rows = {"cross-attention layers": len(config["layers"]), **settings, "parameters": f"{parameters:,}"}
    if usage is not None:
        rows |= usage.image_encoders
    return _CARD.format(
        metadata=metadata.to_yaml().strip(),
        method=method,
        module=model.__module__,
        name=model.__name__,
        paper=paper,
        base_model=base_model or "the base model",
        settings="\n".join(f"| {key} | {value} |" for key, value in rows.items()),
    )
