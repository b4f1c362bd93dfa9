"""When the base and adapter that ship with the code answer `generate` and `serve`: before any run has made a model.

They stand in for the model that `run` without settings would make, and for no other: who names a run folder, another
profile, backbone, method or name of a model asks for that one; when it is not there, this is an error.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.config.keys import configuration_keys, flat_values
from pipelines.config.loading import load_config, parse_settings
from pipelines.store.store import Store
from stages.config import Config

_PROFILE = "micro"
#: Which model a run makes. How it paints, and how well it was trained, is not part of that.
_MODEL_KEYS = frozenset(
    key
    for key in configuration_keys()
    if key.startswith(("backbone.", "base.recipe.")) or key in ("train_adapter.method", "register.model_name")
) - {"backbone.dtype"}


def asks_for_default_model(config: Config, settings: Sequence[str]) -> bool:
    """Whether a configuration, made with these settings of the command line, asks for the model that ships."""
    if config.profile != _PROFILE or "run.folder" in parse_settings(settings):
        return False
    values, default = flat_values(config), flat_values(load_config(_PROFILE))
    return all(values[key] == default[key] for key in _MODEL_KEYS)


def shipped_model_answers(config: Config, store: Store, settings: Sequence[str], stage: str) -> bool:
    """Whether the shipped model answers, because the run folder has no output of `stage` yet.

    An output that a run has noted but that is not there is an error, not a reason to answer with another model.
    """
    return asks_for_default_model(config, settings) and stage not in store.latest_fingerprints()
