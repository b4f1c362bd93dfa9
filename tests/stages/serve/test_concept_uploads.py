"""`POST /v1/concepts` and `DELETE /v1/models/{id}`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from model.concepts.folder import write_concept
from model.concepts.lora_files import write_kohya_lora
from model.concepts.model_parts import ModelParts
from model.concepts.other_files import write_a1111
from model.painting.painter import RequestPainter
from stages.serve.api_keys import parse_api_keys
from stages.serve.config import ServeConfig
from stages.serve.served_model import ServedConcept
from stages.serve.version_files import VersionFiles
from tests.support.concept_uploads import (
    DIFFUSERS,
    GOOD,
    JSON,
    WEIGHTS,
    WIDTH,
    Files,
    client_of,
    files_of,
    generate,
    models,
    picture,
    refused,
    upload,
)
from tests.support.concepts import METHODS, custom_diffusion, dreambooth, textual_inversion
from tests.support.local_painters import NAME, tiny_painter


@pytest.fixture(scope="module")
def folders(painter: RequestPainter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A concept of each method."""
    folder = tmp_path_factory.mktemp("concepts")
    for name, make in METHODS.items():
        write_concept(folder / name, make(painter.pipeline))
    return folder


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
    tom = ServedConcept(
        name="tom", files=VersionFiles(source=str(folders / "xti")), placeholder="[v]", word="cat", method="xti"
    )
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
