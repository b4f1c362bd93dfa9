"""A run's configuration: the typed defaults of `stages/config.py`, a profile over them, `--set` over that.

A profile that `extends` another one has that one's values where it has none of its own.

A key is written with dots, `filter.min_aesthetic`; a value as in YAML, but by the key's type. What is unknown, of the
wrong type, out of range or does not fit together is an error that names the key, what came, and what is allowed.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from model.files import TextError, read_text
from model.settings import STRICT
from pipelines.config.keys import Key, fields_of, flat_values, is_section, key_of
from pipelines.config.paths import with_absolute_paths
from pipelines.config.words import describe, show
from pipelines.config.world import check_world
from pipelines.config.yaml_values import BLANK, is_list_of_texts, nodes_of, value_of, value_of_node
from pipelines.errors import UsageError
from stages.compute_config import FOLLOWERS
from stages.config import Config
from stages.customize.config import METHOD_DEFAULTS as CUSTOMIZE_DEFAULTS
from stages.train_adapter.config import METHOD_DEFAULTS as ADAPTER_DEFAULTS

PROFILES = Path(__file__).parent / "profiles"
#: What a method brings with it, by the setting that chooses the method and by the method.
METHOD_DEFAULTS: Mapping[str, Mapping[Any, Mapping[str, Any]]] = {
    "train_adapter.method": ADAPTER_DEFAULTS,
    "customize.method": CUSTOMIZE_DEFAULTS,
}
#: The part of a profile with its own values of that kind: methods: {xti: {customize: {steps: 500}}}.
_METHODS = "methods"
#: The sections with an `image_size` that may follow the backbone.
PICTURE_SECTIONS = ("ingest", "multiview")
#: The key of a profile that names the one whose values are below its own.
_EXTENDS = "extends"
_STEPS, _MASK_STEPS = "inference.steps", "inference.mask_steps"


def profile_names() -> list[str]:
    """The profiles there are."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def load_config(profile: str, settings: Sequence[str] = ()) -> Config:
    """The configuration of `profile` with `settings` ("key=value") over it.

    Raises:
        UsageError: An unknown profile or key, a wrong value; says which, and what would be right.
    """
    chosen = parse_settings(settings)
    given = with_method_defaults(profile_values(profile), chosen)
    values = flat_values(Config()) | given
    values |= _following(values, given)
    return _build(with_absolute_paths(values | _fitting_mask_steps(values, chosen)))


def profile_values(profile: str) -> dict[str, Any]:
    """What a profile changes, by dotted key.

    Raises:
        UsageError: There is no such profile, or it is wrong.
    """
    if profile not in profile_names():
        raise UsageError(f"There is no profile {profile!r}; there are {', '.join(profile_names())}.")
    own = {name: value for (method, name), value in _read_profile(profile).items() if not method}
    return {"profile": profile, "run.folder": f"runs/{profile}"} | own


def method_values(profile: str, method: str) -> dict[str, Any]:
    """What a profile says that a method brings with it, by dotted key; nothing if there is no such profile."""
    if profile not in profile_names():
        return {}
    return {name: value for (owner, name), value in _read_profile(profile).items() if owner == method}


def config_from_dict(values: Mapping[str, Any], settings: Sequence[str] = ()) -> Config:
    """The configuration that `config_to_dict` took apart, with `settings` over it."""
    stored, chosen = flat_values(Config()) | _flatten(values, ""), with_absolute_paths(parse_settings(settings))
    found = with_method_defaults(stored, chosen)
    found |= _following(found, _own_values(stored) | chosen.keys())
    return _build(found | _fitting_mask_steps(found, chosen))


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """The configuration with some values, given by dotted key, over its own."""
    checked = {name: _convert(key_of(name), value) for name, value in values.items()}
    before = flat_values(config)
    found = before | with_absolute_paths(checked)
    return _build(found | _following(found, _own_values(before) | checked.keys()))


def config_to_dict(config: Config) -> dict[str, Any]:
    """Nested plain values, ready for JSON and YAML."""
    return dataclasses.asdict(config)


def with_method_defaults(profile: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A profile's values, those of the methods, and the explicit settings, from the weakest to the strongest.

    Where the profile itself has chosen the method, its own values are stronger than the method's.
    """
    weakest: dict[str, Any] = {}
    stronger: dict[str, Any] = {}
    for key, defaults in METHOD_DEFAULTS.items():
        before = profile.get(key, flat_values(Config())[key])
        method = settings.get(key, before)
        brought = {**defaults[method], **method_values(profile.get("profile", "micro"), method)}
        (weakest if method == before else stronger).update(brought)
    return {**weakest, **profile, **stronger, **settings}


def _following(values: Mapping[str, Any], own: Collection[str]) -> dict[str, Any]:
    """The values of `compute` for the settings of sections that have no value of their `own`."""
    return {name: values[key] for key, names in FOLLOWERS.items() for name in names if name not in own}


def _own_values(values: Mapping[str, Any]) -> set[str]:
    """The settings of sections that differ from those of `compute`."""
    return {name for key, names in FOLLOWERS.items() for name in names if values[name] != values[key]}


def _fitting_mask_steps(values: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Fewer steps bring `mask_steps` down with them; a `mask_steps` of the settings themselves must fit."""
    if _STEPS not in settings or _MASK_STEPS in settings or values[_MASK_STEPS] is None:
        return {}
    return {_MASK_STEPS: min(values[_MASK_STEPS], settings[_STEPS])}


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
        values[name] = _parse_text(key_of(name), text.strip(BLANK))
    return values


def chosen_values(settings: Sequence[str], section: str) -> dict[str, Any]:
    """The values of a section among "key=value" texts, by their names in it."""
    chosen = parse_settings(settings)
    return {name.partition(".")[2]: value for name, value in chosen.items() if name.partition(".")[0] == section}


def extended_profile(profile: str) -> str | None:
    """The profile that this one extends; None: it extends none."""
    node = _nodes_of_profile(profile).get(_EXTENDS)
    return None if node is None else str(node.value)


def _nodes_of_profile(profile: str) -> dict[str, yaml.Node]:
    """The values of a profile's file as they are written, by dotted key."""
    path = PROFILES / f"{profile}.yaml"
    try:
        return dict(nodes_of(read_text(path)))
    except TextError as error:
        raise UsageError(str(error)) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def _read_profile(profile: str, above: tuple[str, ...] = ()) -> dict[tuple[str, str], Any]:
    """The values of a profile by the method that brings them ("": none does) and by dotted key.

    `above` are the profiles that extend it.
    """
    path, nodes = PROFILES / f"{profile}.yaml", _nodes_of_profile(profile)
    values: dict[tuple[str, str], Any] = {}
    try:
        if extended := nodes.pop(_EXTENDS, None):
            if extended.value not in set(profile_names()) - {profile, *above}:
                raise UsageError(f"extends names another profile, not {show(extended.value)}.")
            values = _read_profile(extended.value, (*above, profile))
        for name, node in nodes.items():
            part, _, rest = name.partition(".")
            method, _, own = rest.partition(".") if part == _METHODS else ("", "", name)
            if method and not any(method in methods for methods in METHOD_DEFAULTS.values()):
                raise UsageError(f"there is no method {method!r}.")
            values[method, own] = _convert(key_of(own), value_of_node(node, key_of(own).type))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    return values


def _flatten(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = _convert(key_of(f"{prefix}{name}"), value)
    return flat


def _parse_text(key: Key, text: str) -> Any:
    """The value that a user typed. Text stays text: `register.model_name=7` is "7" and `prompts.model=on` is "on"."""
    try:
        value = value_of(text, key.type)
    except (yaml.YAMLError, RecursionError) as error:
        raise _wrong_value(key, text) from error
    try:
        return _convert(key, value)
    except UsageError as error:
        if is_list_of_texts(key.type) and isinstance(value, list) and len(value) > 1:
            raise UsageError(f"{str(error).removesuffix('.')}; quotes keep an item with a comma together.") from error
        raise


def _convert(key: Key, value: Any) -> Any:
    try:
        # As JSON, for there a list may become a tuple although nothing else is bent: neither "3" nor true becomes 3.
        return _adapter(key.name).validate_json(json.dumps(value, default=str))
    except ValidationError as error:
        raise _wrong_value(key, value, _why(error)) from error
    except (ValueError, TypeError, RecursionError) as error:  # not JSON: such as a list that contains itself
        raise _wrong_value(key, value) from error


@functools.cache
def _adapter(name: str) -> TypeAdapter[Any]:
    return TypeAdapter(key_of(name).type, config=STRICT)


def _wrong_value(key: Key, value: Any, why: str = "") -> UsageError:
    return UsageError(f"{key.name} takes {describe(key.type)}, not {show(value)}{why}.")


def _why(error: ValidationError) -> str:
    """What a type's own check has said, if there is one and it failed."""
    return next((f": {found['ctx']['error']}" for found in error.errors() if found["type"] == "value_error"), "")


def _build(values: Mapping[str, Any]) -> Config:
    config = _with_picture_sizes(_make(Config, values, ""))
    check_world(config)
    return config


def _with_picture_sizes(config: Config) -> Config:
    """The configuration with numbers for sizes that follow the backbone: outputs depend on the numbers alone."""
    sections = {name: getattr(config, name) for name in PICTURE_SECTIONS}
    sizes = {name: config.backbone.stored_size(section.image_size) for name, section in sections.items()}
    return dataclasses.replace(
        config, **{name: dataclasses.replace(section, image_size=sizes[name]) for name, section in sections.items()}
    )


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
        raise _wrong_value(key_of(f"{prefix}{first['loc'][0]}"), first["input"], _why(error)) from error
