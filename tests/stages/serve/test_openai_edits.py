"""`POST /v1/images/edits` and `/v1/images/generations`: what is painted, and what is refused by name."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.support.local_painters import NAME, SIDE, encoded, half_mask, noise_picture

CAT, HAT = noise_picture(1), noise_picture(2)
ONE = [("image", ("upload", CAT, "application/octet-stream"))]
TWO = [("image[]", ("upload", CAT, "application/octet-stream")), ("image[]", ("hat.png", HAT, "image/png"))]
MASK = ("mask", ("mask.png", half_mask(), "image/png"))
B64_MASK = base64.b64encode(half_mask()).decode()


def edit(client: TestClient, files: Any = None, **fields: Any) -> Any:
    data = {"prompt": "a [cat] in a hat", "seed": "7", **fields}
    return client.post("/v1/images/edits", data=data, files=ONE if files is None else files)


def generate(client: TestClient, **fields: Any) -> Any:
    body = json.dumps({"prompt": "a cat in a hat", "seed": 7, **fields})
    return client.post("/v1/images/generations", content=body, headers={"Content-Type": "application/json"})


def picture(item: dict[str, Any], key: str = "b64_json") -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(item[key])))


def painted(response: Any) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def subjects(*entries: dict[str, Any]) -> str:
    return json.dumps(entries)


@pytest.fixture(scope="module")
def plain(client: TestClient) -> bytes:
    """The pixels of the plain request."""
    return picture(painted(edit(client))["data"][0]).tobytes()


def test_an_answer_has_openais_fields_and_ours(client: TestClient) -> None:
    body = painted(edit(client, n="2", return_masks="true", user="someone"))
    assert body["created"] > 1_700_000_000
    assert [item["seed"] for item in body["data"]] == body["seeds"] == [7, 8]
    assert (body["size"], body["output_format"], body["words"], body["model"]) == ("32x32", "png", ["cat"], NAME)
    assert body["safety_identifier"] == "someone"
    usage = body["usage"]
    assert usage["output_tokens"] == 2 * 16 * 16
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["input_tokens"] == sum(usage["input_tokens_details"].values())
    first, second = body["data"]
    assert picture(first).size == (SIDE, SIDE)
    assert picture(first, "mask_b64_json").mode == "L"
    assert first["b64_json"] != second["b64_json"]
    assert first["timings"]["total"] <= body["timings"]["total"]
    made = json.loads(picture(first).info["realword"])
    assert (made["prompt"], made["word"], made["seed"]) == ("a cat in a hat", "cat", 7)


def test_each_picture_depends_on_its_seed_alone(client: TestClient) -> None:
    both = painted(edit(client, n="2"))["data"]
    assert both[1]["b64_json"] == painted(edit(client, seed="8"))["data"][0]["b64_json"]
    drawn = [painted(edit(client, seed=""))["seeds"][0] for _ in range(2)]
    assert drawn[0] != drawn[1]


SAME: dict[str, tuple[Any, dict[str, Any]]] = {
    "words as JSON": (ONE, {"prompt": "a cat in a hat", "subjects": subjects({"word": "cat"})}),
    "a single object": (ONE, {"prompt": "a cat in a hat", "subjects": json.dumps({"word": "cat"})}),
    "harmless defaults": (
        ONE,
        {"size": "auto", "quality": "auto", "background": "opaque", "response_format": "b64_json"},
    ),
    "its own size": (ONE, {"size": "32x32", "n": "1", "output_format": "png", "partial_images": "0"}),
    "its model": (ONE, {"model": NAME, "stream": "false"}),
    "empty fields": (ONE, {"size": "", "mask": "", "subjects": "", "negative_prompt": ""}),
    "an image with an index": ([("image[0]", ("a", CAT))], {}),
    "text as a file": ([*ONE, ("prompt", ("blob", b"a [cat] in a hat"))], {"prompt": []}),
    "the defaults as numbers": (ONE, {"steps": "3", "guidance_scale": "5", "mask_every": "1", "visual_scale": "1.0"}),
}


@pytest.mark.parametrize("case", SAME)
def test_the_same_request_in_other_words_paints_the_same(client: TestClient, plain: bytes, case: str) -> None:
    files, fields = SAME[case]
    changed = painted(edit(client, files, **fields))["data"][0]
    assert picture(changed).tobytes() == plain


OTHER: dict[str, tuple[Any, dict[str, Any]]] = {
    "another seed": (ONE, {"seed": "8"}),
    "more steps": (ONE, {"steps": "5"}),
    "a stronger guidance": (ONE, {"guidance_scale": "9"}),
    "a negative prompt": (ONE, {"negative_prompt": "hat"}),
    "a weaker subject": (ONE, {"visual_scale": "0.2"}),
    "a weaker subject of its own": (
        ONE,
        {"prompt": "a cat in a hat", "subjects": subjects({"word": "cat", "strength": 0.2})},
    ),
    "a larger subject": (ONE, {"prompt": "a cat in a hat", "subjects": subjects({"word": "cat", "scope": 0.9})}),
    "a larger scope": (ONE, {"mask_scope": "0.9"}),
    "fewer masks": (ONE, {"mask_steps": "1"}),
    "binary masks": (ONE, {"mask_binary": "true"}),
    "no mask": (ONE, {"use_mask": "false"}),
    "no mask and no word": (ONE, {"use_mask": "false", "prompt": "a cat in a hat"}),
    "subjects that start late": (ONE, {"visual_guidance_start": "0.5"}),
    "subjects that end early": (ONE, {"visual_guidance_end": "0.5"}),
    "a user's mask": ([*ONE, MASK], {}),
    "a user's mask without a word": ([*ONE, MASK], {"prompt": "a cat in a hat"}),
    "a mask of another size": ([*ONE, ("mask", ("m", half_mask((99, 50))))], {}),
    "a mask in base64": (ONE, {"subjects": subjects({"word": "cat", "mask": B64_MASK})}),
    "a mask as a data URL": (ONE, {"subjects": subjects({"word": "cat", "mask": "data:image/png;base64," + B64_MASK})}),
    "two pictures": (TWO, {"prompt": "a [cat] in a [hat]"}),
    "one picture for two words": (ONE, {"subjects": subjects({"word": "cat"}, {"word": "hat", "picture": 0})}),
    "pictures in another order": (
        TWO,
        {"subjects": subjects({"word": "cat", "picture": 1}, {"word": "hat", "picture": 0})},
    ),
}


@pytest.mark.parametrize("case", OTHER)
def test_every_field_acts(client: TestClient, plain: bytes, case: str) -> None:
    files, fields = OTHER[case]
    changed = painted(edit(client, files, **fields))["data"][0]
    assert picture(changed).tobytes() != plain


@pytest.mark.parametrize(("kind", "compression"), [("webp", None), ("jpeg", None), ("jpeg", "5"), ("png", None)])
def test_output_formats(client: TestClient, kind: str, compression: str | None) -> None:
    options = {} if compression is None else {"output_compression": compression}
    body = painted(edit(client, output_format=kind, **options))
    opened = picture(body["data"][0])
    assert (opened.format, body["output_format"]) == (kind.upper(), kind)
    if kind != "png":
        assert b'"word": "cat"' in opened.getexif().get_ifd(0x8769)[0x9286]
    if compression:
        assert len(body["data"][0]["b64_json"]) < len(painted(edit(client, output_format=kind))["data"][0]["b64_json"])


@pytest.mark.parametrize("size", ["32x48", "64x64", "34x30"])
def test_sizes(client: TestClient, size: str) -> None:
    for answer in (edit(client, size=size), generate(client, size=size)):
        body = painted(answer)
        assert body["size"] == size == "{}x{}".format(*picture(body["data"][0]).size)


def test_pictures_from_text_alone(client: TestClient) -> None:
    body = painted(generate(client, n=2, steps=2, quality="auto", user=None, moderation="auto"))
    assert (body["words"], len(body["data"]), body["usage"]["input_tokens_details"]["image_tokens"]) == ([], 2, 0)
    assert "mask_b64_json" not in body["data"][0]
    assert painted(generate(client, prompt="a [cat] in"))["words"] == []  # brackets mark nothing here


REFUSED: dict[str, tuple[Any, dict[str, Any], str | None, str]] = {
    "a field of nobody": (ONE, {"colour": "red"}, "colour", "not supported"),
    "OpenAI's drawings": ([*ONE, ("markup", ("m.png", half_mask()))], {}, "markup", "not supported"),
    "OpenAI's frames": (ONE, {"frame_count": "3"}, "frame_count", "not supported"),
    "OpenAI's fidelity": (ONE, {"input_fidelity": "high"}, "input_fidelity", "not supported"),
    "a nested field": (ONE, {"subjects[0][word]": "cat"}, "subjects[0][word]", "not supported"),
    "moderation": (ONE, {"moderation": "auto"}, "moderation", "not supported"),
    "concepts": (ONE, {"concept": "my-dog"}, "concept", "not supported"),
    "transparency": (ONE, {"background": "transparent"}, "background", "'auto' or 'opaque'"),
    "quality": (ONE, {"quality": "high"}, "quality", "'auto'"),
    "a URL": (ONE, {"response_format": "url"}, "response_format", "'b64_json'"),
    "a GIF": (ONE, {"output_format": "gif"}, "output_format", "'png', 'webp' or 'jpeg'"),
    "no picture": ([("mask", ("m", half_mask()))], {}, "image", "missing"),
    "a picture as text": ([("x", ("x", b""))], {"image": "https://example.org/cat.png"}, "x", "not supported"),
    "too many pictures": ([("image[]", ("a", CAT))] * 17, {}, "image", "17 pictures; at most 16"),
    "no prompt": (ONE, {"prompt": ""}, "prompt", "missing"),
    "a blank prompt": (ONE, {"prompt": "  "}, "prompt", "at least 1"),
    "a long prompt": (ONE, {"prompt": "[cat] " * 400}, "prompt", "at most 2000"),
    "a prompt that is cut": (ONE, {"prompt": "a [cat] " + "x " * 30}, "prompt", "tokens"),
    "a negative prompt that is cut": (ONE, {"negative_prompt": "x " * 30}, "negative_prompt", "tokens"),
    "two prompts": (ONE, {"prompt": ["a [cat]", "a [hat]"]}, "prompt", "2 times"),
    "none": (ONE, {"n": "0"}, "n", "greater than or equal to 1"),
    "eleven": (ONE, {"n": "11"}, "n", "less than or equal to 10"),
    "half": (ONE, {"n": "1.5"}, "n", "integer"),
    "a size without a height": (ONE, {"size": "64"}, "size", "pattern"),
    "a small size": (ONE, {"size": "8x8"}, "size", "multiples of 2"),
    "an odd size": (ONE, {"size": "33x32"}, "size", "multiples of 2"),
    "a large size": (ONE, {"size": "1024x1024"}, "size", "up to 4096 pixels"),
    "a seed that is too large": (ONE, {"seed": str(2**63)}, "seed", "less than or equal"),
    "seeds that become too large": (ONE, {"seed": str(2**63 - 1), "n": "2"}, "seed", "at most"),
    "many steps": (ONE, {"steps": "51"}, "steps", "at most 50"),
    "a scale of infinity": (ONE, {"guidance_scale": "inf"}, "guidance_scale", "finite"),
    "a scale of nothing": (ONE, {"guidance_scale": "nan"}, "guidance_scale", "finite"),
    "another method's scale": (ONE, {"image_guidance_scale": "3"}, "image_guidance_scale", "realcustom"),
    "masks after the end": (ONE, {"mask_steps": "9"}, "mask_steps", "3 steps"),
    "no time for subjects": (ONE, {"visual_guidance_end": "0.1"}, "visual_guidance_start", "none of 3 steps"),
    "previews without a stream": (ONE, {"partial_images": "2"}, "partial_images", "stream=true"),
    "four previews": (ONE, {"partial_images": "4", "stream": "true"}, "partial_images", "less than or equal to 3"),
    "quality of PNG": (ONE, {"output_compression": "50"}, "output_compression", "PNG"),
    "quality beyond all": (ONE, {"output_compression": "101", "output_format": "webp"}, "output_compression", "100"),
    "no word": (ONE, {"prompt": "a cat in a hat"}, "subjects", "a [toy] in the jungle"),
    "one word for two pictures": (TWO, {}, "prompt", "1 words for 2 pictures"),
    "an empty mark": (ONE, {"prompt": "a [ ] cat"}, "prompt", "marks 1 words"),
    "a word that is not there": (
        ONE,
        {"subjects": subjects({"word": "dog"})},
        "subjects",
        "'dog' is not in the prompt",
    ),
    "the same word twice": (TWO, {"prompt": "a [cat] in a [cat]"}, "subjects", "overlap"),
    "subjects that are no JSON": (ONE, {"subjects": "cat"}, "subjects", "no valid JSON"),
    "subjects that are a number": (ONE, {"subjects": "7"}, "subjects", "list of objects"),
    "no subjects": (ONE, {"subjects": "[]"}, "subjects", "list of objects"),
    "deep JSON": (ONE, {"subjects": "[" * 5000}, "subjects", "no valid JSON"),
    "a subject of nobody": (ONE, {"subjects": subjects({"word": "cat", "colour": 1})}, "subjects", "'colour'"),
    "a strength as text": (ONE, {"subjects": subjects({"word": "cat", "strength": "1"})}, "subjects", "'strength'"),
    "a negative strength": (ONE, {"subjects": subjects({"word": "cat", "strength": -1})}, "subjects", "'strength'"),
    "a scope of nothing": (ONE, {"subjects": subjects({"word": "cat", "scope": 0})}, "subjects", "'scope'"),
    "a picture that is not there": (
        ONE,
        {"subjects": subjects({"word": "cat", "picture": 1})},
        "subjects",
        "1 pictures",
    ),
    "a picture that is not used": (TWO, {"subjects": subjects({"word": "cat"})}, "subjects", "for 2 pictures"),
    "scopes that add up to too much": (
        TWO,
        {"subjects": subjects({"word": "cat", "scope": 0.9}, {"word": "hat", "scope": 0.9})},
        "subjects",
        "add up",
    ),
    "a mask that is no base64": (ONE, {"subjects": subjects({"word": "cat", "mask": "?"})}, "subjects", "base64"),
    "a mask without transparency": ([*ONE, ("mask", ("m", CAT))], {}, "mask", "no transparent pixel"),
    "a mask that is nearly transparent": (
        [*ONE, ("mask", ("m", half_mask(alpha=1)))],
        {},
        "mask",
        "no transparent pixel",
    ),
    "a mask that is no picture": ([*ONE, ("mask", ("m", b"hello"))], {}, "mask", "mask of picture 1"),
    "two masks": ([*ONE, MASK, MASK], {}, "mask", "more than one mask"),
    "a mask beside a mask": (
        [*ONE, MASK],
        {"subjects": subjects({"word": "cat", "mask": B64_MASK})},
        "mask",
        "already",
    ),
    "a mask that is switched off": ([*ONE, MASK], {"use_mask": "false"}, "use_mask", "mask"),
    "a scope without masks": (
        ONE,
        {"use_mask": "false", "subjects": subjects({"word": "cat", "scope": 0.5})},
        "use_mask",
        "scope",
    ),
    "masks without masks": (ONE, {"use_mask": "false", "return_masks": "true"}, "return_masks", "use_mask=true"),
    "a mask's setting without masks": (ONE, {"use_mask": "false", "mask_every": "3"}, "mask_every", "use_mask=true"),
    "a file that is no picture": ([("image", ("a.png", b"hello"))], {}, "image", "picture"),
    "half a picture": ([("image", ("a.png", CAT[:2000]))], {}, "image", "picture"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_painted_is_refused_by_name(client: TestClient, case: str) -> None:
    files, fields, param, words = REFUSED[case]
    response = edit(client, files, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param), error
    assert words in error["message"]
    assert error["message"].endswith(".")


REFUSED_JSON: dict[str, tuple[dict[str, Any], str | None]] = {
    "a number as text": ({"n": "2"}, "n"),
    "a switch as a number": ({"stream": 1}, "stream"),
    "a prompt of numbers": ({"prompt": 7}, "prompt"),
    "a style": ({"style": "vivid"}, "style"),
    "less moderation": ({"moderation": "low"}, "moderation"),
    "subjects": ({"subjects": "[]"}, "subjects"),
    "a subject's setting": ({"visual_scale": 1.0}, "visual_scale"),
    "half a surrogate pair": ({"prompt": "a \ud800 cat"}, "prompt"),
    "a NUL": ({"prompt": "a \0 cat"}, "prompt"),
}


@pytest.mark.parametrize("case", REFUSED_JSON)
def test_json_is_refused_by_name(client: TestClient, case: str) -> None:
    fields, param = REFUSED_JSON[case]
    response = generate(client, **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_another_model_is_not_found(client: TestClient) -> None:
    response = edit(client, model="gpt-image-2")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


def test_large_pictures_are_refused(client: TestClient) -> None:
    for response in (
        edit(client, [("image", ("a.png", noise_picture(side=200)))]),
        edit(client, [*ONE, MASK] + 40 * ONE),
    ):
        assert response.status_code in (400, 413)
    large = encoded(Image.new("L", (9000, 9000)))
    assert len(large) < 100_000
    assert "pixels" in edit(client, [("image", ("a.png", large))]).json()["error"]["message"]
