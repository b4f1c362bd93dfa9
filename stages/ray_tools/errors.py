"""Errors that Ray workers raise, and Ray's own, as errors of the stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ray.exceptions import NodeDiedError, OutOfMemoryError, RayError, WorkerCrashedError
from upath import UPath

from stages.contract import StageError
from stages.storage_errors import storage_error

#: What Ray raises when it has repeated a task as often as it may: by kind, what to do.
_LOST = {
    OutOfMemoryError: (
        "a machine ran out of memory, and Ray ended its workers again and again: give the machines more memory, or let "
        "each do less at the same time (ingest.processes, run.cpus, the stages' actors and batch_size)"
    ),
    NodeDiedError: "too many machines were lost: run the same command again, which goes on where this one stopped",
    WorkerCrashedError: (
        "a worker's process has died again and again: see the stage's log; the system may have ended it for want of "
        "memory"
    ),
}


@contextmanager
def worker_errors_as_stage_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Turn errors of these kinds, whose message is one sentence for the user, into StageErrors.

    This includes errors that a Ray worker has raised, which Ray wraps in errors of its own, and the loss of workers
    that Ray could not make good. Other errors pass. Ray Data keeps the type of an error only with
    `DataContext.raise_original_map_exception` (see `map_on_workers`).
    """
    try:
        yield
    except (RayError, *kinds) as error:
        cause: BaseException | None = error
        while cause is not None and (isinstance(cause, RayError) or not isinstance(cause, kinds)):
            if sentence := loss(cause):
                raise StageError(f"{sentence}.") from error
            cause = getattr(cause, "cause", None) or cause.__cause__
        if cause is None:
            raise
        raise StageError(str(cause).partition("\n")[0]) from error  # Ray Data appends lines to the message


def loss(error: BaseException) -> str | None:
    """What to do about a lost worker or machine, without a full stop; None for any other error."""
    return next((advice for kind, advice in _LOST.items() if isinstance(error, kind)), None)


@contextmanager
def store_errors_as_stage_errors(*arguments: object) -> Iterator[None]:
    """In a worker: turn an object store's refusal into a StageError, because a pickled error loses its causes.

    Args:
        arguments: What the worker was given; the first folder of a store among them is named.
    """
    try:
        yield
    except StageError:
        raise
    except Exception as error:
        folder = next((value for value in arguments if isinstance(value, UPath)), "the object store")
        if sentence := storage_error(error, str(folder)):
            raise StageError(sentence) from None
        raise
