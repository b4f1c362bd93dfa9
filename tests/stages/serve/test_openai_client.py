"""The official client over a real socket."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from openai import BadRequestError, NotFoundError, OpenAI
from PIL import Image

from tests.support.local_painters import NAME, SIDE, listening, noise_picture

PROMPT = "a [cat] in a [hat]"
PICTURES = [noise_picture(1), noise_picture(2)]


@pytest.fixture(scope="module")
def openai_client(application: FastAPI) -> Iterator[OpenAI]:
    with listening(application) as address:
        yield OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def side_of(picture: str | None) -> int:
    assert picture is not None
    return Image.open(io.BytesIO(base64.b64decode(picture))).width


def test_edits(openai_client: OpenAI) -> None:
    answer = openai_client.images.edit(
        image=PICTURES,
        prompt=PROMPT,
        n=2,
        size="auto",
        output_format="webp",
        extra_body={"seed": 7, "return_masks": True, "mask_every": 2},
    )
    assert answer.data is not None
    assert answer.usage is not None
    assert [side_of(picture.b64_json) for picture in answer.data] == [SIDE, SIDE]
    assert [picture.seed for picture in answer.data] == [7, 8]  # type: ignore[attr-defined]
    assert answer.words == ["cat", "hat"]  # type: ignore[attr-defined]
    one = openai_client.images.edit(image=("cat.png", io.BytesIO(PICTURES[0])), prompt="a [cat]", model=NAME)
    assert one.data is not None
    assert len(one.data) == 1


def test_generations(openai_client: OpenAI) -> None:
    answer = openai_client.images.generate(prompt="a cat in a hat", model=NAME, size="32x48")
    assert answer.data is not None
    assert (side_of(answer.data[0].b64_json), answer.size) == (32, "32x48")


@pytest.mark.parametrize("previews", [0, 1, 3])
def test_a_stream_of_an_edit(openai_client: OpenAI, previews: int) -> None:
    options = {"seed": 7, "steps": 8}
    stream = openai_client.images.edit(
        image=PICTURES, prompt=PROMPT, stream=True, partial_images=previews, extra_body=options
    )
    *partial, completed = list(stream)
    assert [(event.type, getattr(event, "partial_image_index", None)) for event in partial] == [
        ("image_edit.partial_image", number) for number in range(previews)
    ]
    assert all(side_of(event.b64_json) == SIDE for event in partial)
    assert all(side_of(event.mask_b64_json) >= 256 for event in partial)  # type: ignore[union-attr]
    assert completed.type == "image_edit.completed"
    assert completed.usage.output_tokens == 256
    whole = openai_client.images.edit(image=PICTURES, prompt=PROMPT, extra_body=options).data
    assert whole is not None
    assert completed.b64_json == whole[0].b64_json


def test_a_stream_of_a_generation(openai_client: OpenAI) -> None:
    stream = openai_client.images.generate(prompt="a cat", n=2, stream=True, partial_images=1)
    events = list(stream)
    assert (
        sorted(event.type for event in events)
        == ["image_generation.completed"] * 2 + ["image_generation.partial_image"] * 2
    )
    assert sorted(event.index for event in events) == [0, 0, 1, 1]  # type: ignore[union-attr]


def test_errors_name_their_field(openai_client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match=r"a \[toy\] in the jungle") as error:
        openai_client.images.edit(image=PICTURES, prompt="a cat")
    assert error.value.param == "subjects"
    with pytest.raises(NotFoundError) as missing:
        openai_client.models.retrieve("gpt-image-2")
    assert missing.value.code == "model_not_found"
    assert next(iter(openai_client.models.list())).id == NAME
