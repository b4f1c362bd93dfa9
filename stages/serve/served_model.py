"""What the server serves: a model that each painter loads for itself.

This module imports nothing of `model`: MLflow puts the registered copy of that package on the import path when it
loads the model, and a copy that is imported already would be used instead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.registered_model import PARTS_HERE, TITLE, VERIFY_CHECKSUMS
from stages.serve.version_files import FetchError, VersionFiles


@dataclass(frozen=True, kw_only=True)
class ServedConcept:
    """A learned concept that requests can name.

    Attributes:
        name: In OpenAI's routes it is the model `<name of the model>:<this name>`.
        files: Its folder.
        placeholder: As it is written in prompts; of subjects that were learned together, separated by ", ".
        word: The class word; likewise.
        method: That learned it.
    """

    name: str
    files: VersionFiles
    placeholder: str
    word: str
    method: str


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model whose files have been fetched and verified once.

    Attributes:
        title: How answers call it: a name and a version.
        adapter: The fingerprint of its adapter.
        concepts: That were registered beside it; a painter offers those that fit the model.
        load: Called in each painter; returns a `model.painting.painter.RequestPainter`.
    """

    title: str
    adapter: str
    load: Callable[[], Any]
    concepts: tuple[ServedConcept, ...] = ()

    def __str__(self) -> str:
        return f"{self.title} (adapter {self.adapter})"


def load_registered_model(
    files: VersionFiles, parts: Mapping[str, VersionFiles], title: str, concepts: Sequence[ServedConcept] = ()
) -> Any:
    """The painter of a model that was registered in MLflow; a copy that another machine made verifies its checksums."""
    import mlflow

    new = [one for one in (files, *parts.values()) if not one.is_verified]
    try:
        config = {VERIFY_CHECKSUMS: bool(new), TITLE: title}
        if parts:  # a version of before has all in its own files
            config[PARTS_HERE] = {name: str(part.folder()) for name, part in parts.items()}
        loaded = mlflow.pyfunc.load_model(str(files.folder()), model_config=config)
    except Exception:
        for one in new:
            one.discard()  # so that the next attempt fetches them again
        raise
    for one in new:
        one.mark_verified()
    painter = loaded.unwrap_python_model().painter
    for concept in concepts:
        try:
            painter.concepts.offer(concept.name, concept.files.folder())
        except (ValueError, FetchError) as error:  # of a damaged folder, of another backbone, of the object store
            logging.getLogger(__name__).error("A concept is not served: %s", error)
    return painter
