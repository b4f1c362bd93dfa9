"""One application for the tests of its routes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from tests.support.local_painters import tiny_application
from tests.support.tiny_models import write_sd


@pytest.fixture(scope="session")
def application(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return tiny_application(write_sd(tmp_path_factory.mktemp("sd")))


@pytest.fixture(scope="session")
def client(application: FastAPI) -> Iterator[TestClient]:
    with TestClient(application, base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client
