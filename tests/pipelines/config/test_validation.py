"""Properties of the whole configuration: what its types do not allow never gets past loading, and what they allow does.

What a type allows is stated here a second time, without pydantic.
"""

from __future__ import annotations

import json
import math
import operator
import re
import typing
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from annotated_types import Ge, Gt, Le, Lt, MinLen, MultipleOf
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, StringConstraints

from pipelines.config.keys import Key, configuration_keys, flat_values
from pipelines.config.loading import config_from_dict, config_to_dict, load_config, with_values
from pipelines.errors import UsageError
from stages.config import Config

MICRO = load_config("micro")
#: Slow to check, for they need the microworld, or not set by themselves; `test_loading.py` has them.
_APART = {"profile", "base.recipe.pool.categories", "base.recipe.judge_pool.categories", "customize.words"}
KEYS = [key for name, key in configuration_keys().items() if name not in _APART]


def parts(kind: Any) -> tuple[Any, list[Any]]:
    """A type without its marks, and the marks."""
    if typing.get_origin(kind) is typing.Annotated:
        return typing.get_args(kind)[0], list(kind.__metadata__)
    return kind, []


def allows(kind: Any, value: Any) -> bool:
    plain, marks = parts(kind)
    arguments = typing.get_args(plain)
    if typing.get_origin(plain) is typing.Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if typing.get_origin(plain) in (list, tuple):
        return (
            isinstance(value, list | tuple) and all(allows(arguments[0], item) for item in value) and fits(value, marks)
        )
    if arguments:
        return any(allows(part, value) for part in arguments)
    if plain is float:
        return type(value) in (int, float) and math.isfinite(value) and fits(value, marks)
    return type(value) is plain and fits(value, marks)


def fits(value: Any, marks: list[Any]) -> bool:
    return all(_fits(value, mark) for mark in marks)


def _fits(value: Any, mark: Any) -> bool:
    match mark:
        case Ge() | Gt() | Le() | Lt():
            limit = getattr(mark, type(mark).__name__.lower())
            compare = {Ge: operator.ge, Gt: operator.gt, Le: operator.le, Lt: operator.lt}[type(mark)]
            return bool(compare(value, limit))
        case MultipleOf(multiple_of=factor):
            return bool(value % factor == 0)
        case MinLen(min_length=least):
            return len(value) >= least
        case StringConstraints(pattern=str(pattern), max_length=most):
            return re.search(pattern.replace("$", r"\Z"), value) is not None and len(value) <= (most or math.inf)
        case AfterValidator():  # the two there are: of downscales and of URLs
            return str(value).startswith("http://") or value in {1, 2, 4, 8, 16, 32, 64}
    return True


def inside(kind: Any) -> st.SearchStrategy[Any]:
    """Values that a type allows."""
    plain, _ = parts(kind)
    arguments = typing.get_args(plain)
    if typing.get_origin(plain) is typing.Literal:
        found: st.SearchStrategy[Any] = st.sampled_from(arguments)
    elif typing.get_origin(plain) in (list, tuple):
        found = st.lists(inside(arguments[0]), max_size=3)
    elif arguments:
        return st.one_of([inside(part) for part in arguments])
    elif plain is int:
        found = st.integers(0, 100) | st.integers(0, 10**9)
    elif plain is float:
        found = st.floats(-1, 200, allow_nan=False) | st.floats(0, 1) | st.integers(0, 100)
    elif plain is str:
        found = st.sampled_from(["a", "a/b", "a {word} in the snow", "http://host/v1", "[v]", "é 3", "./x", "s3://b/x"])
    else:
        found = {bool: st.booleans(), type(None): st.none()}[plain]
    return found.filter(lambda value: allows(kind, value))


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(
        ["", " ", "a\nb", "\x00", "~nobody/x", "s3://x", "nan", "1e400", "0x10", "1_0", "2001-13-45", "null"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


TEXTS = JUNK.map(lambda value: str(yaml.safe_dump(value, default_flow_style=True))) | st.text(max_size=8)


def load(load_it: Callable[[], Config]) -> Config | str:
    """The configuration, or the sentence with which it is refused; no other error may come."""
    try:
        return load_it()
    except UsageError as error:
        return str(error)


def is_right(key: Key, outcome: Config | str) -> bool:
    """Whether a value was refused in one sentence, or one that is allowed was taken."""
    if isinstance(outcome, str):
        return "\n" not in outcome
    return allows(key.type, flat_values(outcome)[key.name])


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(KEYS), JUNK)
def test_no_value_outside_its_type_or_range_gets_past_loading(key: Key, value: Any) -> None:
    assert is_right(key, load(lambda: with_values(MICRO, {key.name: value})))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(KEYS), TEXTS)
def test_no_text_of_the_command_line_gets_past_loading_with_a_wrong_value(key: Key, text: str) -> None:
    assert is_right(key, load(lambda: load_config("micro", [f"{key.name}={text}"])))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_value_inside_its_type_and_range_is_taken_unless_it_does_not_fit_the_others(data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(KEYS))
    value = data.draw(inside(key.type))
    config = load(lambda: with_values(MICRO, {key.name: value}))
    if isinstance(config, str):
        assert not config.startswith(f"{key.name} takes") or "URI" in config or "micro backbone" in config
        return
    follows = value is None and key.name in ("ingest.image_size", "multiview.image_size")
    assert flat_values(config)[key.name] == value or key.path_kind is not None or follows
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_each_key_refuses_what_no_key_takes(key: Key) -> None:
    for value in ({"a": 1}, math.nan, math.inf, -1e300, 10**30, "\x00", [[["deep"]]]):
        if not allows(key.type, value):
            with pytest.raises(UsageError) as caught:
                with_values(MICRO, {key.name: value})
            assert str(caught.value).startswith(key.name)
