"""An MLflow server with users, on PostgreSQL and an S3 store; and the same database without a server. `nightly`.

Skipped where PostgreSQL (Debian: postgresql) or Flask-WTF, which MLflow's users need, is not installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow.server import get_app_client
from moto.server import ThreadedMotoServer
from upath import UPath

from pipelines.served_registry import served_registry
from pipelines.store.store import Store
from stages.contract import StageError
from stages.serve.registry import Versions
from tests.pipelines.test_mlflow_server import paint, served, track
from tests.support.mlflow_server import mlflow_server
from tests.support.postgres import PASSWORD as DATABASE_PASSWORD
from tests.support.postgres import postgres, postgres_programs
from tests.support.registered_model import Registry
from tests.support.toy_pipeline import toy_config

PROGRAMS = postgres_programs()
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(PROGRAMS is None, reason="PostgreSQL is not installed"),
]

BUCKET = "mlflow"
ADMIN_PASSWORD, PASSWORD = "admin-secret-1", "anna-secret-1"
SECRETS = (ADMIN_PASSWORD, PASSWORD, DATABASE_PASSWORD)


@dataclass
class Services:
    """The URIs of two databases, and the bucket of the S3 server, which is in the environment."""

    database: str
    other: str
    bucket: UPath

    def objects(self) -> list[str]:
        """Their names in the bucket."""
        return [name.removeprefix(f"{BUCKET}/") for name in self.bucket.fs.find(self.bucket.path)]


@pytest.fixture(scope="module")
def services() -> Iterator[Services]:
    assert PROGRAMS is not None
    s3 = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    s3.start()
    host, port = s3.get_host_and_port()
    try:
        with postgres(PROGRAMS, "mlflow", "other") as databases, pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://{host}:{port}")
            patch.setenv("AWS_ACCESS_KEY_ID", "key")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            bucket = UPath(f"s3://{BUCKET}", endpoint_url=f"http://{host}:{port}", use_listings_cache=False)
            bucket.mkdir()
            yield Services(databases[0], databases[1], bucket)
    finally:
        s3.stop()


@pytest.fixture(scope="module")
def server(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """With the users anna, and bob who may only read what anna has made."""
    if importlib.util.find_spec("flask_wtf") is None:
        pytest.skip("Flask-WTF is not installed, which MLflow's users need")
    folder = tmp_path_factory.mktemp("server")
    settings = folder / "auth.ini"
    settings.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {services.database}\nadmin_username = admin\n"
        "auth_cache_ttl_seconds = 60\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    variables = {
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN_PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of-the-session",
    }
    options = ["--app-name", "basic-auth"]
    with mlflow_server(folder, services.database, f"s3://{BUCKET}/files", variables, *options) as address:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
            patch.setenv("MLFLOW_TRACKING_PASSWORD", ADMIN_PASSWORD)
            client = get_app_client("basic-auth", tracking_uri=address)
            for name in ("anna", "bob"):
                client.create_user(name, PASSWORD)
        yield address


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def be(patch: pytest.MonkeyPatch, name: str, password: str = PASSWORD) -> None:
    patch.setenv("MLFLOW_TRACKING_USERNAME", name)
    patch.setenv("MLFLOW_TRACKING_PASSWORD", password)


def assert_no_secret(folder: Path, *texts: str) -> None:
    contents = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    for secret in SECRETS:
        assert not [content for content in contents if secret.encode() in content]
        assert not [text for text in texts if secret in text]


def test_a_user_records_registers_and_serves(
    tmp_path: Path, services: Services, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    be(monkeypatch, "anna")
    _, _, warnings = track(tmp_path, toy_config(tmp_path, f"run.tracking_uri={server}"))
    assert warnings == []
    assert [key for key in services.objects() if key.startswith("files/") and key.endswith("curves.png")]
    registry = Registry(tmp_path / "registry", server)
    registry.register(0.6)
    assert [key for key in services.objects() if key.startswith("files/") and "/models/" in key]
    reader = served(tmp_path, server)
    assert reader.champion() == Versions(model="1")
    assert paint(reader.fetch(reader.champion()))
    registry.register(0.7)
    assert reader.champion() == Versions(model="2")
    assert_no_secret(tmp_path)

    be(monkeypatch, "bob")
    (tmp_path / "bob").mkdir()
    _, _, warnings = track(tmp_path / "bob", toy_config(tmp_path / "bob", f"run.tracking_uri={server}"))
    assert "its user has no permission for this" in warnings[0]
    of_bob = Registry(tmp_path / "of-bob", server)
    with pytest.raises(StageError, match="has no permission"):
        of_bob.register(0.8)
    assert paint(reader.fetch(reader.champion())), "bob may read"

    be(monkeypatch, "anna", "wrong")
    with pytest.raises(StageError, match="MLFLOW_TRACKING_USERNAME"):
        reader.champion()


def test_a_database_without_a_server(tmp_path: Path, services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files go to the object store, from which they are read without the database's password."""
    registry = Registry(tmp_path / "direct", services.other, artifacts=f"s3://{BUCKET}/direct")
    registry.register(0.6, register={"model_name": "direct"})
    assert [key for key in services.objects() if key.startswith("direct/")]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", services.other)
    config = toy_config(tmp_path, "register.model_name=direct")
    reader = served_registry(config, Store(Path(config.run.folder)), tmp_path)
    model = reader.fetch(reader.champion())
    assert DATABASE_PASSWORD not in repr(model)
    assert paint(model)
    _, store, warnings = track(tmp_path, toy_config(tmp_path))
    assert warnings == []
    assert list((store.folder / "mlflow" / "artifacts").rglob("curves.png"))
    assert_no_secret(tmp_path, str(reader))
    wrong = services.other.replace(DATABASE_PASSWORD, "wrong-secret-1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", wrong)
    with pytest.raises(StageError, match="refuses the user or the password") as error:
        served_registry(config, Store(Path(config.run.folder)), tmp_path).champion()
    assert "secret" not in str(error.value)
