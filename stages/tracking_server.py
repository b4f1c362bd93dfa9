"""MLflow's server or database, before it is used and when it fails: a quick check, and errors as one sentence.

MLflow's client tries a request again for a minute (`MLFLOW_HTTP_REQUEST_MAX_RETRIES`) and answers with what the
libraries beneath it have said, over many lines and with the user and the password of a URI.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

from stages.contract import StageError
from stages.tracking_uri import is_server, masked

#: Of the server's version: older ones know nothing of MLflow 3's models.
_LOWEST_VERSION = 3
_SECONDS = 10
_LONGEST_REASON = 300

_SIGN_IN = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
#: What an error says, and what that means to the user. The first that fits counts.
_REASONS = (
    (r"Invalid Host header", "it refuses this name of its host; start it with --allowed-hosts"),
    (r"error code 401|401 Client Error|not authenticated", f"it refuses the user or the password; {_SIGN_IN}"),
    (r"password authentication failed|no password supplied|Access denied for user",
     "it refuses the user or the password; set the whole URI as MLFLOW_TRACKING_URI"),
    (r"error code 403|403 Client Error|Permission denied|PERMISSION_DENIED",
     "its user has no permission for this; ask for EDIT on the experiment and on the registered models"),
    (r"413 Client Error|Request Entity Too Large|error code 413",
     "a proxy before it refuses large files; raise its limit (nginx: client_max_body_size)"),
    (r"error code 404|404 Client Error|ENDPOINT_NOT_FOUND",
     "it does not know this request; check its path, and that it is an MLflow server of version 3"),
    (r"valid JSON format|JSONDecodeError|Exceeded \d+ redirects",
     "what answers there is no MLflow server but perhaps a proxy or a login page"),
    (r"too many (\d+) error responses", r"it answers with the error \1"),
    (r"CERTIFICATE_VERIFY_FAILED",
     "its certificate is not trusted; set MLFLOW_TRACKING_SERVER_CERT_PATH to that of its authority"),
    (r"WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|record layer failure", "it does not use TLS; write http://"),
    (r"ProxyError|Cannot connect to proxy", "the proxy of this environment does not lead there; see NO_PROXY"),
    (r"NameResolutionError|could not translate host name|Name or service not known|Unknown .* host",
     "the name of its host is not known"),
    (r"Connection refused|Can't connect to", "nothing listens there; start it, or correct the address"),
    (r"timed out|timeout expired|timeout exception", "it does not answer in time"),
    (r"RemoteDisconnected|Connection aborted|Connection reset|server closed the connection", "it ends the connection"),
    (r"No module named '(psycopg\d?|MySQLdb|pymysql|pyodbc)'",
     r"the package \1 is not installed; install it, or name another driver, as in postgresql+psycopg2://"),
    (r"No module named '([\w.]+)'", r"the package \1 is not installed"),
    (r"unable to open database file", "the file cannot be opened or made"),
    (r"Unable to locate credentials|NoCredentialsError",
     "this machine has no credentials for the object store of its files; set AWS_ACCESS_KEY_ID and "
     "AWS_SECRET_ACCESS_KEY, or give it a role"),
    (r"ExpiredToken|InvalidAccessKeyId|SignatureDoesNotMatch|InvalidClientTokenId",
     "the object store of its files refuses the credentials of this machine"),
    (r"NoSuchBucket", "the bucket of its files is not there"),
    (r"AccessDenied", "this machine has no permission for the object store of its files"),
)  # fmt: skip

#: Packages whose errors mean that the server, the database or the store of its files has failed.
_PACKAGES = {
    "azure", "boto3", "botocore", "google", "mlflow", "psycopg", "psycopg2", "requests", "s3transfer", "sqlalchemy",
    "urllib3",
}  # fmt: skip


class TrackingServerError(StageError):
    """MLflow's server or database cannot be used."""


def take_credentials() -> None:
    """Move the user and the password in MLFLOW_TRACKING_URI to where MLflow looks for them, if it names a server.

    As a part of the URI they would be in every error of MLflow. Processes that are started inherit the environment.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not is_server(uri):
        return
    user, at, _ = urlsplit(uri).netloc.rpartition("@")
    if not at:
        return
    name, colon, password = user.partition(":")
    os.environ["MLFLOW_TRACKING_URI"] = uri.replace(f"{user}@", "", 1)
    if colon:
        os.environ |= {"MLFLOW_TRACKING_USERNAME": unquote(name), "MLFLOW_TRACKING_PASSWORD": unquote(password)}
    else:
        os.environ["MLFLOW_TRACKING_TOKEN"] = unquote(name)


def check_tracking_server(uri: str, experiment: str) -> None:
    """Ask a server for an experiment, or connect to a database, without waiting long.

    Raises:
        TrackingServerError: It cannot be used.
    """
    with tracking_errors(uri):
        if is_server(uri):
            _check_server(uri, experiment)
        elif not uri.startswith("sqlite"):
            _check_database(uri)


def _check_server(uri: str, experiment: str) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.utils.rest_utils import verify_rest_response

    version = re.match(r"(\d+)\.\d+", _get(uri, "/version").text)
    if version and int(version[1]) < _LOWEST_VERSION:
        raise TrackingServerError(
            f"{_name(uri)} has the version {version[0]}; it must be {_LOWEST_VERSION}.0 or later."
        )
    endpoint = "/api/2.0/mlflow/experiments/get-by-name"
    answer = _get(uri, endpoint, experiment_name=experiment)
    if "error_code" not in answer.text:
        answer.raise_for_status()
    if not answer.content:
        answer.json()  # raises JSONDecodeError; MLflow takes nothing for an answer
    try:
        verify_rest_response(answer, endpoint)
    except MlflowException as error:
        if not is_missing(error):
            raise


def _get(uri: str, endpoint: str, **parameters: str) -> Any:
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    return http_request(
        get_default_host_creds(uri),
        endpoint,
        "GET",
        params=parameters,
        timeout=_SECONDS,
        max_retries=2,
        backoff_factor=1,
        respect_retry_after_header=False,
    )


def _check_database(uri: str) -> None:
    import sqlalchemy

    takes_timeout = uri.startswith(("postgresql", "mysql"))
    engine = sqlalchemy.create_engine(uri, connect_args={"connect_timeout": _SECONDS} if takes_timeout else {})
    engine.connect().close()
    engine.dispose()


def is_missing(error: Any) -> bool:
    """Whether MLflow's error says that an experiment, a model or a version is not there."""
    return error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


@contextmanager
def tracking_errors(uri: str) -> Iterator[None]:
    """Turn errors of MLflow, and of the libraries beneath it, into one sentence.

    Raises:
        TrackingServerError: Instead of such an error, without it as the cause: its traceback may show a password.
    """
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in _PACKAGES and not isinstance(error, ModuleNotFoundError):
            raise
        sentence = f"{_name(uri)} cannot be used: {reason(error)}."
    else:
        return
    raise TrackingServerError(sentence)


def reason(error: Exception) -> str:
    """What an error of MLflow means, in a few words."""
    text = masked(f"{getattr(error, 'error_code', '')} {type(error).__name__}: {error}")
    for pattern, meaning in _REASONS:
        if found := re.search(pattern, text):
            return found.expand(meaning)
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    line = re.sub(r"^API request to \S+ failed with exception |^[A-Z_]+: ", "", line)
    return masked(line)[:_LONGEST_REASON].rstrip(". ")


def _name(uri: str) -> str:
    return f"The MLflow server {masked(uri)}" if is_server(uri) else f"MLflow's database {masked(uri)}"
