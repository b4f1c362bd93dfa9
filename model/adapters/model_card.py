"""The model card of an adapter: the README.md beside its weights, in the Hugging Face hub's format."""

from collections.abc import Mapping
from typing import Any

_CARD = """---
library_name: diffusers
pipeline_tag: text-to-image
tags: [subject-driven-generation]
---
# {method} adapter

Weights of `{module}.{name}`. The adapter does not change the base model's weights: it is attached and detached through
attention processors.

Paper: *{paper}*.

    from {module} import {name}

    adapter = {name}.from_pretrained("this folder")
    adapter.attach(unet)  # a diffusers UNet2DConditionModel
    adapter.detach(unet)

| setting | value |
|---|---|
{settings}

The adapter fits a base model whose UNet has the cross-attention layers that `config.json` lists. The record of the
training run has the training data and the evaluation.
"""


def model_card(model: type, method: str, paper: str, config: Mapping[str, Any], parameters: int) -> str:
    """The text of a model card.

    Args:
        model: the adapter's class.
        method: the method's name in the paper.
        paper: the paper's title.
        config: the adapter's config; of `layers` the card has only the number.
        parameters: number of parameters.
    """
    settings = {key: value for key, value in config.items() if not key.startswith("_") and key != "layers"}
    rows = {"cross-attention layers": len(config["layers"]), **settings, "parameters": f"{parameters:,}"}
    return _CARD.format(
        method=method,
        module=model.__module__,
        name=model.__name__,
        paper=paper,
        settings="\n".join(f"| {key} | {value} |" for key, value in rows.items()),
    )
