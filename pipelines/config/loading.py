"""A run's configuration: the typed defaults of `stages/config.py`, a profile over them, `--set` over that.

A key is written with dots, `filter.min_aesthetic`; a value as in YAML. What is unknown or ill-typed is an error that
names the key, its nearest neighbour or its type, and what came.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from model.microworld.pool_config import PoolConfig
from pipelines.errors import UsageError
from stages.config import Config

PROFILES = Path(__file__).parent / "profiles"

#: Keys whose values are paths; they are made absolute, for a stage runs in another working directory.
PATHS = (
    "run.folder",
    "backbone.weights",
    "ingest.metadata",
    "filter.pictures_folder",
    "filter.scoring.similarity_clip",
    "filter.scoring.aesthetic_clip",
    "filter.scoring.aesthetic_head",
    "filter.scoring.safety_checker",
    "multiview.folders",
    "customize.subject",
    "evaluate.subjects_folder",
)


#: Those of them that may also be a hub id ("owner/name") or another name.
HUB_IDS = (
    "backbone.weights",
    "filter.scoring.similarity_clip",
    "filter.scoring.aesthetic_clip",
    "filter.scoring.safety_checker",
)


def profile_names() -> list[str]:
    """The profiles there are."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def load_config(profile: str, settings: Sequence[str] = ()) -> Config:
    """The configuration of `profile` with `settings` ("key=value") over it.

    Raises:
        UsageError: An unknown profile or key, an ill-typed value; says which, and what would be right.
    """
    if profile not in profile_names():
        raise UsageError(f"There is no profile {profile!r}; there are {', '.join(profile_names())}.")
    values = {"profile": profile, "run.folder": f"runs/{profile}"}
    values |= _read_profile(PROFILES / f"{profile}.yaml")
    return _build(values | parse_settings(settings))


def config_from_dict(values: Mapping[str, Any], settings: Sequence[str] = ()) -> Config:
    """The configuration that `config_to_dict` took apart, with `settings` over it."""
    return _build(_flatten(values, "") | parse_settings(settings))


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """The configuration with some values, given by dotted key, over its own."""
    return _build(flat_values(config) | dict(values))


def config_to_dict(config: Config) -> dict[str, Any]:
    """Nested plain values, ready for JSON and YAML."""
    return dataclasses.asdict(config)


def flat_values(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Every value by its dotted key: {"filter.min_aesthetic": 5.0, ...}."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            values |= flat_values(value, f"{prefix}{field.name}.")
        else:
            values[prefix + field.name] = value
    return values


@functools.cache
def key_types() -> dict[str, Any]:
    """The type of every key."""
    return dict(_walk(Config, ""))


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Values by key from "key=value" texts."""
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        key = key.strip()
        if key == "profile":
            raise UsageError("The profile is chosen with --profile, not with --set.")
        if not equals:
            raise UsageError(f"--set takes key=value, such as filter.min_aesthetic=6.0; {setting!r} has no '='.")
        values[key] = _parse_text(key, _type_of(key), text.strip())
    return values


def nearest(name: str, names: Sequence[str]) -> str:
    """A hint for somebody who mistyped `name`: " Did you mean 'filter'?", or nothing."""
    # A key whose section was left out is nearer than one that merely looks like it.
    endings = [known for known in names if known.endswith("." + name)]
    found = endings or difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    return f" Did you mean {' or '.join(map(repr, found[:3]))}?" if found else ""


def _walk(kind: type, prefix: str) -> Iterator[tuple[str, Any]]:
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _walk(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, hints[field.name]


def _type_of(key: str) -> Any:
    known = key_types()
    if key in known:
        return known[key]
    inside = [name for name in known if name.startswith(f"{key}.")]
    if inside:
        raise UsageError(f"{key!r} is a section of the configuration; set one of {', '.join(inside)}.")
    raise UsageError(f"There is no configuration key {key!r}.{nearest(key, list(known))}")


def _read_profile(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path} must hold sections with keys, not {values!r}.")
    return _flatten(values, "")


def _flatten(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{key}.")
        else:
            flat[key] = _convert(key, _type_of(key), value)
    return flat


def _parse_text(key: str, kind: Any, text: str) -> Any:
    """The value that a user typed. Text stays text: `customize.word=7` is "7" and `prompts.model=on` is "on"."""
    if type(None) in typing.get_args(kind) and text.lower() in ("none", "null", "~"):
        return None
    if str in (kind, *typing.get_args(kind)) and typing.get_origin(kind) not in (list, tuple):
        return text
    try:
        return _convert(key, kind, yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise UsageError(f"{key} takes {describe(kind)}, not {text!r}.") from error


def _convert(key: str, kind: Any, value: Any) -> Any:
    from pydantic import TypeAdapter, ValidationError

    if isinstance(value, str) and float in (kind, *typing.get_args(kind)):
        value = _number(value)
    try:
        # As JSON, for there a list may become a tuple although nothing else is bent: neither "3" nor true becomes 3.
        return TypeAdapter(kind).validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError as error:
        raise UsageError(f"{key} takes {describe(kind)}, not {value!r}.") from error


def _number(text: str) -> float | str:
    """YAML 1.1 reads 1e-4 as text, for it has no decimal point; nobody means text by it."""
    try:
        return float(text)
    except ValueError:
        return text


def describe(kind: Any) -> str:
    """A type in words: "a number or null"."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    if kind in names:
        return names[kind]
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) in (list, tuple):
        return f"a list [..] of items that are each {describe(arguments[0])}"
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return " or ".join(describe(argument) for argument in arguments)
    return "one of " + ", ".join(repr(argument) for argument in arguments)  # typing.Literal


def _build(flat: Mapping[str, Any]) -> Config:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, name = key.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = _absolute_paths(key, value) if key in PATHS else value
    config: Config = _replace(Config(), nested)
    _check(config)
    return config


def _replace(settings: Any, changes: Mapping[str, Any]) -> Any:
    """`dataclasses.replace` for nested dataclasses, so that a section keeps the defaults of its own place."""
    values = {
        key: _replace(getattr(settings, key), value) if isinstance(value, Mapping) else value
        for key, value in changes.items()
    }
    return dataclasses.replace(settings, **values)


def _absolute_paths(key: str, value: Any) -> Any:
    """A path, a list of paths, or None."""
    if isinstance(value, list):
        return [_absolute(key, path) for path in value]
    return None if value is None else _absolute(key, value)


def _absolute(key: str, path: str) -> str:
    """An absolute path; a URI stays as it is, and so does a hub id (no such folder here)."""
    place = Path(path).expanduser().absolute()
    if "://" in path or (key in HUB_IDS and not place.exists()):
        return path
    return str(place)


def _check(config: Config) -> None:
    """What no single type can say."""
    encoders, layers = config.backbone.image_encoders, config.backbone.shallow_layers
    if len(encoders) != len(layers):
        raise UsageError(
            f"backbone.shallow_layers must hold one list for each of the {len(encoders)} backbone.image_encoders; "
            f"it holds {len(layers)}."
        )
    for key in ("pool", "judge_pool"):
        _check_pool(f"base.recipe.{key}", getattr(config.base.recipe, key))
    for key, value in flat_values(config).items():
        if isinstance(value, int | float) and not isinstance(value, bool) and value < 0:
            raise UsageError(f"{key} cannot be negative; it is {value}.")


def _check_pool(key: str, pool: PoolConfig) -> None:
    """A world has categories, and the split has each of them."""
    if pool.categories is None:
        return
    from model.microworld.scenes import categories_of  # imports torch: only when somebody chooses categories

    known = categories_of(pool.split)
    strange = [name for name in pool.categories if name not in known]
    if strange or not pool.categories:
        wrong = f"has no {strange[0]!r}" if strange else "needs at least one category, and the list is empty"
        raise UsageError(f"{key}.categories: a world of split {pool.split!r} {wrong}; choose from {', '.join(known)}.")
