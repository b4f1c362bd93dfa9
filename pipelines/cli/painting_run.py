"""Which model paints in `generate` and `serve`: that of a run folder, or the one that ships with the code."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.cli.shipped import asks_for_default_model, shipped_model_answers
from pipelines.config.loading import config_from_dict, load_config, with_values
from pipelines.errors import PipelineError, UsageError
from pipelines.store.store import Store
from pipelines.tracking_store import configured_uri
from stages.config import Config


def last_run(profile: str, settings: Sequence[str]) -> tuple[Config, Store]:
    """The configuration of the last run in the settings' run folder, overridden by the settings."""
    store = Store.at(load_config(profile, settings).run.folder)
    stored = store.read_latest()[0]
    try:
        config_from_dict(stored)
    except UsageError as error:
        raise PipelineError(f"{store.latest_file} is of another version ({error}); run the pipeline again.") from error
    config = config_from_dict(stored, settings)
    return with_values(config, {"run.folder": str(store.folder)}), store  # it may have been moved since


def painting_run(profile: str, settings: Sequence[str], stage: str) -> tuple[Config, Store, bool]:
    """The configuration to paint with, the run folder, and whether the shipped model answers in place of the run's.

    With an adapter from elsewhere nothing of the run counts but its folder.

    Args:
        profile: Of the command line.
        settings: Of the command line.
        stage: The one that makes the model.
    """
    config = load_config(profile, settings)
    store = Store.at(config.run.folder)
    if config.backbone.adapter is not None:
        return config, store, False
    has_run = store.latest_file.exists()
    if stage == "register" and not has_run and configured_uri(config) is not None:
        # Another machine may have registered the model.
        return config, store, asks_for_default_model(config, settings)
    if has_run or not asks_for_default_model(config, settings):
        config, store = last_run(profile, settings)
    return config, store, shipped_model_answers(config, store, settings, stage)
