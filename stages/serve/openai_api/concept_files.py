"""The files of an uploaded concept, checked as far as they show without a model what they are."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open

from model.checkpoint_files import safetensors_damage
from model.files import TextError, read_text
from stages.serve.openai_api.fields import ClassWord, ConceptFields, Placeholder
from stages.serve.uploaded_concepts import DESCRIPTION, OtherFiles
from stages.serve.web.errors import RequestError

_WEIGHTS = ".safetensors"
_MAX_DESCRIPTION_BYTES = 100_000
_MAX_HEADER_BYTES = 5_000_000  # ten times that of a whole SDXL
_MAX_TOKENS = 16
_FIRST_FILE = "learned_embeds.safetensors"
#: The names that `write_concept` gives to files.
_CONCEPT_FILE = re.compile(
    r"(learned_embeds|layer_embeds)(_\d{1,2})?\.safetensors|pytorch_(custom_diffusion|lora)_weights\.safetensors"
    r"|(unet|text_encoder|text_encoder_2)\.safetensors"
)
_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9 ._()-]{0,80}\.safetensors")
_HOW = "send safetensors files, or concept.json with its safetensors files"


class _Token(BaseModel):
    """An entry of `tokens` in concept.json."""

    model_config = ConfigDict(extra="forbid")

    placeholder: Placeholder
    word: ClassWord
    subject: str = Field(max_length=1000)
    embeddings: str | None = None
    layer_embeddings: str | None = None


class _Description(BaseModel):
    """concept.json."""

    model_config = ConfigDict(extra="forbid")

    format: int
    method: str = Field(min_length=1, max_length=100)
    backbone: str = Field(max_length=1000)
    tokens: list[_Token] = Field(min_length=1, max_length=_MAX_TOKENS)
    files: list[str] = Field(max_length=2 * _MAX_TOKENS + 8)


def stored_names(names: Sequence[str]) -> list[str]:
    """The names under which files are stored; files of other tools may have names that not every system allows.

    Raises:
        RequestError: 400; a name is that of a path or of a file that is no part of a concept, or two are alike.
    """
    for name in names:
        if not name or re.search(r"[/\\\x00-\x1f\x7f]", name):
            raise _refused(f"A file has the name {name[:80]!r}; it must be a name without a path.")
        if name != DESCRIPTION and not name.lower().endswith(_WEIGHTS):
            raise _refused(f"The file {name[:80]!r} is not read, also no pickle (.pt, .bin, .ckpt); {_HOW}.")
    alike = [name for number, name in enumerate(names) if name.casefold() in map(str.casefold, names[:number])]
    if alike:
        raise _refused(f"Two files have the name {alike[0][:80]!r}.")
    return [
        name if name == DESCRIPTION or _PLAIN.fullmatch(name) else f"file #{number}{_WEIGHTS}"
        for number, name in enumerate(names, 1)
    ]


def check_concept_files(folder: Path, names: Sequence[str], fields: ConceptFields) -> OtherFiles | None:
    """Check the files of a concept.

    Args:
        folder: With the files.
        names: Of the files, in the order in which they were sent.
        fields: Sent with them.

    Returns:
        What is said of files of another tool; None for those of a concept's folder.

    Raises:
        RequestError: 400; a file is damaged, missing or not named, or a field is missing.
    """
    for name in names:
        if name != DESCRIPTION:
            _check_safetensors(folder / name)
    if DESCRIPTION in names:
        _check_folder(folder, names, fields)
        return None
    if fields.placeholder is None or fields.word is None:
        missing = "placeholder" if fields.placeholder is None else "word"
        message = f"The field {missing!r} is missing: files without a concept.json do not say it."
        raise RequestError(400, message, missing, "missing_required_parameter")
    return OtherFiles(names=tuple(names), placeholder=fields.placeholder, word=fields.word)


def _check_safetensors(file: Path) -> None:
    if file.stat().st_size == 0:
        raise _refused(f"The file {file.name!r} is empty.")
    with file.open("rb") as stream:
        if _MAX_HEADER_BYTES < int.from_bytes(stream.read(8), "little") < file.stat().st_size:
            raise _refused(f"The file {file.name!r} has a header of more than {_MAX_HEADER_BYTES} bytes.")
    if damage := safetensors_damage(file):
        raise _refused(f"The file {file.name!r} {damage}.")
    try:
        with safe_open(file, "np") as opened:
            names = list(opened.keys())
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error).removeprefix("Error while deserializing header: ").rstrip(".")
        raise _refused(f"The file {file.name!r} is damaged: {reason}.") from error
    if not names:
        raise _refused(f"The file {file.name!r} holds no tensor.")


def _check_folder(folder: Path, names: Sequence[str], fields: ConceptFields) -> None:
    given = next((name for name in ("placeholder", "word") if getattr(fields, name) is not None), None)
    if given is not None:
        raise RequestError(400, f"The field {given!r} is for files without a concept.json.", given)
    named = _named_files(_read_description(folder / DESCRIPTION))
    for name in sorted(named):
        if not _CONCEPT_FILE.fullmatch(name):
            raise _refused(f"{DESCRIPTION} names {name[:80]!r}, which is no file of a concept.")
        if name not in names:
            raise _refused(f"The file {name!r} is missing, which {DESCRIPTION} names.")
    for name in names:
        if name != DESCRIPTION and name not in named:
            raise _refused(f"The file {name!r} is not named in {DESCRIPTION}.")


def _read_description(file: Path) -> dict[str, Any]:
    if file.stat().st_size > _MAX_DESCRIPTION_BYTES:
        raise _refused(f"{DESCRIPTION} has more than {_MAX_DESCRIPTION_BYTES} bytes.")
    try:
        description = json.loads(read_text(file))
    except TextError as error:
        raise _refused(f"{DESCRIPTION} is no text in UTF-8.") from error
    except (ValueError, RecursionError) as error:
        raise _refused(f"{DESCRIPTION} is no valid JSON.") from error
    if not isinstance(description, dict):
        raise _refused(f"{DESCRIPTION} must be a JSON object.")
    return description


def _named_files(description: dict[str, Any]) -> set[str]:
    try:
        if "placeholder" in description:  # as it was written before there was a format
            tokens, files = [_Token.model_validate({"embeddings": _FIRST_FILE, **description}, strict=True)], []
        else:
            found = _Description.model_validate(description, strict=True)
            tokens, files = found.tokens, found.files
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part)[:80] for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise _refused(f"{DESCRIPTION}: {where}: {reason[0].lower()}{reason[1:]}.") from error
    own = {file for token in tokens for file in (token.embeddings, token.layer_embeddings) if file is not None}
    return {*files, *own}


def _refused(message: str) -> RequestError:
    return RequestError(400, message, "file", "invalid_value")
