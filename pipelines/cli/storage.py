"""The command `storage`: what lies in the run folder, and freeing its space."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pipelines.cli.messages import align
from pipelines.config.loading import config_from_dict, load_config
from pipelines.errors import PipelineError, UsageError
from pipelines.fingerprint import ingredients_of
from pipelines.graph import pipeline_graph
from pipelines.store.storage import Entry, age, choose, list_entries, remove
from pipelines.store.store import Store


def storage(arguments: argparse.Namespace) -> None:
    """List what the run folder holds, or remove a part of it."""
    store = Store.at(load_config(arguments.profile, arguments.settings).run.folder)
    if not (store.folder / "stages").is_dir():
        raise PipelineError(f"Nothing has run in {store.folder} yet.")
    if not arguments.remove:
        print(storage_table(list_entries(store, _expected(store))))
        return
    with store.locked():
        chosen = choose(list_entries(store, _expected(store)), arguments.remove)
        remove(store, chosen)
    for entry in chosen:
        print(f"removed {entry.name} ({entry.state.value}, {megabytes(entry)})")
    print(f"{len(chosen)} removed; {sum(entry.size for entry in chosen) / 1e6:.1f} MB are free again.")


def storage_table(entries: Sequence[Entry]) -> str:
    """One line for each entry, the sum, and how to free space."""
    rows = [("output", "state", "size", "age", "checkpoints")]
    for entry in entries:
        rows.append((entry.name, entry.state.value, megabytes(entry), age(entry), str(entry.checkpoints or "")))
    total = sum(entry.size for entry in entries) / 1e6
    return "\n".join(
        [
            *align(rows),
            f"{total:.1f} MB in all. Free space with --remove old (outputs of other configurations), --remove "
            "unfinished (interrupted work of other configurations, with its checkpoints), or --remove and a name.",
        ]
    )


def megabytes(entry: Entry) -> str:
    """The size of an entry."""
    return f"{entry.size / 1e6:.1f} MB"


def _expected(store: Store) -> dict[str, str]:
    """The fingerprints of the last run's configuration, by stage; none when it cannot be read."""
    try:
        graph = pipeline_graph(config_from_dict(store.read_latest()[0]))
    except (PipelineError, UsageError):
        return {}
    return {name: ingredients.fingerprint for name, ingredients in ingredients_of(graph).items()}
