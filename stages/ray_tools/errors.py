"""Errors that Ray workers raise, as errors of the stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ray.exceptions import RayError

from stages.contract import StageError


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
