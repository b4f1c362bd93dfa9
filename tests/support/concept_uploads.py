"""Uploading concepts to a server in this process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from starlette.testclient import TestClient

from model.painting.painter import RequestPainter
from stages.serve.config import ServeConfig
from stages.serve.served_model import ServedConcept
from stages.serve.web.application import make_application
from tests.support.local_painters import NAME, SETTINGS, LocalPainters

Files = list[tuple[str, bytes]]
WIDTH = 16  # of the text encoder's embeddings
DIFFUSERS = "learned_embeds.safetensors"
TOKEN = {"placeholder": "[v]", "word": "cat", "subject": "tom", "embeddings": DIFFUSERS, "layer_embeddings": None}
DESCRIPTION = {"format": 1, "method": "xti", "backbone": "", "tokens": [TOKEN], "files": [DIFFUSERS]}


def described(changes: Mapping[str, Any]) -> bytes:
    """A concept.json."""
    return json.dumps({**DESCRIPTION, **changes}).encode()


GOOD = save({"[v]": torch.ones(1, WIDTH)})
JSON = ("concept.json", described({}))
WEIGHTS = (DIFFUSERS, GOOD)


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
