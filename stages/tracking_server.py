"""MLflow's server or database: a quick check before it is used, and its errors as a stage's.

MLflow's client itself tries a request again for a minute (`MLFLOW_HTTP_REQUEST_MAX_RETRIES`).
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

from stages.contract import StageError
from stages.tracking_errors import is_missing, reason
from stages.tracking_uri import is_server, masked

#: Of the server's version: older ones know nothing of MLflow 3's models.
_LOWEST_VERSION = 3
_SECONDS = 10
_RETRIES = 2

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
    if answer.text.startswith("{") and "error_code" not in answer.text:
        answer.raise_for_status()  # MLflow would not name the status of another program's error
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
        max_retries=_RETRIES,
        backoff_factor=1,
        backoff_jitter=0.0,
        respect_retry_after_header=False,
    )


def _check_database(uri: str) -> None:
    import sqlalchemy

    takes_timeout = uri.startswith(("postgresql", "mysql"))
    engine = sqlalchemy.create_engine(uri, connect_args={"connect_timeout": _SECONDS} if takes_timeout else {})
    engine.connect().close()
    engine.dispose()


@contextmanager
def tracking_errors(uri: str) -> Iterator[None]:
    """Turn errors of MLflow, and of the libraries beneath it, into one sentence.

    Raises:
        TrackingServerError: Instead of such an error; its traceback is not kept when it shows a password.
    """
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in _PACKAGES and not isinstance(error, ModuleNotFoundError):
            raise
        text = traceback.format_exc()
        cause = error if masked(text) == text else None
        raise TrackingServerError(f"{_name(uri)} cannot be used: {reason(error)}.") from cause


def _name(uri: str) -> str:
    return f"The MLflow server {masked(uri)}" if is_server(uri) else f"MLflow's database {masked(uri)}"
