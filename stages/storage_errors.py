"""What the errors of object stores mean, in one sentence with what to do.

The libraries raise errors of many kinds for one cause. They are distinguished by the store's code, where it sent one,
and by the names of the exceptions, so that no library of a store is imported that nobody uses.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stages.contract import StageError
from stages.storage import StorePath, is_remote

_MISSING = "there is no such bucket or container: create it, or correct the name"
_DENIED = "access is denied: these credentials need permission to list, read, write and delete there"
_WRONG = "the store does not know these credentials: correct them"
_EXPIRED = "the credentials have expired: renew them and run the same command, which goes on where this one stopped"
_CLOCK = "the clock of {host} is wrong, so the store refuses its requests: set it (NTP), and run the same command again"
_BUSY = (
    "the store asked to slow down, and still did after many attempts: run the same command later, or with fewer workers"
)
_FAILED = "the store failed on its side, also after many attempts: run the same command later"
_NO_CREDENTIALS = (
    "{host} has no credentials for it: give the machine a role, or set the variables that docs/cluster.md lists"
)
_AWAY = "it cannot be reached from {host}: check the network and the endpoint (AWS_ENDPOINT_URL for S3)"
_NAME = "this is no valid name of a bucket: correct it"

#: By the store's own code: S3's, Google's HTTP status, Azure's.
_BY_CODE = {
    **dict.fromkeys(("NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted"), _MISSING),
    **dict.fromkeys(
        (
            "AccessDenied",
            "AllAccessDisabled",
            "Forbidden",
            "403",
            "AuthorizationFailure",
            "AuthorizationPermissionMismatch",
        ),
        _DENIED,
    ),
    **dict.fromkeys(
        ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthenticationFailed", "InvalidSecurity", "401"), _WRONG
    ),
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"), _EXPIRED),
    **dict.fromkeys(("RequestTimeTooSkewed", "RequestExpired"), _CLOCK),
    **dict.fromkeys(
        (
            "SlowDown",
            "ServiceUnavailable",
            "Throttling",
            "ThrottlingException",
            "TooManyRequests",
            "ServerBusy",
            "503",
            "429",
        ),
        _BUSY,
    ),
    **dict.fromkeys(("InternalError", "InternalServerError", "500", "502", "504"), _FAILED),
    **dict.fromkeys(("InvalidBucketName", "InvalidResourceName"), _NAME),
}

#: By the name of an exception, of botocore, google-auth, gcsfs, azure and aiohttp.
_BY_EXCEPTION = {
    **dict.fromkeys(
        ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "DefaultCredentialsError"),
        _NO_CREDENTIALS,
    ),
    **dict.fromkeys(
        ("UnauthorizedSSOTokenError", "SSOTokenLoadError", "TokenRetrievalError", "RefreshError"), _EXPIRED
    ),
    **dict.fromkeys(
        (
            "EndpointConnectionError",
            "ConnectTimeoutError",
            "ReadTimeoutError",
            "ConnectionClosedError",
            "ClientConnectorError",
            "ServiceRequestError",
            "FSTimeoutError",
        ),
        _AWAY,
    ),
    "ClientAuthenticationError": _WRONG,
}


def storage_error(error: BaseException, place: str) -> str | None:
    """One sentence when a store refused a request; None for any other error.

    Args:
        place: The URI of what was to be read or written.
    """
    for cause in _causes(error):
        meaning = _BY_CODE.get(_code(cause)) or _BY_EXCEPTION.get(type(cause).__name__)
        if meaning is None and isinstance(cause, OSError) and cause.errno == errno.EBUSY:
            meaning = _BUSY
        if meaning is None and isinstance(cause, FileNotFoundError) and "bucket does not exist" in str(cause):
            meaning = _MISSING
        if meaning is not None:
            return f"{place}: {meaning.format(host=socket.gethostname())}."
    return None


@contextmanager
def store_errors_as_stage_errors(place: StorePath) -> Iterator[None]:
    """Turn what an object store says when it refuses a request for `place` into a StageError; other errors pass."""
    try:
        yield
    except StageError:
        raise
    except Exception as error:  # each object store has exceptions of its own
        sentence = storage_error(error, str(place)) if is_remote(place) else None
        if sentence is None:
            raise
        raise StageError(sentence) from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that led to it."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def _code(error: BaseException) -> str:
    """The code that the store sent with an error; empty when there is none."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        return str(response.get("Error", {}).get("Code", ""))
    return str(getattr(error, "error_code", None) or getattr(error, "code", None) or "")
