"""What the server serves: a model that each painter loads for itself.

This module imports nothing of `model`: MLflow puts the registered copy of that package on the import path when it
loads the model, and a copy that is imported already would be used instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stages.registered_model import TITLE, VERIFY_CHECKSUMS


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model whose files are on this machine and have been verified.

    Attributes:
        title: How messages and answers call it: a name and a version.
        load: Called in each painter; returns an object with the methods `prepare` and `paint` of
            `model.painting.painter.RequestPainter`.
    """

    title: str
    load: Callable[[], Any]


def load_registered_model(folder: str, title: str) -> Any:
    """Load a model that was registered in MLflow."""
    import mlflow

    loaded = mlflow.pyfunc.load_model(folder, model_config={VERIFY_CHECKSUMS: False, TITLE: title})
    return loaded.unwrap_python_model()
