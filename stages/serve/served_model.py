"""What the server serves: a model that each painter loads for itself.

This module imports nothing of `model`: MLflow puts the registered copy of that package on the import path when it
loads the model, and a copy that is imported already would be used instead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.registered_model import TITLE, VERIFY_CHECKSUMS


@dataclass(frozen=True, kw_only=True)
class ServedConcept:
    """A learned concept that requests can name.

    Attributes:
        name: In OpenAI's routes it is the model `<name of the model>:<this name>`.
        folder: On this machine.
        placeholder: As it is written in prompts; of subjects that were learned together, separated by ", ".
        word: The class word; likewise.
        method: That learned it.
    """

    name: str
    folder: str
    placeholder: str
    word: str
    method: str


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model whose files are on this machine and have been verified.

    Attributes:
        title: How messages and answers call it: a name and a version.
        concepts: That were registered beside it; a painter offers those that fit the model.
        load: Called in each painter; returns a `model.painting.painter.RequestPainter`.
    """

    title: str
    load: Callable[[], Any]
    concepts: tuple[ServedConcept, ...] = ()


def load_registered_model(folder: str, title: str, concepts: Sequence[ServedConcept] = ()) -> Any:
    """The painter of a model that was registered in MLflow."""
    import mlflow

    loaded = mlflow.pyfunc.load_model(folder, model_config={VERIFY_CHECKSUMS: False, TITLE: title})
    painter = loaded.unwrap_python_model().painter
    for concept in concepts:
        try:
            painter.concepts.offer(concept.name, Path(concept.folder))
        except ValueError as error:  # of a damaged folder, or of another backbone
            logging.getLogger(__name__).error("A concept is not served: %s", error)
    return painter
