"""Which URIs MLflow can use, and what of them is never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.config.loading import config_from_dict, config_to_dict, load_config
from pipelines.errors import UsageError
from pipelines.store.store import Store
from pipelines.tracking_store import configured_uri, no_tracking_store, tracking_store
from stages.tracking_uri import masked

TAKEN = [
    "http://localhost:5000",
    "https://mlflow.example.com",
    "https://mlflow.example.com/team/a/",
    "HTTPS://mlflow.example.com",
    "http://[::1]:5000",
    "http://10.0.0.7:80",
    "postgresql://mlflow@db/mlflow",
    "postgresql+psycopg2://mlflow@db:5433/mlflow?sslmode=require",
    "postgresql+psycopg2:///mlflow?host=/var/run/postgresql",
    "mysql+pymysql://mlflow@db/mlflow",
    "mssql+pyodbc://mlflow@db/mlflow?driver=ODBC+Driver+18+for+SQL+Server",
    "sqlite:////data/mlflow.db",
    "sqlite+pysqlite:////data/a b/100%25/mlflow.db",
]

REFUSED = {
    "a path": ("/data/mlruns", "sqlite:///"),
    "a relative path": ("mlruns", "sqlite:///"),
    "a file URI": ("file:///data/mlruns", "file store"),
    "a host": ("mlflow:5000", "http://"),
    "a host with a path": ("10.0.0.7:5000/mlflow", "http://"),
    "no host": ("http://", "names no host"),
    "no host but a path": ("https:///mlflow", "names no host"),
    "one slash": ("http:/mlflow:5000", "names no host"),
    "a port too large": ("http://mlflow:99999", "no URL"),
    "a port in words": ("http://mlflow:http", "no URL"),
    "half an IPv6 address": ("http://[::1", "no URL"),
    "a page of the server": ("http://mlflow:5000/#/experiments/1", "names a page"),
    "a query": ("http://mlflow:5000/?o=1", "names a page"),
    "an object store": ("s3://bucket/mlflow", "no records in s3"),
    "ftp": ("ftp://mlflow/x", "no records in ftp"),
    "another database": ("oracle://db/mlflow", "no records in oracle"),
    "an old name": ("postgres://db/mlflow", "postgresql://"),
    "Databricks": ("databricks", "Databricks"),
    "a profile of Databricks": ("databricks://mine", "Databricks"),
    "Unity Catalog": ("databricks-uc", "sqlite:///"),
    "Unity Catalog elsewhere": ("uc:http://catalog:8080", "Databricks"),
    "no database": ("postgresql://", "user@host/database"),
    "no slashes": ("mysql:db", "user@host/database"),
    "SQLite in memory": ("sqlite://", "sqlite:///path"),
    "SQLite in memory by name": ("sqlite:///:memory:", "sqlite:///path"),
    "two slashes": ("sqlite://mlflow.db", "sqlite:///path"),
    "an empty text": ("''", "takes the URI"),
    "a line break": ('"http://a\\nb"', "takes the URI"),
}

#: Each has the password "hush" or the token "hush".
SECRETS = [
    "http://anna:hush@mlflow:5000",
    "https://hush@mlflow",
    "https://anna:hush%40@mlflow/team",
    "postgresql://anna:hush@db/mlflow",
    "postgresql://anna:hush/hush@db/mlflow",
    "postgresql://anna:hu@hush@db/mlflow",
    "mysql+pymysql://anna:hush@db/mlflow",
    "postgresql://db/mlflow?user=anna&password=hush",
    "postgresql://anna@db/mlflow?sslmode=require&sslpassword=hush",
    "mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3Dhush",
]


@pytest.mark.parametrize("uri", TAKEN)
def test_servers_and_databases_are_taken_as_they_are(uri: str) -> None:
    config = load_config("micro", [f"run.tracking_uri={uri}"])
    assert config.run.tracking_uri == uri
    assert config_from_dict(config_to_dict(config)) == config


@pytest.mark.parametrize("case", REFUSED)
def test_other_uris_are_refused_with_the_configuration(case: str) -> None:
    uri, remedy = REFUSED[case]
    with pytest.raises(
        UsageError, match=r"^run\.tracking_uri takes the URI of an MLflow server or a database"
    ) as error:
        load_config("micro", [f"run.tracking_uri={uri}"])
    assert remedy in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("uri", SECRETS)
def test_a_password_belongs_into_the_environment(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="set MLFLOW_TRACKING_URI in the environment") as error:
        load_config("micro", [f"run.tracking_uri={uri}"])
    assert "hush" not in str(error.value)
    assert "hush" not in masked(f"API request to {uri}/api failed with {uri}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert configured_uri(load_config("micro")) == uri


def test_the_setting_counts_before_the_environment_and_both_before_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, setting = Store(tmp_path), ["run.tracking_uri=http://setting"]
    local = tracking_store(load_config("micro"), store)
    assert local is not None
    assert local.in_run_folder
    assert local.uri == f"sqlite+pysqlite:///{tmp_path}/mlflow/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", " http://environment ")
    assert configured_uri(load_config("micro")) == "http://environment"
    assert configured_uri(load_config("micro", setting)) == "http://setting"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert configured_uri(load_config("micro")) is None


def test_a_wrong_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:///mlruns")
    with pytest.raises(UsageError, match=r"^MLFLOW_TRACKING_URI takes"):
        configured_uri(load_config("micro"))


def test_a_relative_sqlite_file_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config("micro", ["run.tracking_uri=sqlite:///records/mlflow.db"])
    assert config.run.tracking_uri == f"sqlite:///{tmp_path}/records/mlflow.db"


def test_the_files_of_a_database_lie_in_the_run_folder(tmp_path: Path) -> None:
    """Those of a server lie where the server says."""
    for uri, artifacts in (("postgresql://db/x", str(tmp_path / "mlflow" / "artifacts")), ("https://mlflow", None)):
        place = tracking_store(load_config("micro", [f"run.tracking_uri={uri}"]), Store(tmp_path))
        assert place is not None
        assert (place.artifacts, place.in_run_folder) == (artifacts, False)


def test_a_run_folder_in_an_object_store_needs_a_server_or_a_database() -> None:
    class Remote:
        """As a path of universal-pathlib prints itself."""

        def __str__(self) -> str:
            return "s3://bucket/run"

    store = Store(Remote())  # type: ignore[arg-type]
    assert tracking_store(load_config("micro"), store) is None
    assert "set run.tracking_uri or MLFLOW_TRACKING_URI" in no_tracking_store(store)
    place = tracking_store(load_config("micro", ["run.tracking_uri=postgresql://db/x"]), store)
    assert place is not None
    assert place.artifacts == "s3://bucket/run/mlflow/artifacts"
