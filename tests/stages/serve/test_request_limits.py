"""Limits of a request that are settings, and what else settings ask of the painters."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from stages.serve.config import ServeConfig
from stages.serve.painting import Event, Fields, NoPainterError, Served
from stages.serve.web.application import make_application
from tests.support.local_painters import TITLE, WithoutUploads, encoded, half_mask, noise_picture

PICTURE, SQUARE = noise_picture(side=40), noise_picture(1, side=40)  # of 1600 pixels
MASK = half_mask((40, 40))
LIMIT = 3000


class AbsentPainters(WithoutUploads):
    """Painters that keep what they are asked for, and answer with 503."""

    served = Served(title=TITLE)

    asked: Fields | None = None

    async def paint(self, fields: Fields, seconds: float) -> AsyncGenerator[Event, None]:
        self.asked = fields
        if fields is not None:
            raise NoPainterError
        yield

    async def check_ready(self) -> Served:
        """They pretend to be there."""
        return self.served


def ask(path: str, files: Any, fields: dict[str, str], **settings: Any) -> tuple[Any, Fields | None]:
    painters = AbsentPainters()
    application = make_application(painters, "model", ServeConfig(**settings))
    client = TestClient(application, base_url="http://localhost", raise_server_exceptions=False)
    return client.post(path, data=fields, files=files), painters.asked


def ask_edits(*files: tuple[str, bytes], prompt: str = "a [cat]", limit: int = LIMIT, **fields: str) -> Any:
    named = [(name, ("a", data)) for name, data in files]
    answer, _ = ask("/v1/images/edits", named, {"prompt": prompt, **fields}, max_picture_pixels=limit)
    return answer


def subject(mask: bytes) -> str:
    return json.dumps({"word": "cat", "mask": base64.b64encode(mask).decode()})


@pytest.mark.parametrize(
    ("files", "fields"),
    [
        ([("image", PICTURE)], {}),
        ([("image", PICTURE)], {"limit": 1600}),
        ([("image", PICTURE), ("mask", MASK)], {"limit": 3200}),
        ([("image", PICTURE), ("image", SQUARE)], {"limit": 3200, "prompt": "a [cat] in a [hat]"}),
        ([("image", PICTURE)], {"limit": 3200, "prompt": "a cat", "subjects": subject(MASK)}),
        ([("image", encoded(Image.new("RGB", (3000, 1)), "GIF"))], {}),
        ([("image", encoded(Image.new("CMYK", (50, 60)), "JPEG"))], {}),
    ],
)
def test_what_a_request_may_have(files: list[tuple[str, bytes]], fields: dict[str, Any]) -> None:
    assert ask_edits(*files, **fields).status_code == 503


@pytest.mark.parametrize(
    ("files", "fields", "param"),
    [
        ([("image", PICTURE)], {"limit": 1599}, "image"),
        ([("image", noise_picture(side=55))], {}, "image"),
        ([("image", encoded(Image.new("L", (9000, 9000))))], {"limit": 16_777_216}, "image"),
        ([("image", encoded(Image.new("L", (3001, 1)), "WEBP"))], {}, "image"),
        ([("image", PICTURE), ("image", SQUARE)], {"prompt": "a [cat] in a [hat]"}, "image"),
        ([("image", PICTURE), ("mask", MASK)], {}, "mask"),
        ([("image", PICTURE), ("mask", half_mask((60, 60)))], {}, "mask"),
        ([("image", PICTURE)], {"prompt": "a cat", "subjects": subject(half_mask((3000, 3000)))}, "mask"),
        ([("image", PICTURE)], {"prompt": "a cat", "subjects": subject(b"no picture")}, "mask"),
        ([("image", b"no picture")], {}, "image"),
    ],
)
def test_too_many_pixels_are_refused_before_a_painter_sees_them(
    files: list[tuple[str, bytes]], fields: dict[str, Any], param: str
) -> None:
    answer = ask_edits(*files, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, "invalid_value")
    assert str(fields.get("limit", LIMIT)) in error["message"] or "not a picture" in error["message"]


def test_the_limit_of_the_form() -> None:
    fields = {"prompt": "a cat", "word": "cat"}
    answer, _ = ask("/generate", {"subject": ("a", PICTURE)}, fields, max_picture_pixels=1599)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "subject")
    assert "40 x 40 are more than the 1599 allowed" in answer.json()["error"]["message"]


@pytest.mark.parametrize("mark", [True, False])
def test_painters_mark_pictures_unless_it_is_switched_off(mark: bool) -> None:
    for path, name, fields in (
        ("/generate", "subject", {"prompt": "a cat", "word": "cat"}),
        ("/v1/images/edits", "image", {"prompt": "a [cat]"}),
    ):
        _, asked = ask(path, {name: ("a", PICTURE)}, fields, mark_generated=mark)
        assert asked is not None
        assert asked["mark_generated"] is mark


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"image_url": "https://example.org/cat.png"}, "image_url"),
        ({"images[0][image_url]": "https://example.org/cat.png"}, "images[0][image_url]"),
        ({"file_id": "file-abc"}, "file_id"),
        ({"mask[image_url]": "https://example.org/cat.png"}, "mask[image_url]"),
        ({"url": "http://169.254.169.254/"}, "url"),
        ({"prompt": "a cat", "subjects": '{"word": "cat", "image_url": "file:///etc/passwd"}'}, "subjects"),
    ],
)
def test_pictures_by_url_are_refused_with_what_to_send(fields: dict[str, str], param: str) -> None:
    answer, asked = ask("/v1/images/edits", {"image": ("a", PICTURE)}, {"prompt": "a [cat]", **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"], asked) == (400, param, "unknown_parameter", None)
    assert "send pictures as files" in error["message"]


@pytest.mark.parametrize("name", ["image", "images", "image_url", "mask", "input_image_url"])
def test_pictures_in_json_are_refused_with_what_to_send(name: str) -> None:
    application = make_application(AbsentPainters(), "model", ServeConfig())
    client = TestClient(application, base_url="http://localhost")
    body = {"prompt": "a cat", name: [{"image_url": "https://example.org/cat.png"}]}
    error = client.post("/v1/images/generations", json=body).json()["error"]
    assert (error["param"], "POST /v1/images/edits" in error["message"]) == (name, True)
    answer = client.post("/v1/images/edits", json=body)
    assert (answer.status_code, "files and not as URLs" in answer.text) == (415, True)
