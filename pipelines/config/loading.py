"""A run's configuration: the typed defaults of `stages/config.py`, a profile over them, `--set` over that.

A key is written with dots, `filter.min_aesthetic`; a value as in YAML. What is unknown, of the wrong type, out of range
or does not fit together is an error that names the key, what came, and what is allowed.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from model.settings import STRICT
from pipelines.config.keys import Key, fields_of, flat_values, is_section, key_of, members
from pipelines.config.paths import with_absolute_paths
from pipelines.config.words import describe, show
from pipelines.config.world import check_world
from pipelines.errors import UsageError
from stages.config import Config
from stages.train_adapter.config import METHOD_DEFAULTS

PROFILES = Path(__file__).parent / "profiles"
_METHOD = "train_adapter.method"


def profile_names() -> list[str]:
    """The profiles there are."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def load_config(profile: str, settings: Sequence[str] = ()) -> Config:
    """The configuration of `profile` with `settings` ("key=value") over it.

    Raises:
        UsageError: An unknown profile or key, a wrong value; says which, and what would be right.
    """
    values = with_method_defaults(profile_values(profile), parse_settings(settings))
    return _build(with_absolute_paths(flat_values(Config()) | values))


def profile_values(profile: str) -> dict[str, Any]:
    """What a profile changes, by dotted key.

    Raises:
        UsageError: There is no such profile, or it is wrong.
    """
    if profile not in profile_names():
        raise UsageError(f"There is no profile {profile!r}; there are {', '.join(profile_names())}.")
    return {"profile": profile, "run.folder": f"runs/{profile}"} | _read_profile(PROFILES / f"{profile}.yaml")


def config_from_dict(values: Mapping[str, Any], settings: Sequence[str] = ()) -> Config:
    """The configuration that `config_to_dict` took apart, with `settings` over it."""
    stored = flat_values(Config()) | _flatten(values, "")
    return _build(with_method_defaults(stored, with_absolute_paths(parse_settings(settings))))


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """The configuration with some values, given by dotted key, over its own."""
    checked = {name: _convert(key_of(name), value) for name, value in values.items()}
    return _build(flat_values(config) | with_absolute_paths(checked))


def config_to_dict(config: Config) -> dict[str, Any]:
    """Nested plain values, ready for JSON and YAML."""
    return dataclasses.asdict(config)


def with_method_defaults(profile: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A profile's values, those of the adapter's method, and the explicit settings, from the weakest to the strongest.

    Where the profile itself has chosen the method, its own values are stronger than the method's.
    """
    before = profile.get(_METHOD, Config().train_adapter.method)
    method = settings.get(_METHOD, before)
    if method == before:
        return {**METHOD_DEFAULTS[method], **profile, **settings}
    return {**profile, **METHOD_DEFAULTS[method], **settings}


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Values by key from "key=value" texts."""
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        name = name.strip()
        if name == "profile":
            raise UsageError("The profile is chosen with --profile, not with --set.")
        if not equals:
            raise UsageError(f"--set takes key=value, such as filter.min_aesthetic=6.0; {setting!r} has no '='.")
        values[name] = _parse_text(key_of(name), text.strip())
    return values


def _read_profile(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path} must hold sections with keys, not {values!r}.")
    return _flatten(values, "")


def _flatten(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = _convert(key_of(f"{prefix}{name}"), value)
    return flat


def _parse_text(key: Key, text: str) -> Any:
    """The value that a user typed. Text stays text: `customize.word=7` is "7" and `prompts.model=on` is "on"."""
    kinds = members(key.type)
    if type(None) in kinds and text.lower() in ("none", "null", "~"):
        return None
    if str in kinds:
        return _convert(key, text)
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no such day, or too many digits
        raise _wrong_value(key, text) from error
    return _convert(key, value)


def _convert(key: Key, value: Any) -> Any:
    number = _number(value) if isinstance(value, str) and float in members(key.type) else value
    try:
        # As JSON, for there a list may become a tuple although nothing else is bent: neither "3" nor true becomes 3.
        return _adapter(key.name).validate_json(json.dumps(number, default=str))
    except (ValueError, TypeError, RecursionError) as error:  # not JSON: such as a list that contains itself
        raise _wrong_value(key, value) from error


@functools.cache
def _adapter(name: str) -> TypeAdapter[Any]:
    return TypeAdapter(key_of(name).type, config=STRICT)


def _wrong_value(key: Key, value: Any) -> UsageError:
    return UsageError(f"{key.name} takes {describe(key.type)}, not {show(value)}.")


def _number(text: str) -> float | str:
    """YAML 1.1 reads 1e-4 as text, for it has no decimal point; a user means the number."""
    try:
        return float(text)
    except ValueError:
        return text


def _build(values: Mapping[str, Any]) -> Config:
    config: Config = _make(Config, values, "")
    check_world(config)
    return config


def _make(section: Any, values: Mapping[str, Any], prefix: str) -> Any:
    """A section and those inside it, from values for all of its keys."""
    fields = {
        name: _make(kind, values, f"{prefix}{name}.") if is_section(kind) else values[prefix + name]
        for name, kind in fields_of(section).items()
    }
    try:
        return section(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error" and not first["loc"]:  # what must fit together does not
            where = f"{prefix[:-1]}: " if prefix else ""
            raise UsageError(f"{where}{first['ctx']['error']}.") from error
        raise _wrong_value(key_of(f"{prefix}{first['loc'][0]}"), first["input"]) from error
