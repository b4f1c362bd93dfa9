"""One application for the tests of its routes, and one browser for those of its page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from playwright.sync_api import Browser
from starlette.testclient import TestClient

from model.painting.painter import RequestPainter
from stages.serve.config import ServeConfig
from stages.serve.web.application import make_application
from tests.support.browser import Open, OpenPage, chromium
from tests.support.held_painters import HeldPainters
from tests.support.local_painters import NAME, listening, tiny_application, tiny_painter
from tests.support.tiny_models import write_sd


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sd(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def painter(sd_folder: Path) -> RequestPainter:
    return tiny_painter(sd_folder)


@pytest.fixture
def uploads(painter: RequestPainter, tmp_path: Path) -> Path:
    for name in painter.concepts.names:
        painter.concepts.withdraw(name)
    return tmp_path / "run" / "served_concepts"


@pytest.fixture(scope="session")
def application(sd_folder: Path) -> FastAPI:
    return tiny_application(sd_folder)


@pytest.fixture(scope="session")
def client(application: FastAPI) -> Iterator[TestClient]:
    with TestClient(application, base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(browser: Browser, application: FastAPI) -> Iterator[str]:
    with listening(application) as address:
        yield address


@pytest.fixture
def held(browser: Browser, sd_folder: Path) -> Iterator[HeldPainters]:
    """Painters of a server of their own."""
    painters = HeldPainters(tiny_painter(sd_folder))
    with listening(make_application(painters, NAME, ServeConfig(max_steps=50))) as painters.address:
        yield painters
        painters.go_on.set()


@pytest.fixture
def open_page(browser: Browser, address: str) -> Iterator[Open]:
    """Opens the page; at the end nothing has been wrong in it."""
    opened: list[OpenPage] = []

    def open_page(address: str = address, **options: Any) -> OpenPage:
        opened.append(OpenPage(browser, address, **options))
        return opened[-1]

    yield open_page
    problems = [page.problems for page in opened]
    for page in opened:
        page.tab.close()
    assert problems == [[] for _ in opened]
