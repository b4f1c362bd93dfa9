"""The adapter from elsewhere that `serve` and `serve deploy` paint with, if the configuration names one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.cli.painting_model import model_of_adapter
from pipelines.config.loading import chosen_values
from stages.config import Config
from stages.serve.given_adapter import given_model
from stages.serve.served_model import ServedModel


def served_adapter(config: Config, settings: Sequence[str]) -> ServedModel | None:
    """The model of `backbone.adapter`; None: it names none.

    Args:
        config: As the server has it.
        settings: As after --set: those of the section `inference` are the user's choices.

    Raises:
        PipelineError: See `model_of_adapter`.
    """
    if config.backbone.adapter is None:
        return None
    model = model_of_adapter(config, config.backbone.adapter)
    return given_model(
        config,
        title=Path(config.backbone.adapter).name,
        fingerprint=model.fingerprint,
        backbone=model.backbone,
        adapter=str(model.adapter),
        loading=model.loading,
        chosen=chosen_values(settings, "inference"),
    )
