"""The schema of OpenAI's routes, for `GET /openapi.json`: bodies from the fields that are checked, and examples."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from stages.serve.openai_api.fields import ConceptFields, EditFields, GenerationFields
from stages.serve.web.errors import error_schema

_STATUSES = {
    "400": "A field is missing, unknown or invalid; `param` names it.",
    "401": "The API key is missing or wrong.",
    "403": "The request comes from a page of another site, or asks for what this server does not allow.",
    "404": "There is no such model.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "The body has another type.",
    "421": "The server has another host name.",
    "422": "The form cannot be read.",
    "429": "Too many requests wait, or the API key has sent too many; `Retry-After` says when to ask again.",
    "500": "Painting failed.",
    "503": "No painter is ready.",
    "504": "Painting took too long.",
}
_IMAGES_EXAMPLE = {
    "created": 1764460800,
    "background": "opaque",
    "data": [{"b64_json": "iVBORw0KGgo...", "seed": 7, "timings": {"total": 1.2}}],
    "output_format": "png",
    "size": "64x64",
    "usage": {
        "input_tokens": 74,
        "input_tokens_details": {"text_tokens": 10, "image_tokens": 64},
        "output_tokens": 256,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": 256},
        "total_tokens": 330,
    },
    "model": "realword-micro",
    "seeds": [7],
    "words": ["mug"],
    "timings": {"total": 1.3},
}
_EVENT_EXAMPLE = (
    'event: image_edit.partial_image\ndata: {"type": "image_edit.partial_image", "partial_image_index": 0}\n\n'
)
_MODEL_EXAMPLE = {"id": "realword-micro", "object": "model", "created": 1764460800, "owned_by": "realword"}
_CONCEPT_EXAMPLE = {
    **_MODEL_EXAMPLE,
    "id": "realword-micro:my-mug",
    "concept": True,
    "placeholder": "[v]",
    "word": "mug",
    "method": "textual_inversion",
}
_DELETED_EXAMPLE = {"id": "realword-micro:my-mug", "object": "model", "deleted": True}
_FILE = {"type": "string", "format": "binary"}


def _route(media_type: str, body: dict[str, Any], example: dict[str, Any]) -> dict[str, Any]:
    content = {
        "application/json": {"schema": {"type": "object"}, "example": _IMAGES_EXAMPLE},
        "text/event-stream": {"schema": {}, "example": _EVENT_EXAMPLE},  # OpenAPI 3.1 has no words for events
    }
    return {
        "requestBody": {"required": True, "content": {media_type: {"schema": body, "example": example}}},
        "responses": {"200": {"description": "The pictures.", "content": content}, **_errors(*_STATUSES)},
    }


def _errors(*statuses: str) -> dict[str, Any]:
    return {status: error_schema(_STATUSES[status]) for status in statuses}


def _ok(example: dict[str, Any]) -> dict[str, Any]:
    return {
        "200": {"description": "", "content": {"application/json": {"schema": {"type": "object"}, "example": example}}}
    }


def _body(fields: type[BaseModel]) -> dict[str, Any]:
    return fields.model_json_schema()


def _edit_body() -> dict[str, Any]:
    body = _body(EditFields)
    body["properties"] = {name: _without_null(schema) for name, schema in body["properties"].items()}
    pictures = {"type": "array", "items": _FILE, "minItems": 1, "description": "One `image`, or several `image[]`."}
    mask = {
        **_FILE,
        "description": "Of the first picture: transparent where the subject may be in the painted picture.",
    }
    body["properties"] = {"image": pictures, "mask": mask, **body["properties"]}
    body["required"] = ["image", *body["required"]]
    return body


def _concept_body() -> dict[str, Any]:
    body = _body(ConceptFields)
    files = "The files of a concept's folder, or safetensors files of another tool with `placeholder` and `word`."
    body["properties"] = {name: _without_null(schema) for name, schema in body["properties"].items()}
    body["properties"]["file"] = {"type": "array", "items": _FILE, "minItems": 1, "description": files}
    body["required"] = ["name", "file"]
    return body


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A field of a form, which has no null: one that is not there is empty or left out."""
    kinds = schema.get("anyOf", [])
    if {"type": "null"} not in kinds:
        return schema
    (kind,) = (kind for kind in kinds if kind != {"type": "null"})
    return kind | {name: value for name, value in schema.items() if name not in ("anyOf", "default")}


GENERATION = _route("application/json", _body(GenerationFields), {"prompt": "a photo of a mug in the snow", "seed": 7})
EDIT = _route("multipart/form-data", _edit_body(), {"prompt": "a photo of a [mug] in the snow", "image": ["mug.png"]})
MODELS = {"responses": _ok({"object": "list", "data": [_MODEL_EXAMPLE]})}
CONCEPT = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": _concept_body(),
                "example": {"name": "my-mug", "file": ["concept.json", "learned_embeds.safetensors"]},
            }
        },
    },
    "responses": {**_ok(_CONCEPT_EXAMPLE), **_errors(*_STATUSES)},
}
DELETED = {"responses": {**_ok(_DELETED_EXAMPLE), **_errors("403", "404")}}
MODEL = {"responses": {**_ok(_MODEL_EXAMPLE), **_errors("404")}}
