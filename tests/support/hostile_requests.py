"""Requests to the server that no well-behaved client sends: some by name, and any number drawn at random."""

from __future__ import annotations

import io
import json
import random
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from tests.support.file_parts import chunk, with_chunks
from tests.support.hostile_web import bodies
from tests.support.local_painters import encoded, half_mask, noise_picture

EDITS, GENERATIONS, GENERATE = "/v1/images/edits", "/v1/images/generations", "/generate"
_JSON = {"Content-Type": "application/json"}
_FORM = {"Content-Type": "multipart/form-data; boundary=x"}
_PROMPT = "a [cat] in a hat"


@dataclass(frozen=True)
class Asked:
    """A request.

    Attributes:
        path: With its query.
        method: Of HTTP.
        options: Of `requests.request` and Starlette's test client alike: data, files, headers.
    """

    path: str
    method: str = "POST"
    options: dict[str, Any] = field(default_factory=dict)


def hostile_pictures() -> dict[str, bytes]:
    """Those of `hostile_web`, and files that are more than one thing, or that unpack to more than they are."""
    picture = noise_picture()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("a.html", "<script>alert(1)</script>")
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")] * 500
    moving = io.BytesIO()
    frames[0].save(moving, "PNG", save_all=True, append_images=frames[1:])
    bomb = zlib.compress(b"a" * 50_000_000)
    return {
        **{name: body for name, (_, body) in bodies().items()},
        "picture and archive": picture + archive.getvalue(),
        "picture and script": encoded(Image.new("L", (8, 8)), "GIF") + b"*/=1;alert(1)//",
        "a thousand frames": moving.getvalue(),
        "a text that unpacks to 50 MB": with_chunks(picture, [chunk(b"zTXt", b"Comment\0\0" + bomb)]),
        "a profile that unpacks to 50 MB": with_chunks(picture, [chunk(b"iCCP", b"p\0\0" + bomb)]),
        "no pixels": picture[:16] + b"\0" * 8 + picture[24:],
        "4 billion pixels a side": picture[:16] + b"\xff" * 8 + picture[24:],
        "one row": encoded(Image.new("L", (20_000, 1))),
        "80 million pixels": encoded(Image.new("1", (9000, 9000))),
    }


def _edit(picture: bytes | None = None, **fields: str) -> Asked:
    files = {"image": ("a.png", noise_picture() if picture is None else picture)}
    return Asked(EDITS, options={"files": files, "data": {"prompt": _PROMPT, **fields}})


def _generation(content: bytes, **headers: str) -> Asked:
    return Asked(GENERATIONS, options={"data": content, "headers": {**_JSON, **headers}})


def _raw_form(content: bytes, path: str = EDITS, content_type: str = _FORM["Content-Type"]) -> Asked:
    return Asked(path, options={"data": content, "headers": {"Content-Type": content_type}})


def hostile_requests() -> dict[str, Asked]:
    """Requests that must be refused, by what is wrong with them."""
    part = b'--x\r\nContent-Disposition: form-data; name="'
    pictures = hostile_pictures()
    refused = [
        *("cut_png", "noise_after_a_signature", "bomb_png", "bomb_gif", "bomb_webp", "svg", "pickle", "no pixels"),
        *("4 billion pixels a side", "80 million pixels"),
    ]
    return {
        **{f"a picture: {name}": _edit(pictures[name]) for name in refused},
        "a mask that is a bomb": _edit(subjects=json.dumps({"word": "cat", "mask": "A" * 50_000})),
        "a picture by URL": Asked(EDITS, options={"data": {"prompt": _PROMPT, "image": "http://169.254.169.254/"}}),
        "pictures by URL": Asked(
            EDITS,
            options={"data": b'{"prompt": "a", "images": [{"image_url": "file:///etc/passwd"}]}', "headers": _JSON},
        ),
        "a picture by id": _edit(None, **{"images[0][file_id]": "file-abc"}),
        "a picture by URL in a subject": _edit(subjects='[{"word": "cat", "image_url": "http://localhost/"}]'),
        "deep JSON": _generation(b'{"prompt":' * 10_000),
        "deep lists": _generation(b"[" * 60_000),
        "a long number": _generation(b'{"prompt": "a", "seed": ' + b"9" * 50_000 + b"}"),
        "infinity": _generation(b'{"prompt": "a", "guidance_scale": Infinity}'),
        "a large exponent": _generation(b'{"prompt": "a", "n": 1e999}'),
        "half a character": _generation(b'{"prompt": "\\ud800"}'),
        "no UTF-8": _generation(b'{"prompt": "\xff\xfe"}'),
        "NUL": _generation(b'{"prompt": "a\\u0000b"}'),
        "UTF-16": _generation('{"prompt": "a", "n": 99}'.encode("utf-16")),
        "the same key twice": _generation(b'{"prompt": "a", "n": 1, "n": 99}'),
        "Python's attributes": _generation(b'{"prompt": "a", "__class__": {"__init__": 1}}'),
        "a charset of nobody": _generation(b'{"prompt": 1}', **{"Content-Type": "application/json; charset=klingon"}),
        "a form without an end": _raw_form(part + b'prompt"\r\n\r\na'),
        "a form without a name": _raw_form(b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--\r\n"),
        "a form of nothing": _raw_form(b"--x--\r\n"),
        "a part without a header": _raw_form(b"--x\r\n\r\na\r\n--x--\r\n"),
        "a boundary of nothing": _raw_form(b"--\r\n", content_type="multipart/form-data; boundary="),
        "a long boundary": _raw_form(b"--x\r\n", content_type="multipart/form-data; boundary=" + "x" * 5000),
        "a thousand parts": _raw_form((part + b'n"\r\n\r\n1\r\n') * 1000 + b"--x--\r\n"),
        "a path as a file's name": _raw_form(
            part + b'image"; filename="../../etc/passwd"\r\n\r\nroot\r\n' + part + b'prompt"\r\n\r\na\r\n--x--\r\n'
        ),
        "a name that is no UTF-8": _raw_form(part + b'\xff\xfe"\r\n\r\na\r\n--x--\r\n'),
        "a charset that the form chooses": _raw_form(
            part + b'_charset_"\r\n\r\nklingon\r\n' + part + b'prompt"\r\n\r\na\r\n--x--\r\n', GENERATE
        ),
        "a query that is no switch": Asked(f"{GENERATE}?mask=%00"),
        "a path upwards": Asked("/v1/models/..%2f..%2fetc%2fpasswd", "GET"),
        "a path with NUL": Asked("/v1/models/%00", "GET"),
        "a path that is no UTF-8": Asked("/v1/models/%ff%fe", "GET"),
        "a long path": Asked("/v1/models/" + "a" * 5000, "GET"),
        "a method of nobody": Asked("/generate", "BREW"),
    }


_VALUES: list[Any] = [
    *("", " ", "0", "-1", "1e999", "nan", "true", "null", "\0", "\u202e", "a" * 3000, "😀" * 700, "[cat]", "[]", "{}"),
    *("[" * 999, "../../etc/passwd", "http://169.254.169.254/", "${jndi:ldap://x}", "{{7*7}}", "' OR 1=1 --", "%s%n"),
    *(None, True, 0, -1, 1.5, 2**63, 10**400, 1e308, [], {}, [[[]]], {"a": {"b": []}}, ["cat"] * 50),
]
_NAMES = [
    *(
        "prompt",
        "n",
        "size",
        "seed",
        "steps",
        "stream",
        "partial_images",
        "output_format",
        "output_compression",
        "model",
    ),
    *("user", "subjects", "image", "image[]", "image[99999]", "mask", "mask_every", "mask_scope", "use_mask", "word"),
    *("visual_scale", "visual_guidance_start", "negative_prompt", "guidance_scale", "subject", "__proto__", "", "\0"),
]


def random_requests(seed: int, count: int) -> Iterator[Asked]:
    """Broken pictures in good forms, odd values in odd fields, and forms and JSON with bytes changed or cut off."""
    draw, pictures = random.Random(seed), list(hostile_pictures().values())
    kinds = (_random_picture, _random_fields, _random_json, _random_bytes)
    for number in range(count):
        yield kinds[number % len(kinds)](draw, pictures)


def _random_picture(draw: random.Random, pictures: list[bytes]) -> Asked:
    picture = _damaged(draw, draw.choice(pictures)) if draw.random() < 0.7 else draw.choice(pictures)
    role = draw.choice(("image", "mask", "subject"))
    if role == "subject":
        files = {"subject": ("a", picture)}
        return Asked(GENERATE, options={"data": {"prompt": "a cat", "word": "cat", "steps": "1"}, "files": files})
    files = {"image": ("a", noise_picture()), "mask": ("m", half_mask()), role: ("a", picture)}
    return Asked(EDITS, options={"data": {"prompt": _PROMPT, "steps": "1"}, "files": files})


def _random_fields(draw: random.Random, pictures: list[bytes]) -> Asked:
    fields = {"prompt": _PROMPT, "word": "cat"} if draw.random() < 0.5 else {"prompt": _PROMPT}
    fields |= {draw.choice(_NAMES): _text(draw.choice(_VALUES)) for _ in range(draw.randint(1, 4))}
    name = draw.choice(("image", "image[]", "subject", "mask"))
    files = [(name, ("a", noise_picture()))] * draw.randint(1, 3)
    return Asked(draw.choice((EDITS, GENERATE)), options={"data": fields, "files": files})


def _random_json(draw: random.Random, pictures: list[bytes]) -> Asked:
    fields = {"prompt": _PROMPT} | {draw.choice(_NAMES): draw.choice(_VALUES) for _ in range(draw.randint(1, 4))}
    content = json.dumps(fields).encode()
    return _generation(_damaged(draw, content) if draw.random() < 0.3 else content)


def _random_bytes(draw: random.Random, pictures: list[bytes]) -> Asked:
    part = '--x\r\nContent-Disposition: form-data; name="{}"{}\r\n\r\n'
    content = part.format("prompt", "").encode() + _PROMPT.encode() + b"\r\n"
    content += part.format("image", '; filename="a"').encode() + noise_picture() + b"\r\n--x--\r\n"
    return _raw_form(_damaged(draw, content), draw.choice((EDITS, GENERATE)))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _damaged(draw: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((0, 1, 3, 30))):
        if changed:
            changed[draw.randrange(len(changed))] = draw.randrange(256)
    if draw.random() < 0.3:
        del changed[draw.randrange(len(changed) + 1) :]
    return bytes(changed)
