"""Where a model comes from: the manifests of every output that went into it, the data's and the plan's among them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: What of a manifest tells where an output comes from; checksums and columns stay with the output.
_KEPT = ("fingerprint", "inputs", "config", "sources", "code", "libraries", "rows", "metrics", "notes", "created")

Lineage = dict[str, dict[str, Any]]


def lineage_of(inputs: Mapping[str, Path]) -> Lineage:
    """By stage, what the manifests say of `inputs` (outputs by stage) and of everything before them.

    Outputs lie in `<stages>/<name>/<fingerprint>/`. Of one that has been deleted since, the fingerprint is left.
    """
    found: Lineage = {}
    waiting = dict(inputs)
    while waiting:
        name, folder = waiting.popitem()
        manifest = folder / "manifest.json"
        if not manifest.is_file():
            found[name] = {"fingerprint": folder.name}
            continue
        told = json.loads(manifest.read_text())
        found[name] = {key: told[key] for key in _KEPT}
        stages = folder.parent.parent
        waiting |= {other: stages / other / mark for other, mark in told["inputs"].items() if other not in found}
    return dict(sorted(found.items()))
