"""The URI of an MLflow server or database: what it may be, and what of it no message shows."""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import urlsplit

#: Databases that MLflow keeps its records in. A driver may follow: postgresql+psycopg2.
_DATABASES = ("postgresql", "mysql", "mssql", "sqlite")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_HOST_AND_PORT = re.compile(r"[\w.-]+:\d+(/.*)?")
#: Up to the last "@" of the host's part; or a password with a slash in it, which databases take.
_USER = re.compile(r"(?<=//)(?:[^/?#\s]*|[^/\s:@]*:[^@\s]*)@")
_VALUE = re.compile(r"(?i)([?&][^=&\s]*(?:key|token|secret|pass|pwd|sig|auth|cred|odbc)[^=&\s]*=)[^&\s'\"]+")


def masked(text: str) -> str:
    """A text without the users, passwords and keys of the URIs in it."""
    return _VALUE.sub(r"\1***", _USER.sub("***@", text))


def is_server(uri: str) -> bool:
    """Whether MLflow's server is asked, and not a database."""
    return _scheme(uri) in ("http", "https")


def checked_tracking_uri(uri: str) -> str:
    """A URI that MLflow can use; the path of an SQLite file becomes absolute.

    Raises:
        ValueError: Why it is none, as the end of a sentence.
    """
    scheme = _scheme(uri)
    if scheme in ("http", "https"):
        _check_server(uri)
    elif scheme == "sqlite":
        return _with_absolute_path(uri)
    elif scheme in _DATABASES:
        if "://" not in uri or not uri.partition("://")[2].strip("/"):
            raise ValueError(f"write {scheme}://user@host/database")
    elif _HOST_AND_PORT.fullmatch(uri):
        raise ValueError("write http:// or https:// before it")
    elif scheme in ("", "file"):
        raise ValueError("MLflow has given up its file store; an SQLite file is sqlite:///path/mlflow.db")
    elif scheme.startswith("databricks") or scheme == "uc" or uri == "databricks":
        raise ValueError("Databricks names experiments and models in other ways; use an MLflow server or a database")
    elif scheme not in {plugin.name for plugin in entry_points(group="mlflow.tracking_store")}:
        raise ValueError(f"MLflow keeps no records in {scheme}{'; write postgresql://' * (scheme == 'postgres')}")
    return uri


def checked_setting(uri: str) -> str:
    """As `checked_tracking_uri`, for a setting, which a run writes into its records.

    Raises:
        ValueError: It is no such URI, or has a password in it.
    """
    checked = checked_tracking_uri(uri)
    user = _USER.search(uri)
    if _VALUE.search(uri) or (user and (":" in user[0] or is_server(uri))):
        others = ", or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" if is_server(uri) else ""
        raise ValueError(
            f"a run's records would show the password; set MLFLOW_TRACKING_URI in the environment instead{others}"
        )
    return checked


def _scheme(uri: str) -> str:
    if uri == "databricks":
        return uri
    found = _SCHEME.match(uri)
    return found[1].partition("+")[0].lower() if found else ""


def _check_server(uri: str) -> None:
    try:
        parts = urlsplit(uri)
        named = bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise ValueError(f"it is no URL ({error})") from error
    if not named or "://" not in uri:
        raise ValueError("it names no host; write https://host or http://host:5000")
    if parts.query or parts.fragment:
        raise ValueError("leave out what follows '?' or '#', which names a page of the server")


def _with_absolute_path(uri: str) -> str:
    start, separator, path = uri.partition(":///")
    file, query, options = path.partition("?")
    if not separator or not file or file == ":memory:":
        raise ValueError("write sqlite:///path/mlflow.db, with an absolute path sqlite:////path/mlflow.db")
    return f"{start}{separator}{Path(file).absolute()}{query}{options}"
