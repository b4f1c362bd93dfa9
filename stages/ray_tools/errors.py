"""Errors that Ray workers raise, as errors of the stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ray.exceptions import RayError

from stages.contract import StageError
from stages.storage import StorePath, is_remote
from stages.storage_errors import storage_error


@contextmanager
def worker_errors_as_stage_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Turn errors of these kinds, whose message is one sentence for the user, into StageErrors.

    This includes errors that a Ray worker has raised, which Ray wraps in errors of its own. Other errors pass. Ray Data
    keeps the type of an error only with `DataContext.raise_original_map_exception` (see `map_on_workers`).
    """
    try:
        yield
    except (RayError, *kinds) as error:
        cause: BaseException | None = error
        while cause is not None and (isinstance(cause, RayError) or not isinstance(cause, kinds)):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if cause is None:
            raise
        raise StageError(str(cause).partition("\n")[0]) from error  # Ray Data appends lines to the message


@contextmanager
def store_errors_as_stage_errors(folder: StorePath) -> Iterator[None]:
    """Say in one sentence that an object store has refused a request, for a folder in one; also in a Ray worker."""
    try:
        yield
    except StageError:
        raise
    except Exception as error:  # each object store has exceptions of its own
        sentence = storage_error(error, str(folder)) if is_remote(folder) else None
        if sentence is None:
            raise
        raise StageError(sentence) from error
