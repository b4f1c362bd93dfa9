"""A real S3 server on the loopback interface, with a bucket for each test. `tests/conftest.py` has its fixtures."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@dataclass(frozen=True)
class ObjectServer:
    """A server of S3's protocol.

    Attributes:
        endpoint: Its URL.
    """

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which a process finds the server and may use it."""
        return {**_ENVIRONMENT, "AWS_ENDPOINT_URL": self.endpoint}

    def client(self) -> Any:
        """A client of boto3."""
        import boto3  # type: ignore[import-untyped]

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=_ENVIRONMENT["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=_ENVIRONMENT["AWS_SECRET_ACCESS_KEY"],
            region_name=_ENVIRONMENT["AWS_DEFAULT_REGION"],
        )

    def new_bucket(self) -> str:
        """The URI of a new bucket."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}"


@pytest.fixture(scope="session")
def object_server() -> Iterator[ObjectServer]:
    """One server for the whole session. Only processes that get its `environment` use it; the workers of the fixture
    `ray_cluster` do.
    """
    from moto.server import ThreadedMotoServer  # imports Flask

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield ObjectServer(f"http://{host}:{port}")
    server.stop()


@pytest.fixture
def bucket(
    object_server: ObjectServer, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The URI of an empty bucket that this process and those it starts can use; copies go to a folder of the test."""
    from upath import UPath

    for name, value in object_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    UPath("s3://bucket").fs.clear_instance_cache()  # clients keep the endpoint that they were made with
    yield object_server.new_bucket()
    UPath("s3://bucket").fs.clear_instance_cache()
