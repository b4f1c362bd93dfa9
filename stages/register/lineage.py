"""The lineage of a model: the manifests of all outputs that it comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from stages.storage import StorePath

#: The entries of a manifest that a lineage keeps; checksums and columns stay with the output.
_KEPT = ("fingerprint", "inputs", "config", "sources", "code", "libraries", "rows", "metrics", "notes", "created")

Lineage = dict[str, dict[str, Any]]


def lineage_of(inputs: Mapping[str, StorePath]) -> Lineage:
    """For each stage, entries of its output's manifest: of `inputs` (outputs by stage), and of all stages before them.

    Outputs lie in `<stages>/<name>/<fingerprint>/`. An output that has been deleted has its fingerprint only.
    """
    found: Lineage = {}
    waiting = dict(inputs)
    while waiting:
        name, folder = waiting.popitem()
        manifest = folder / "manifest.json"
        if not manifest.is_file():
            found[name] = {"fingerprint": folder.name}
            continue
        content = json.loads(manifest.read_text())
        found[name] = {key: content[key] for key in _KEPT}
        stages = folder.parent.parent
        waiting |= {
            other: stages / other / fingerprint
            for other, fingerprint in content["inputs"].items()
            if other not in found
        }
    return dict(sorted(found.items()))
