"""Pictures that the safety checker refuses, when they come in and when they are painted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from stages.serve.config import ServeConfig
from stages.serve.web.application import make_application
from tests.support.local_painters import NAME, LocalPainters, noise_picture, tiny_painter
from tests.support.safety_checker import small_checker

EDIT = {"prompt": "a [cat] in a hat"}
FILES = {"image": ("a.png", noise_picture())}
REFUSES_ALL, REFUSES_NONE = -2.0, 2.0  # thresholds of cosines


@pytest.fixture(scope="module")
def painters(sd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> LocalPainters:
    folder = tmp_path_factory.mktemp("checker")
    small_checker().save_pretrained(folder / "safety_checker")
    return LocalPainters(tiny_painter(sd_folder), ServeConfig(safety_checker=str(folder)))


def client_of(painters: LocalPainters, threshold: float) -> TestClient:
    painters.model.safety.checker.concept_embeds_weights.fill_(threshold)
    return TestClient(make_application(painters, NAME, ServeConfig()), base_url="http://localhost")


def refusal(answer: Any) -> tuple[int, str | None, str]:
    error = answer.json()["error"]
    assert "afety checker refuses" in error["message"]
    return answer.status_code, error["param"], error["code"]


def test_pictures_that_are_not_refused_are_painted(painters: LocalPainters) -> None:
    client = client_of(painters, REFUSES_NONE)
    assert client.post("/v1/images/edits", data=EDIT, files=FILES).status_code == 200


def test_a_subject_is_refused_by_its_field(painters: LocalPainters) -> None:
    client = client_of(painters, REFUSES_ALL)
    assert refusal(client.post("/v1/images/edits", data=EDIT, files=FILES)) == (400, "image", "moderation_blocked")
    form, files = {"prompt": "a cat", "word": "cat"}, {"subject": FILES["image"]}
    assert refusal(client.post("/generate", data=form, files=files)) == (422, "subject", "moderation_blocked")


def test_a_painted_picture_is_refused_with_its_previews(painters: LocalPainters) -> None:
    client = client_of(painters, REFUSES_ALL)
    for number in (1, 3):
        answer = client.post("/v1/images/generations", json={"prompt": "a cat", "n": number})
        assert refusal(answer) == (400, None, "moderation_blocked")
    body = {"prompt": "a cat", "stream": True, "partial_images": 3, "steps": 8}
    stream = client.post("/v1/images/generations", json=body)
    assert stream.text.count("event:") == 1
    assert "moderation_blocked" in stream.text
    assert painters.free == ServeConfig().max_batch_size
