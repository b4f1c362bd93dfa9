"""The form of a request to the server: what is read from it, and what is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import requests
from starlette.requests import Request

from stages.serve.config import ServeConfig
from stages.serve.web.errors import RequestError
from stages.serve.web.generate import read_form

FIELDS = {"word": "mug", "prompt": " a photo of a mug "}
SETTINGS = ServeConfig(max_picture_bytes=1000, max_steps=50)


def read(fields: dict[str, Any], picture: bytes = b"picture") -> dict[str, Any]:
    """What `read_form` returns for a multipart form, whose body arrives in pieces of 1000 bytes."""
    files = {"subject": ("subject.png", picture)}
    prepared = requests.Request("POST", "http://server/generate", data=fields, files=files).prepare()
    body, content_type = prepared.body, prepared.headers["content-type"]
    assert isinstance(body, bytes)
    assert isinstance(content_type, str)
    pieces = [body[start : start + 1000] for start in range(0, len(body), 1000)]
    return read_body(pieces, content_type)


def read_body(pieces: list[bytes], content_type: str) -> dict[str, Any]:
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    received = iter([*messages, {"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Any:
        return next(received)

    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", content_type.encode())]}
    return asyncio.run(read_form(Request(scope, receive), SETTINGS))


def test_fields_are_read_and_the_picture_stays_encoded() -> None:
    assert read(FIELDS) == {"subjects": [{"picture": b"picture", "word": "mug"}], "prompt": "a photo of a mug"}
    assert read({**FIELDS, "seed": "7", "steps": "50"}) == {**read(FIELDS), "seeds": [7], "steps": 50}
    assert read({**FIELDS, "seed": "", "steps": ""}) == read(FIELDS)  # an empty input of the page's form


@pytest.mark.parametrize(
    ("changes", "key", "remedy"),
    [
        ({"colour": "red"}, "'colour'", "subject, word, prompt, seed, steps"),
        ({"prompt": " "}, "'prompt'", "missing"),
        ({"prompt": "mug " * 1000}, "'prompt'", "at most 2000"),
        ({"seed": "one"}, "'seed'", "whole number from 0 to 9223372036854775807"),
        ({"seed": "-1"}, "'seed'", "whole number from 0"),
        ({"seed": str(2**63)}, "'seed'", "whole number from 0"),
        ({"steps": "51"}, "'steps'", "whole number from 1 to 50"),
    ],
)
def test_an_invalid_field_is_named_with_what_is_allowed(changes: dict[str, str], key: str, remedy: str) -> None:
    with pytest.raises(RequestError) as error:
        read({**FIELDS, **changes})
    assert error.value.status == 422
    assert key in error.value.message
    assert remedy in error.value.message


def test_a_form_without_a_picture_is_refused() -> None:
    with pytest.raises(RequestError, match=r"subject.*curl") as error:
        read_body(
            [b'--x\r\nContent-Disposition: form-data; name="subject"\r\n\r\nmug.png\r\n--x--\r\n'],
            "multipart/form-data; boundary=x",
        )
    assert error.value.status == 422


def test_a_large_picture_and_an_endless_body_are_refused() -> None:
    with pytest.raises(RequestError, match="at most 1000 bytes") as error:
        read(FIELDS, b"0" * 1001)
    assert error.value.status == 413
    header = b'--x\r\nContent-Disposition: form-data; name="subject"; filename="a.png"\r\n\r\n'
    with pytest.raises(RequestError, match="at most 1000 bytes") as error:
        read_body([header, *([b"0" * 10_000] * 7), b"never read"], "multipart/form-data; boundary=x")
    assert error.value.status == 413


def test_text_may_come_as_a_file() -> None:
    part = '--x\r\nContent-Disposition: form-data; name="{}"; filename="blob"\r\nContent-Type: text/plain\r\n\r\n{}\r\n'
    values = {"word": "mug", "prompt": "a mug of café\n", "seed": "7", "subject": "picture"}
    form = "".join(part.format(*item) for item in values.items()) + "--x--\r\n"
    read = read_body([form.encode()], "Multipart/Form-Data; Boundary=x")
    assert read == {"subjects": [{"picture": b"picture", "word": "mug"}], "prompt": "a mug of café", "seeds": [7]}
    with pytest.raises(RequestError, match="'prompt' must be text in UTF-8"):
        read_body([form.encode("latin-1")], "multipart/form-data; boundary=x")


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"{}", "application/json", 415),
        (b"no boundary", "multipart/form-data", 422),
        (b"--x\r\nnonsense", "multipart/form-data; boundary=x", 422),
    ],
)
def test_a_body_of_another_format_is_refused(body: bytes, content_type: str, status: int) -> None:
    with pytest.raises(RequestError) as error:
        read_body([body], content_type)
    assert error.value.status == status
