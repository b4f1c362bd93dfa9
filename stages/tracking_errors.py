"""What errors of MLflow, and of the libraries beneath it, mean to the user.

MLflow passes on what these have said, over many lines and with the user and the password of a URI. This module imports
nothing of `model`, as `stages.serve.served_model` explains.
"""

from __future__ import annotations

import re
from typing import Any

from stages.tracking_uri import masked

_LONGEST_REASON = 300

_SIGN_IN = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
#: What an error says, and what that means to the user. The first that fits counts.
_REASONS = (
    (r"(?s)failures occurred while downloading.*404|NoSuchKey", "they are not there any more"),
    (r"Invalid Host header", "it refuses this name of its host; start it with --allowed-hosts"),
    (r"error code 401|401 Client Error|not authenticated|UNAUTHENTICATED|CUSTOMER_UNAUTHORIZED",
     f"it refuses the user or the password; {_SIGN_IN}"),
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
    (r"When an mlflow-artifacts URI was supplied",
     "its experiment keeps files on an MLflow server; name that server instead"),
    (r"NoSuchBucket", "the bucket of its files is not there"),
    (r"AccessDenied", "this machine has no permission for the object store of its files"),
)  # fmt: skip


def reason(error: Exception) -> str:
    """What an error of MLflow means, in a few words."""
    text = masked(f"{getattr(error, 'error_code', '')} {type(error).__name__}: {error}")
    for pattern, meaning in _REASONS:
        if found := re.search(pattern, text):
            return found.expand(meaning)
    lines = [line.strip() for line in str(error).splitlines()]
    # MLflow's list of failed downloads: a sentence that ends with ":", a title for each file, and what has failed.
    line = next((line for line in lines if line and not line.startswith("#") and line[-1] != ":"), type(error).__name__)
    line = re.sub(r"^API request to \S+ failed with exception |^[A-Z_]+: ", "", line)
    return masked(line)[:_LONGEST_REASON].rstrip(". ")


def is_missing(error: Any) -> bool:
    """Whether MLflow's error says that an experiment, a model or a version is not there."""
    return error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
