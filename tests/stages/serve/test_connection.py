"""A client that goes away, over real sockets: the painting ends at its next step."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import requests

from stages.serve.config import ServeConfig
from stages.serve.painting import Fields
from stages.serve.web.application import make_application
from tests.support.local_painters import NAME, LocalPainters, listening, noise_picture, tiny_painter
from tests.support.tiny_models import write_sd

SETTINGS = ServeConfig(max_batch_size=2, timeout_seconds=600, max_steps=1000)
FILES = {"image": ("a.png", noise_picture(), "image/png")}
LONG = {"prompt": "a [cat] in a hat", "steps": "900"}


@pytest.fixture(scope="module")
def painters(tmp_path_factory: pytest.TempPathFactory) -> LocalPainters:
    return LocalPainters(tiny_painter(write_sd(tmp_path_factory.mktemp("sd"))), SETTINGS)


@pytest.fixture(scope="module")
def address(painters: LocalPainters) -> Iterator[str]:
    with listening(make_application(painters, NAME, SETTINGS)) as address:
        yield address


def leave(address: str, path: str, fields: Fields, files: Fields) -> None:
    with pytest.raises(requests.exceptions.RequestException):
        requests.post(f"{address}{path}", data=fields, files=files, timeout=0.3)


def leave_a_stream(address: str) -> None:
    fields = {**LONG, "stream": "true", "partial_images": "3"}
    with requests.post(f"{address}/v1/images/edits", data=fields, files=FILES, stream=True, timeout=60) as answer:
        assert answer.status_code == 200


@pytest.mark.parametrize("kind", ["edits", "generate", "stream"])
def test_the_places_in_the_batch_are_free_again(address: str, painters: LocalPainters, kind: str) -> None:
    for _ in range(3):
        if kind == "edits":
            leave(address, "/v1/images/edits", LONG, FILES)
        elif kind == "generate":
            form = {"prompt": "a cat", "word": "cat", "steps": "900"}
            leave(address, "/generate", form, {"subject": FILES["image"]})
        else:
            leave_a_stream(address)
    deadline = time.monotonic() + 2
    while painters.free < SETTINGS.max_batch_size:
        assert time.monotonic() < deadline, "the pictures are still being painted"
        time.sleep(0.01)
