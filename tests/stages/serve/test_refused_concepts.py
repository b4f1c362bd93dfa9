"""Files and names of `POST /v1/concepts` that are no concept's."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from model.painting.painter import RequestPainter
from stages.serve.uploaded_concepts import is_concept_name
from tests.support.concept_uploads import (
    DIFFUSERS,
    GOOD,
    JSON,
    TOKEN,
    WEIGHTS,
    WIDTH,
    Files,
    client_of,
    described,
    models,
    refused,
    upload,
)
from tests.support.local_painters import NAME


def safetensors(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


OFFSETS = {"[v]": {"dtype": "F32", "shape": [1, WIDTH], "data_offsets": [0, 64]}}
WITH_WORD = {"placeholder": "[v]", "word": "cat"}

#: Files that are no concept: the files, what the message says, further fields, `param`.
BAD_FILES: dict[str, tuple[Files, str, dict[str, str]]] = {
    "cut off": ([JSON, (DIFFUSERS, GOOD[:-8])], "bytes: its download was cut off", {}),
    "cut off in the header": ([JSON, (DIFFUSERS, GOOD[:20])], "was cut off in its header", {}),
    "longer than its header": ([JSON, (DIFFUSERS, GOOD + b"\0" * 8)], "is damaged", {}),
    "empty": ([JSON, (DIFFUSERS, b"")], "is empty", {}),
    "a pointer of Git LFS": ([JSON, (DIFFUSERS, b"version https://git-lfs.github.com/spec/v1\n")], "git lfs pull", {}),
    "a pickle by another name": ([(DIFFUSERS, b"PK\x03\x04" + b"\0" * 99)], "is not a safetensors file", WITH_WORD),
    "a web page": ([(DIFFUSERS, b"<!doctype html><title>404</title>")], "is not a safetensors file", WITH_WORD),
    "offsets that are text": (
        [(DIFFUSERS, safetensors({"a": {**OFFSETS["[v]"], "data_offsets": [0, "x"]}}))],
        "is not a safetensors file",
        WITH_WORD,
    ),
    "offsets below zero": (
        [(DIFFUSERS, safetensors({"a": {**OFFSETS["[v]"], "data_offsets": [-8, 56]}}, b"\0" * 64))],
        "is damaged",
        WITH_WORD,
    ),
    "a shape that does not fit": (
        [(DIFFUSERS, safetensors({"a": {**OFFSETS["[v]"], "shape": [9]}}, b"\0" * 64))],
        "is damaged",
        WITH_WORD,
    ),
    "a type that is not known": (
        [(DIFFUSERS, safetensors({"a": {**OFFSETS["[v]"], "dtype": "X1"}}, b"\0" * 64))],
        "is damaged",
        WITH_WORD,
    ),
    "a header of brackets": ([(DIFFUSERS, safetensors(b"[" * 50_000))], "is not a safetensors file", WITH_WORD),
    "no tensor": ([(DIFFUSERS, safetensors({}))], "holds no tensor", WITH_WORD),
    "a pickle": ([("mug.pt", GOOD)], "no pickle", WITH_WORD),
    "a pickle of diffusers": ([("learned_embeds.bin", GOOD)], "no pickle", WITH_WORD),
    "a picture": ([JSON, WEIGHTS, ("samples.png", b"PNG")], "'samples.png' is not read", {}),
    "a path": ([("../x.safetensors", GOOD)], "must be a name without a path", WITH_WORD),
    "a folder": ([("a/x.safetensors", GOOD)], "must be a name without a path", WITH_WORD),
    "one file twice": ([JSON, WEIGHTS, WEIGHTS], f"Two files have the name '{DIFFUSERS}'", {}),
    "the same in upper case": ([("a.safetensors", GOOD), ("A.safetensors", GOOD)], "Two files", WITH_WORD),
    "a missing file": ([JSON], f"The file '{DIFFUSERS}' is missing", {}),
    "a file that is not named": ([JSON, WEIGHTS, ("unet.safetensors", GOOD)], "is not named in concept.json", {}),
    "concept.json names a path": (
        [("concept.json", described({"files": ["../../x.safetensors"]})), WEIGHTS],
        "which is no file of a concept",
        {},
    ),
    "concept.json names a pickle": (
        [("concept.json", described({"tokens": [{**TOKEN, "embeddings": "a.bin"}]})), WEIGHTS],
        "which is no file of a concept",
        {},
    ),
    "no JSON": ([("concept.json", b"{"), WEIGHTS], "concept.json is no valid JSON", {}),
    "deep JSON": ([("concept.json", b"[" * 90_000), WEIGHTS], "concept.json is no valid JSON", {}),
    "a long concept.json": ([("concept.json", b" " * 100_001), WEIGHTS], "more than 100000 bytes", {}),
    "a list": ([("concept.json", b"[]"), WEIGHTS], "must be a JSON object", {}),
    "UTF-16": ([("concept.json", "ä".encode("latin-1")), WEIGHTS], "no text in UTF-8", {}),
    "no tokens": ([("concept.json", described({"tokens": []})), WEIGHTS], "concept.json: tokens:", {}),
    "no word": (
        [("concept.json", described({"tokens": [{"placeholder": "[v]"}]})), WEIGHTS],
        "concept.json: tokens.0.word: field required",
        {},
    ),
    "a word that is a number": (
        [("concept.json", described({"tokens": [{**TOKEN, "word": 1}]})), WEIGHTS],
        "concept.json: tokens.0.word",
        {},
    ),
    "a hidden placeholder": (
        [("concept.json", described({"tokens": [{**TOKEN, "placeholder": "\u200b"}]})), WEIGHTS],
        "cannot be seen",
        {},
    ),
    "a later format": ([("concept.json", described({"format": 2})), WEIGHTS], "which a later version wrote", {}),
    "another placeholder in the file": (
        [JSON, (DIFFUSERS, save({"other": torch.ones(1, WIDTH)}))],
        "the concept is damaged: '[v]' is missing",
        {},
    ),
    "NaN": ([JSON, (DIFFUSERS, save({"[v]": torch.full((1, WIDTH), torch.nan)}))], "no finite numbers", {}),
    "infinite, of another tool": (
        [("a.safetensors", save({"emb_params": torch.full((1, WIDTH), torch.inf)}))],
        "no finite numbers",
        WITH_WORD,
    ),
    "another backbone": ([JSON, (DIFFUSERS, save({"[v]": torch.ones(1, 768)}))], "learned on another backbone", {}),
    "another backbone, of another tool": (
        [("a.safetensors", save({"emb_params": torch.ones(1, 768)}))],
        "learned on another backbone",
        WITH_WORD,
    ),
    "too many vectors": ([JSON, (DIFFUSERS, save({"[v]": torch.ones(76, WIDTH)}))], "has 76 vectors", {}),
    "integers": ([JSON, (DIFFUSERS, save({"[v]": torch.ones(1, WIDTH, dtype=torch.long)}))], "shape", {}),
    "numbers of 8 bits": (
        [JSON, (DIFFUSERS, save({"[v]": torch.ones(1, WIDTH).to(torch.float8_e4m3fn)}))],
        "cannot be read as a concept",
        {},
    ),
    "a VAE": (
        [("vae.safetensors", save({"encoder.conv_in.weight": torch.ones(1, 1, 3, 3)}))],
        "vae.safetensors is no concept",
        WITH_WORD,
    ),
    "metadata of brackets": (
        [("a.safetensors", save({"x.lora_A.weight": torch.ones(1, 1)}, {"lora_adapter_metadata": "[" * 50_000}))],
        "a.safetensors is damaged",
        WITH_WORD,
    ),
    "a LoRA of another model": (
        [("a.safetensors", save({"x.lora_A.weight": torch.ones(1, 1), "x.lora_B.weight": torch.ones(1, 1)}))],
        "a.safetensors",
        WITH_WORD,
    ),
    "a word beside concept.json": ([JSON, WEIGHTS], "is for files without a concept.json", {"word": "cat"}),
    "no placeholder": ([WEIGHTS], "'placeholder' is missing", {"word": "cat"}),
    "no class word": ([WEIGHTS], "'word' is missing", {"placeholder": "[v]"}),
    "a placeholder with a comma": ([WEIGHTS], "without spaces, commas", {"word": "cat", "placeholder": "a,b"}),
    "a placeholder that is a token": ([WEIGHTS], "is a token already", {"word": "cat", "placeholder": "a"}),
    "a word of two lines": ([WEIGHTS], "words on one line", {"word": "a\nb", "placeholder": "[v]"}),
    "an unknown field": ([JSON, WEIGHTS], "'method' is not supported", {"method": "xti"}),
}
PARAMS = {"no placeholder": "placeholder", "no class word": "word", "a word beside concept.json": "word"} | {
    "a placeholder with a comma": "placeholder",
    "a word of two lines": "word",
    "an unknown field": "method",
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_what_is_no_concept_is_refused(painter: RequestPainter, uploads: Path, case: str) -> None:
    files, message, fields = BAD_FILES[case]
    client = client_of(painter, uploads)
    error = refused(upload(client, files, **fields))
    assert message in error["message"]
    assert not re.search(r"/files|\.incomplete|converted", error["message"])
    assert str(uploads.parent) not in error["message"]
    assert error["param"] == PARAMS.get(case, "file")
    assert models(client) == [NAME]
    assert list(uploads.iterdir()) == []


BAD_NAMES = ("", " ", ".", "..", "...", "../x", "a/b", "a\\b", "/etc", "C:", "CON", "con", "nul.txt", "COM1", "lpt9.a",
    "müg", "杯", ".hidden", "ends.", "a b", "a\nb", "a\0b", "a:b", "%2e%2e",
    "a" * 65, "a\u200bb", "١٢", "*", "~", None)  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_are_refused(painter: RequestPainter, uploads: Path, name: str | None) -> None:
    assert refused(upload(client_of(painter, uploads), [JSON, WEIGHTS], name))["param"] == "name"
    assert not any(path.name != "served_concepts" for path in uploads.parent.iterdir())


@pytest.mark.parametrize("name", ["a", "A-1", "my_mug", "v1.5", "-", "_", "console", "com", "com10", "a" * 64, "1..2"])
def test_names_that_are_taken(name: str) -> None:
    assert is_concept_name(name)
