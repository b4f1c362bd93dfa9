"""Values of settings written as YAML, in `--set` and in profiles.

The type of a setting decides what its text means, not YAML 1.1, to which `no` is false, `010` is 8 and `1:30` is 90.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from model.settings import STRICT
from pipelines.config.keys import members

BLANK = " \t\r\n"  # to YAML; a no-break space is text
_NULL = "tag:yaml.org,2002:null"
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}

#: An item of a list in brackets: quoted, or up to a comma that is in no brackets of its own.
_ITEM = re.compile(
    rf"""[{BLANK}]* (?: (?P<quoted> "(?:\\.|[^"\\])*+" | '(?:''|[^'])*+' ) [{BLANK}]*
    | (?P<plain> (?: \[[^\[\]]*\] | \{{[^{{}}]*\}} | [^,] )*+ ) ) (?:,|\Z)""",
    re.DOTALL | re.VERBOSE,
)


def value_of(text: str, kind: Any) -> Any:
    """What a text on the command line means for a setting of this type; text that does not fit stays text.

    In a list of texts in brackets only commas and quotes have a meaning: [a {word} on the beach, "a {word}, wet"]. What
    follows a comma and cannot be an item, as it lacks {word}, belongs to the item before it.

    Raises:
        yaml.YAMLError: It must be YAML, and is not.
    """
    if type(None) in members(kind) and text.lower() in ("none", "null", "~"):
        return None
    if str in members(kind):
        return text
    if is_list_of_texts(kind) and text.startswith("[") and text.endswith("]"):
        return _items(text[1:-1], TypeAdapter(_item_kind(kind), config=STRICT))
    return value_of_node(yaml.compose(text, yaml.SafeLoader), kind)


def value_of_node(node: yaml.Node | None, kind: Any) -> Any:
    """What a node of YAML means for a setting of this type; what does not fit is returned as text."""
    if node is None:
        return None
    item_kind = _item_kind(kind)
    if isinstance(node, yaml.SequenceNode) and item_kind is not None:
        return [value_of_node(item, item_kind) for item in node.value]
    if not isinstance(node, yaml.ScalarNode):
        return str(node.start_mark.buffer)[node.start_mark.pointer : node.end_mark.pointer].strip("\0 \n")
    kinds = members(kind)
    if node.tag == _NULL and (type(None) in kinds or str not in kinds):
        return None
    return node.value if node.style else _value_of_scalar(node.value, kinds)


def nodes_of(text: str) -> Iterator[tuple[str, yaml.Node]]:
    """The values in a file of sections with keys, by dotted key.

    Raises:
        yaml.YAMLError: The file is not YAML, or does not hold sections with keys.
    """
    loader = yaml.SafeLoader(text)
    root = loader.get_single_node()
    if root is not None:
        yield from _nodes_below(loader, root, "")


def _nodes_below(loader: yaml.SafeLoader, node: yaml.Node, name: str) -> Iterator[tuple[str, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)  # merge keys
        for key, value in node.value:
            yield from _nodes_below(loader, value, f"{name}.{key.value}" if name else str(key.value))
    elif name:
        yield name, node
    else:
        raise yaml.MarkedYAMLError(problem="it must hold sections with keys", problem_mark=node.start_mark)


def is_list_of_texts(kind: Any) -> bool:
    """Whether a setting of this type takes a list of texts."""
    return str in members(_item_kind(kind))


def _item_kind(kind: Any) -> Any:
    """The type of the items of a list; None if the type is no list."""
    lists = (part for part in members(kind) if typing.get_origin(part) in (list, tuple))
    return next((typing.get_args(part)[0] for part in lists), None)


def _items(text: str, adapter: TypeAdapter[Any]) -> list[str]:
    items: list[str] = []
    position, is_open = 0, False  # whether a comma may be part of the last item
    while text[position:].strip(BLANK):
        match = _ITEM.match(text, position)
        assert match is not None  # a plain item may be anything
        position = match.end()
        if match["plain"] is None:
            items.append(str(yaml.load(match["quoted"], yaml.BaseLoader)))
            is_open = False
            continue
        # A line break is a space, as where YAML folds long lines.
        item = re.sub(r"[ \t\r]*\n[ \t\r\n]*", " ", match["plain"].strip(BLANK))
        if is_open and item and not _is_valid(item, adapter):
            items[-1] += f", {item}"
        else:
            items.append(item)
            is_open = True
    return items


def _is_valid(item: str, adapter: TypeAdapter[Any]) -> bool:
    try:
        adapter.validate_python(item)
    except ValidationError:
        return False
    return True


def _value_of_scalar(text: str, kinds: list[Any]) -> Any:
    """The value of a text without quotes for one of some types."""
    for kind in kinds:
        if typing.get_origin(kind) is typing.Literal:
            return next((choice for choice in typing.get_args(kind) if str(choice) == text), text)
    if bool in kinds:
        return _BOOLEANS.get(text.lower(), text)
    for number in {int, float}.intersection(kinds):
        try:
            return number(text)
        except ValueError:  # also: of more digits than Python reads
            continue
    return text
