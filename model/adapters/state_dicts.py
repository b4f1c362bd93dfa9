"""State dicts in the forms that people publish: as they are, inside a checkpoint, and with the prefixes of wrappers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from model.adapters.adapter import AdapterError

#: What wrappers put into the names of what they wrap: DataParallel and DeepSpeed, torch.compile, FSDP, checkpointing.
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
#: Ends of names that only the weights of RealCustom++ have; what comes before the first is the UNet's own prefix.
_MARKS = ("encoder_hidden_states_vision_projection.projector_base.weight", "attn2.to_k_vision.weight")
_DEPTH = 8  # of mappings in mappings


def released_state(content: Any) -> dict[str, Any]:
    """The weights of RealCustom++ by their names in the authors' UNet, with what lies beside them.

    A state dict inside a checkpoint is found (`{"state_dict": ..., "epoch": 3}`), and names lose the prefixes of
    wrappers and outer modules. What is no tensor stays, so that it can be named.

    Raises:
        AdapterError: there is no state dict, or a name or the weights are there twice.
    """
    parts = dict(_parts_with_tensors(content, "", _DEPTH))
    if not parts:
        raise AdapterError("this is not a state dict, which has a tensor for each name.")
    with_weights = {where: part for where, part in parts.items() if any(_clean(name).endswith(_MARKS) for name in part)}
    if len(with_weights) > 1:
        raise AdapterError(
            f"this file has the weights more than once, in {', '.join(map(repr, with_weights))}; keep one."
        )
    return _with_clean_names(next(iter((with_weights or parts).values())))


def _parts_with_tensors(content: Any, where: str, depth: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The mappings with tensors in nested ones, by their keys."""
    if not isinstance(content, Mapping) or not depth:
        return
    own = {name: value for name, value in content.items() if isinstance(name, str) and not isinstance(value, Mapping)}
    if any(isinstance(value, Tensor) for value in own.values()):
        yield where, own
    for name, value in content.items():
        yield from _parts_with_tensors(value, f"{where}.{name}" if where else str(name), depth - 1)


def _with_clean_names(state: Mapping[str, Any]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for name, value in state.items():
        clean = _clean(name)
        if clean in named:
            raise AdapterError(f"this file has {clean} twice, with and without the prefix of a wrapper; keep one.")
        named[clean] = value
    prefixes = [name.removesuffix(_MARKS[0]) for name in named if name.endswith(_MARKS[0])]
    if len(prefixes) > 1:
        raise AdapterError(f"this file has the weights more than once, as {', '.join(map(repr, prefixes))}; keep one.")
    return {name.removeprefix(prefixes[0]) if prefixes else name: value for name, value in named.items()}


def _clean(name: str) -> str:
    """A name without what wrappers have put into it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)
