"""`POST /v1/concepts` and `DELETE /v1/models/{id}`."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from starlette.testclient import TestClient

from model.concepts.folder import write_concept
from model.concepts.lora_files import write_kohya_lora
from model.concepts.model_parts import ModelParts
from model.concepts.other_files import write_a1111
from model.painting.painter import RequestPainter
from stages.serve.api_keys import parse_api_keys
from stages.serve.config import ServeConfig
from stages.serve.served_model import ServedConcept
from stages.serve.uploaded_concepts import is_concept_name
from stages.serve.web.application import make_application
from tests.support.concepts import METHODS, custom_diffusion, dreambooth, textual_inversion
from tests.support.local_painters import NAME, SETTINGS, LocalPainters, tiny_painter

Files = list[tuple[str, bytes]]
WIDTH = 16  # of the text encoder's embeddings
DIFFUSERS = "learned_embeds.safetensors"


@pytest.fixture(scope="module")
def painter(sd_folder: Path) -> RequestPainter:
    return tiny_painter(sd_folder)


@pytest.fixture(scope="module")
def folders(painter: RequestPainter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A concept of each method."""
    folder = tmp_path_factory.mktemp("concepts")
    for name, make in METHODS.items():
        write_concept(folder / name, make(painter.pipeline))
    return folder


@pytest.fixture
def uploads(painter: RequestPainter, tmp_path: Path) -> Path:
    for name in painter.concepts.names:
        painter.concepts.withdraw(name)
    return tmp_path / "run" / "served_concepts"


def client_of(
    painter: RequestPainter,
    uploads: Path | None,
    settings: ServeConfig = SETTINGS,
    concepts: tuple[ServedConcept, ...] = (),
    **options: Any,
) -> TestClient:
    painters = LocalPainters(painter, settings, concepts, uploads)
    application = make_application(painters, NAME, settings, uploads=uploads, **options)
    return TestClient(application, base_url="http://localhost", raise_server_exceptions=False)


def files_of(folder: Path) -> Files:
    return [(file.name, file.read_bytes()) for file in sorted(folder.iterdir())]


def upload(client: TestClient, files: Files, name: str | None = "my-mug", field: str = "file", **fields: str) -> Any:
    named = {} if name is None else {"name": name}
    return client.post("/v1/concepts", data={**named, **fields}, files=[(field, file) for file in files])


def generate(client: TestClient, model: str, prompt: str = "a [v] cat") -> Any:
    return client.post("/v1/images/generations", json={"prompt": prompt, "model": model, "seed": 1})


def picture(answer: Any) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["data"][0]["b64_json"])


def models(client: TestClient) -> list[str]:
    return [model["id"] for model in client.get("/v1/models").json()["data"]]


def refused(answer: Any, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error["message"].endswith(".")
    assert "Traceback" not in error["message"]
    return error


def test_an_uploaded_concept_is_a_model_until_it_is_deleted(
    painter: RequestPainter, sd_folder: Path, folders: Path, uploads: Path
) -> None:
    client, model = client_of(painter, uploads), f"{NAME}:my-mug"
    entry = upload(client, files_of(folders / "textual_inversion"), field="file[]")
    assert (entry.status_code, entry.json()) == (200, client.get(f"/v1/models/{model}").json())
    assert (entry.json()["id"], entry.json()["placeholder"], entry.json()["word"]) == (model, "[v]", "cat")
    first = picture(generate(client, model))
    assert first != picture(generate(client, NAME))

    again = client_of(tiny_painter(sd_folder), uploads)  # after a restart
    assert models(again) == [NAME, model]
    assert picture(generate(again, model)) == first
    assert picture(
        again.post("/v1/images/generations", json={"prompt": "a [v] cat", "concepts": ["my-mug"], "seed": 1})
    )

    answer = client.delete(f"/v1/models/{model}")
    assert (answer.status_code, answer.json()) == (200, {"id": model, "object": "model", "deleted": True})
    for one in (client, again):  # the other painter notices
        assert refused(generate(one, model), 404)["code"] == "model_not_found"
        assert refused(one.post("/v1/images/generations", json={"prompt": "a [v] cat", "concepts": ["my-mug"]}))
        assert refused(one.delete(f"/v1/models/{model}"), 404)["param"] == "model"
        assert models(one) == [NAME]
    assert list(uploads.iterdir()) == []


def test_another_concept_of_the_same_name_is_another_one(painter: RequestPainter, folders: Path, uploads: Path) -> None:
    client, model = client_of(painter, uploads), f"{NAME}:my-mug"
    found = []
    for method in ("textual_inversion", "several_vectors"):
        upload(client, files_of(folders / method))
        found.append(picture(generate(client, model)))
        assert refused(upload(client, files_of(folders / method), "My-Mug"))["code"] == "name_taken"
        client.delete(f"/v1/models/{model}")
    assert len(set(found)) == 2


@pytest.mark.parametrize("method", METHODS)
def test_concepts_of_all_methods(painter: RequestPainter, folders: Path, uploads: Path, method: str) -> None:
    client = client_of(painter, uploads)
    entry = upload(client, files_of(folders / method), name="a.b_c-1")
    assert entry.status_code == 200, entry.text
    assert models(client) == [NAME, f"{NAME}:a.b_c-1"]
    assert files_of(uploads / "a.b_c-1") == files_of(folders / method)


def kohya_lora(painter: RequestPainter, folder: Path) -> Files:
    write_kohya_lora(folder / "my lora.safetensors", dreambooth(painter.pipeline).lora, ModelParts.of(painter.pipeline))
    return files_of(folder)


def two_files(painter: RequestPainter, folder: Path) -> Files:
    write_concept(folder / "concept", custom_diffusion(painter.pipeline))
    return [file for file in files_of(folder / "concept") if file[0] != "concept.json"]


def a1111(painter: RequestPainter, folder: Path) -> Files:
    write_a1111(folder / "mug.safetensors", textual_inversion(painter.pipeline).tokens[0])
    return files_of(folder)


def old_folder(painter: RequestPainter, folder: Path) -> Files:
    description = {"placeholder": "<mug>", "word": "mug", "subject": "a"}
    (folder / "concept.json").write_text(json.dumps(description))
    save_file({"<mug>": torch.ones(1, WIDTH)}, folder / DIFFUSERS)
    return files_of(folder)


OTHER_FILES: dict[str, tuple[Callable[[RequestPainter, Path], Files], str]] = {
    "diffusers": (lambda *_: [(DIFFUSERS, save({"<mug>": torch.ones(WIDTH)}))], "textual_inversion"),
    "half": (lambda *_: [("a.safetensors", save({"emb_params": torch.ones(2, WIDTH).half()}))], "textual_inversion"),
    "A1111": (a1111, "textual_inversion"),
    "a name of another script": (
        lambda *_: [("Müg 杯.SafeTensors", save({"x": torch.ones(WIDTH)}))],
        "textual_inversion",
    ),
    "kohya's LoRA": (kohya_lora, "dreambooth"),
    "Custom Diffusion in two files": (two_files, "custom_diffusion"),
}


@pytest.mark.parametrize("case", OTHER_FILES)
def test_files_of_other_tools(painter: RequestPainter, uploads: Path, tmp_path: Path, case: str) -> None:
    make, method = OTHER_FILES[case]
    (tmp_path / "files").mkdir()
    client = client_of(painter, uploads)
    entry = upload(client, make(painter, tmp_path / "files"), placeholder="<mug>", word="coffee mug").json()
    assert (entry["placeholder"], entry["word"], entry["method"]) == ("<mug>", "coffee mug", method)
    assert models(client) == [NAME, f"{NAME}:my-mug"]
    assert [path.name for path in uploads.iterdir()] == ["my-mug"]


def test_a_folder_of_an_earlier_version(painter: RequestPainter, uploads: Path, tmp_path: Path) -> None:
    entry = upload(client_of(painter, uploads), old_folder(painter, tmp_path)).json()
    assert (entry["placeholder"], entry["word"], entry["method"]) == ("<mug>", "mug", "textual_inversion")


def safetensors(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def described(changes: Mapping[str, Any]) -> bytes:
    return json.dumps({**DESCRIPTION, **changes}).encode()


TOKEN = {"placeholder": "[v]", "word": "cat", "subject": "tom", "embeddings": DIFFUSERS, "layer_embeddings": None}
DESCRIPTION = {"format": 1, "method": "xti", "backbone": "", "tokens": [TOKEN], "files": [DIFFUSERS]}
GOOD = save({"[v]": torch.ones(1, WIDTH)})
JSON = ("concept.json", described({}))
WEIGHTS = (DIFFUSERS, GOOD)
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


def test_bodies_without_files(painter: RequestPainter, uploads: Path) -> None:
    client = client_of(painter, uploads)
    assert refused(client.post("/v1/concepts", data={"name": "a", "file": "text"}, files={"x": b""}))["param"] == "x"
    parts = {"name": (None, "a"), "file": (None, "concept.json")}
    assert "must be a file" in refused(client.post("/v1/concepts", files=parts))["message"]
    assert refused(client.post("/v1/concepts", files={"name": (None, "a")}))["code"] == "missing_required_parameter"
    twice: list[Any] = [("name", (None, "a")), ("name", (None, "b")), ("file", JSON)]
    assert refused(client.post("/v1/concepts", files=twice))["param"] == "name"
    refused(client.post("/v1/concepts", json={"name": "a"}), 415)
    broken = {"content-type": "multipart/form-data"}
    refused(client.post("/v1/concepts", content=b"x", headers=broken), 422)


def test_limits(painter: RequestPainter, uploads: Path) -> None:
    client = client_of(painter, uploads, ServeConfig(max_concepts=1, max_concept_bytes=len(GOOD) + len(JSON[1])))
    assert upload(client, [JSON, WEIGHTS]).status_code == 200
    assert refused(upload(client, [JSON, WEIGHTS], "b"))["code"] == "too_many_concepts"
    client.delete(f"/v1/models/{NAME}:my-mug")
    larger = [JSON, (DIFFUSERS, save({"[v]": torch.ones(2, WIDTH)}))]
    assert "at most" in refused(upload(client, larger), 413)["message"]
    much = [JSON, (DIFFUSERS, bytes(200_000))]  # refused while it arrives
    assert "at most" in refused(upload(client, much), 413)["message"]


def test_uploading_is_off(painter: RequestPainter, uploads: Path) -> None:
    upload(client_of(painter, uploads), [JSON, WEIGHTS])
    off, without_folder = client_of(painter, uploads, ServeConfig(max_concepts=0)), client_of(painter, None)
    for client in (off, without_folder):
        assert refused(upload(client, [JSON, WEIGHTS], "b"), 403)["code"] == "uploads_off"
        assert refused(client.delete(f"/v1/models/{NAME}:my-mug"), 403)["code"] == "uploads_off"
    assert models(off) == [NAME, f"{NAME}:my-mug"]


def test_who_may_upload(painter: RequestPainter, uploads: Path) -> None:
    client, model = client_of(painter, uploads), f"{NAME}:my-mug"
    client.headers["origin"] = "http://other.example"
    assert refused(upload(client, [JSON, WEIGHTS]), 403)["code"] == "cross_site"
    assert refused(client.delete(f"/v1/models/{model}"), 403)["code"] == "cross_site"
    key = "k" * 40
    with_keys = client_of(painter, uploads, keys=parse_api_keys(key))
    refused(upload(with_keys, [JSON, WEIGHTS]), 401)
    refused(with_keys.delete(f"/v1/models/{model}"), 401)
    with_keys.headers["authorization"] = f"Bearer {key}"
    assert upload(with_keys, [JSON, WEIGHTS]).status_code == 200
    assert with_keys.delete(f"/v1/models/{model}").status_code == 200


def test_concepts_of_the_registry_stay_as_they_are(painter: RequestPainter, folders: Path, uploads: Path) -> None:
    painter.concepts.offer("tom", folders / "xti")
    tom = ServedConcept(name="tom", folder=str(folders / "xti"), placeholder="[v]", word="cat", method="xti")
    client = client_of(painter, uploads, concepts=(tom,))
    before = picture(generate(client, f"{NAME}:tom"))
    assert refused(upload(client, [JSON, WEIGHTS], "Tom"))["param"] == "name"
    for model in (NAME, f"{NAME}:tom"):
        assert refused(client.delete(f"/v1/models/{model}"), 403)["code"] == "not_uploaded"
    assert refused(client.delete("/v1/models/tom"), 404)["code"] == "model_not_found"
    shutil.copytree(folders / "textual_inversion", uploads / "tom")  # of before it was registered
    assert (models(client), picture(generate(client, f"{NAME}:tom"))) == ([NAME, f"{NAME}:tom"], before)


def test_what_was_damaged_meanwhile_is_not_served(
    painter: RequestPainter, sd_folder: Path, folders: Path, uploads: Path
) -> None:
    for name in ("good", "bad"):
        upload(client_of(painter, uploads), files_of(folders / "textual_inversion"), name)
    weights = load_file(uploads / "bad" / DIFFUSERS)
    (uploads / "bad" / DIFFUSERS).write_bytes(save(weights)[:-1])
    again = client_of(tiny_painter(sd_folder), uploads)
    assert models(again) == [NAME, f"{NAME}:good"]
    assert again.delete(f"/v1/models/{NAME}:bad").status_code == 200


def test_the_schema_has_the_routes(painter: RequestPainter, uploads: Path) -> None:
    paths = client_of(painter, uploads).get("/openapi.json").json()["paths"]
    body = paths["/v1/concepts"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(body["properties"]) == {"name", "placeholder", "word", "file"}
    assert "200" in paths["/v1/models/{model_id}"]["delete"]["responses"]
