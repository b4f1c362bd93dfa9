"""Whether the models can be loaded: from folders, from the hub's cache, or from the hub."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipelines.doctor.findings import Finding, Setup, good, problem, unknown
from pipelines.doctor.hub import HubError, cached_snapshot, check_on_hub, is_offline
from pipelines.doctor.models import Model, is_path, missing_parts, model_error, needed_models


def check(setup: Setup) -> Iterator[Finding]:
    """A finding for each model, whatever the number of settings that name it."""
    models = grouped(needed_models(setup))
    if models:
        with ThreadPoolExecutor(len(models)) as pool:
            yield from pool.map(lambda one: check_model(*one), models)
    else:
        yield good("all models ship with the code, or are made by the run")
    for key, folder in missing_parts(setup):
        yield problem(f"{key}: there is no folder {folder}; name a hub id, or a folder (./{folder.name})")
    yield from _aesthetic_head(setup)


def grouped(models: Iterable[Model]) -> list[tuple[Model, str]]:
    """Each model once, with the settings that name it."""
    settings: dict[tuple[str, str], list[str]] = {}
    found: dict[tuple[str, str], Model] = {}
    for model in models:
        key = (model.location, model.part)
        found.setdefault(key, model)
        settings.setdefault(key, []).append(model.setting)
    return [(model, ", ".join(dict.fromkeys(settings[key]))) for key, model in found.items()]


def check_model(model: Model, settings: str) -> Finding:
    """Whether a model can be loaded; `settings` name it."""
    if is_path(model.location):
        folder = Path(model.location).expanduser()
        if not folder.exists():
            return problem(f"{settings}: there is no folder {folder}; correct the path, or give a hub id")
        error = model_error(model, folder)
        return problem(f"{settings}: {error}") if error else good(f"{settings}: {folder}")
    snapshot = cached_snapshot(model.location)
    if snapshot is None:
        return _on_hub(model, settings, f"the hub's cache has nothing of {model.location}")
    if error := model_error(model, snapshot):
        return _on_hub(model, settings, f"the hub's cache lacks a part of {model.location} ({error})")
    return good(f"{settings}: {model.location} is in the hub's cache")


def _on_hub(model: Model, settings: str, lack: str) -> Finding:
    """What the hub says of a model; `lack` says what the cache lacks of it."""
    if is_offline():
        return problem(
            f"{settings}: HF_HUB_OFFLINE is set, and {lack}: run `{model.download}` where there is a network"
        )
    try:
        check_on_hub(model.location, model.files)
    except HubError as error:
        if error.is_known:
            return problem(f"{settings}: {error.text}")
        return unknown(f"{settings}: {error.text}, and {lack}; run `{model.download}` where there is a network")
    return good(f"{settings}: {model.location} is on the hub, and downloaded by the first stage that needs it")


def _aesthetic_head(setup: Setup) -> Iterator[Finding]:
    path = setup.config.filter.scoring.aesthetic_head
    if path is None or not setup.reads("filter.scoring.aesthetic_head") or not Path(path).exists():
        return
    from model.scoring.aesthetic import AestheticHead, AestheticHeadError

    try:
        AestheticHead.from_pretrained(path)
    except AestheticHeadError as error:
        yield problem(f"filter.scoring.aesthetic_head: {str(error).rstrip('.')}")
    else:
        yield good(f"filter.scoring.aesthetic_head: {path}")
