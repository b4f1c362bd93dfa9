"""The model card that is written beside an adapter's weights (README.md, as the Hugging Face hub reads it)."""

from collections.abc import Mapping
from typing import Any

_CARD = """---
library_name: diffusers
pipeline_tag: text-to-image
tags: [subject-driven-generation]
---
# {method} adapter

Weights of `{module}.{name}`. The base model is not changed by them: they are attached through attention processors and
detached without trace.

Paper: *{paper}*.

    from {module} import {name}

    adapter = {name}.from_pretrained("this folder")
    adapter.attach(unet)  # a diffusers UNet2DConditionModel
    adapter.detach(unet)

| setting | value |
|---|---|
{settings}

They fit a base model whose UNet has the cross-attention layers that `config.json` lists. What they were trained on, and
how well they do, is in the record of the run that made them; this card does not know it.
"""


def model_card(model: type, method: str, paper: str, config: Mapping[str, Any], parameters: int) -> str:
    """The card's text.

    Args:
        model: class of the weights.
        method: its name in the paper.
        paper: the paper's title.
        config: as registered; the layers are counted, not listed.
        parameters: their number.
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
