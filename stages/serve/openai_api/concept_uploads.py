"""`POST /v1/concepts`: clients upload learned concepts and delete them again."""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import Request
from starlette.datastructures import FormData, UploadFile

from stages.serve.config import ServeConfig
from stages.serve.openai_api.concept_files import check_concept_files, stored_names
from stages.serve.openai_api.fields import ConceptFields, checked
from stages.serve.openai_api.models import Models
from stages.serve.painting import Painters, PaintingTimeoutError, Refused
from stages.serve.served_model import ServedConcept
from stages.serve.uploaded_concepts import ConceptFolder, OtherFiles
from stages.serve.web.bodies import arriving_within, multipart_form, read_text
from stages.serve.web.connection import while_connected
from stages.serve.web.errors import RequestError, painting_errors

_MAX_PARTS = 64
_FILE = re.compile(r"^file(\[\d{0,3}\])?$")
_EXAMPLE = "a `name` and the files of a concept as `file`"


class ConceptUploads:
    """The concepts that clients upload.

    Args:
        folder: Keeps them; None: clients cannot upload any.
        models: Of which they are some.
        painters: Say whether a concept fits the model.
        settings: Limits.
    """

    def __init__(self, folder: Path | None, models: Models, painters: Painters, settings: ServeConfig) -> None:
        self._folder = None if folder is None else ConceptFolder(folder)
        self._models = models
        self._painters = painters
        self._settings = settings

    async def add(self, request: Request) -> dict[str, Any]:
        """Store the concept of a form; its entry in `GET /v1/models`.

        Raises:
            RequestError: 400 it is no concept of this model, or its name is taken; 403 uploading is off; others as of
                `multipart_form` and `painting_errors`.
        """
        folder = self._writable()
        self._check_room(folder)
        with _storing(), folder.incomplete() as incomplete:
            async with arriving_within(self._settings.timeout_seconds):
                fields, other = await self._read(request, incomplete / "files")
            self._check_free(folder, fields.name)
            concept = await while_connected(request, self._check(str(incomplete / "files"), fields.name, other))
            self._check_room(folder)  # again: requests may have met
            self._check_free(folder, fields.name)
            folder.keep(concept.files.folder(), fields.name)
        return self._models.concept_entry(concept)

    async def delete(self, model: str) -> dict[str, Any]:
        """Delete an uploaded concept; requests that have been accepted are still painted.

        Raises:
            RequestError: 403 it was not uploaded, 404 there is no such model.
        """
        folder = self._writable()
        name = model.removeprefix(f"{self._models.name}:")
        if name == model or name not in folder.names():
            await self._models.entry(model)  # raises if there is none
            raise RequestError(403, "Only uploaded concepts can be deleted.", "model", "not_uploaded")
        with _storing():
            folder.delete(name)
        return {"id": model, "object": "model", "deleted": True}

    def _writable(self) -> ConceptFolder:
        if self._settings.max_concepts == 0:
            raise RequestError(403, "This server takes no concepts (serve.max_concepts=0).", code="uploads_off")
        if self._folder is None:
            raise RequestError(403, "This server takes no concepts: it has no run folder.", code="uploads_off")
        return self._folder

    def _check_room(self, folder: ConceptFolder) -> None:
        if len(folder.names()) >= self._settings.max_concepts:
            message = f"There are {self._settings.max_concepts} uploaded concepts already; delete one first."
            raise RequestError(400, message, None, "too_many_concepts")

    @staticmethod
    def _check_free(folder: ConceptFolder, name: str) -> None:
        if name.lower() in map(str.lower, folder.names()):
            message = f"There is an uploaded concept {name!r} already; delete it first, or choose another name."
            raise RequestError(400, message, "name", "name_taken")

    async def _read(self, request: Request, folder: Path) -> tuple[ConceptFields, OtherFiles | None]:
        """Write the files of a form into a folder, and check what can be known without the model."""
        limit = self._settings.max_concept_bytes
        async with multipart_form(request, limit, _MAX_PARTS, _EXAMPLE, "concept's files") as form:
            names = list(dict.fromkeys(name for name, _ in form.multi_items()))
            texts = {name: await _text(form, name) for name in names if not _FILE.match(name)}
            fields = checked(ConceptFields, texts, strict=False)
            files = _files(form)
            if sum(file.size or 0 for file in files.values()) > limit:
                message = f"The concept's files are too large; at most {limit} bytes are accepted."
                raise RequestError(413, message, "file")
            await asyncio.to_thread(_write, files, folder)
        return fields, await asyncio.to_thread(check_concept_files, folder, list(files), fields)

    async def _check(self, folder: str, name: str, other: OtherFiles | None) -> ServedConcept:
        seconds = self._settings.timeout_seconds
        with painting_errors(seconds):
            try:
                async with asyncio.timeout(seconds):
                    checked = await self._painters.check_upload(folder, name, other)
            except TimeoutError as error:
                raise PaintingTimeoutError from error
        if isinstance(checked, Refused):
            raise RequestError(400, checked.message, checked.field, "invalid_value")
        return checked


async def _text(form: FormData, name: str) -> str | None:
    values = form.getlist(name)
    if len(values) > 1:
        raise RequestError(400, f"The field {name[:80]!r} is there {len(values)} times.", name[:80])
    if isinstance(values[0], UploadFile) and name not in ConceptFields.model_fields:
        raise RequestError(
            400, f"The field {name[:80]!r} is not supported; files are `file`.", name[:80], "unknown_parameter"
        )
    return await read_text(values[0], name, 400) or None


def _files(form: FormData) -> dict[str, UploadFile]:
    """The files of a form by the names under which they are stored."""
    files = [part for name, part in form.multi_items() if _FILE.match(name)]
    if not files:
        raise RequestError(400, "The field 'file' is missing.", "file", "missing_required_parameter")
    uploaded = [file for file in files if isinstance(file, UploadFile)]
    if len(uploaded) < len(files):
        raise RequestError(400, "The field 'file' must be a file (curl: -F file=@concept.json).", "file")
    return dict(zip(stored_names([file.filename or "" for file in uploaded]), uploaded, strict=True))


def _write(files: Mapping[str, UploadFile], folder: Path) -> None:
    folder.mkdir()
    for name, file in files.items():
        with (folder / name).open("xb") as stream:
            shutil.copyfileobj(file.file, stream)


@contextmanager
def _storing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        logging.getLogger(__name__).error("The folder of uploaded concepts cannot be changed: %s", error)
        raise RequestError(500, "The server cannot store or delete concepts; its log says why.") from error
