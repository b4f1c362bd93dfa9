"""The replica that holds the model and paints in batches.

This module imports nothing of `model`, as `stages.serve.served_model` explains.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import serve

from stages.serve.batch import ContinuousBatch, Job
from stages.serve.painting import Accepted, Busy, Event, Fields, Painted, PainterLimits, Refused, Served, TooLong
from stages.serve.served_model import ServedConcept, ServedModel
from stages.serve.uploaded_concepts import ConceptFolder, OtherFiles, UploadedConcepts, described_concept

_MARGIN = 1.2  # refuse requests that would only just be ready in time: steps become slower when much is asked


class ModelPainter:
    """Paints with one copy of the model, in a thread: the event loop goes on answering.

    Args:
        model: As `ServedModel.load` returns it.
        title: As `ServedModel.title`.
        limits: Of the batch, the queue and the cache.
        concepts: Registered beside the model, which offers those that fit it.
        uploads: The folder of uploaded concepts; None: there are none.
    """

    def __init__(
        self,
        model: Any,
        title: str,
        limits: PainterLimits,
        concepts: Sequence[ServedConcept] = (),
        uploads: Path | None = None,
    ) -> None:
        self.model = model
        self.title = title
        self.model.cache_encodings(limits.cached_bytes)
        if limits.safety_checker is not None:
            self.model.use_safety_checker(limits.safety_checker)
        self._batch = ContinuousBatch(model, limits.batch, limits.threads)
        self._max_waiting = limits.waiting
        self._registered = tuple(concept for concept in concepts if concept.name in model.concepts.names)
        self._reserved = {concept.name.lower() for concept in concepts}
        self._uploaded: UploadedConcepts | None = None
        if uploads is not None:
            self._uploaded = UploadedConcepts(ConceptFolder(uploads), model.concepts, self._reserved)
            self._uploaded.served()  # takes a while the first time

    async def paint(self, fields: Fields, seconds: float) -> AsyncGenerator[Event, None]:
        """As `Painters.paint`. An invalid request is refused here, before it enters the batch."""
        if self._uploaded is not None and fields.get("concepts"):
            await asyncio.to_thread(self._uploaded.refresh, fields["concepts"])
        try:
            prepared = await asyncio.to_thread(self.model.prepare, **fields)
        except ValueError as error:
            yield _refused(error)
            return
        events: asyncio.Queue[Event | Exception] = asyncio.Queue()
        jobs = [Job(index=index, request=request, events=events) for index, request in enumerate(prepared.pictures)]
        if refusal := self._refusal(jobs, seconds):
            yield refusal
            return
        self._batch.add(jobs)
        try:
            height, width = prepared.pictures[0].size
            yield Accepted(
                size=(width, height),
                text_tokens=prepared.text_tokens,
                reference_tokens=prepared.reference_tokens,
                picture_tokens=prepared.picture_tokens,
                words=prepared.words,
                title=self.title,
                warning=_warning(prepared.cut_off),
            )
            unfinished = len(jobs)
            while unfinished:
                event = await events.get()
                if isinstance(event, Exception):
                    if not hasattr(event, "code"):
                        raise event
                    yield _refused(event)  # by the safety checker
                    return
                yield event
                unfinished -= isinstance(event, Painted)
        finally:
            self._batch.remove(jobs)

    async def ready(self) -> Served:
        """What this painter paints."""
        uploaded = () if self._uploaded is None else await asyncio.to_thread(self._uploaded.served)
        return Served(title=self.title, concepts=(*self._registered, *uploaded))

    async def check_upload(self, folder: str, name: str, other: OtherFiles | None) -> ServedConcept | Refused:
        """See `Painters.check_upload`."""
        if name.lower() in self._reserved:
            return Refused(field="name", message=f"The registry has a concept {name!r} already; choose another name.")
        if self._uploaded is None:
            raise RuntimeError("The painter has no folder of uploaded concepts.")
        try:
            checked = await asyncio.to_thread(self._uploaded.check, Path(folder), name, other)
        except ValueError as error:
            return Refused(field="file", message=str(error))
        return described_concept(name, checked)

    def _refusal(self, jobs: list[Job], seconds: float) -> Busy | TooLong | None:
        """Why the pictures are not accepted: the queue is full, or they could not be ready in time."""
        if self._batch.seconds_alone(jobs) > seconds:
            return TooLong()
        is_full = self._batch.waiting + len(jobs) - self._batch.free > self._max_waiting
        is_late = not self._batch.is_idle and _MARGIN * self._batch.seconds_until_done(jobs) > seconds
        if is_full or is_late:
            return Busy(seconds=self._batch.seconds_until_idle())
        return None


def _refused(error: Exception) -> Refused:
    field, code = getattr(error, "field", ""), getattr(error, "code", "invalid_value")
    return Refused(field=field, message=str(error), code=code)


def _warning(cut_off: str) -> str:
    return f"The text encoder does not read the end of the prompt: {cut_off!r}." if cut_off else ""


@serve.deployment
class Painter:
    """Holds one copy of the model.

    Args:
        model: What to paint with.
        replicas: How many painters may share this machine's cores.
        limits: Of this painter.
        uploads: As of `ModelPainter`.
    """

    def __init__(self, model: ServedModel, replicas: int, limits: PainterLimits, uploads: Path | None) -> None:
        import torch

        # Of the thread that loads. OpenMP has threads for each one that computes, and slows all down once they are more
        # than the cores: a picture of the micro model took 1.5 s instead of 0.6 s.
        torch.set_num_threads(1)
        limits = replace(limits, threads=max(1, (os.cpu_count() or 1) // replicas))
        self._painter = ModelPainter(model.load(), model.title, limits, model.concepts, uploads)

    async def paint(self, fields: Fields, seconds: float) -> AsyncGenerator[Event, None]:
        """See `ModelPainter.paint`."""
        async for event in self._painter.paint(fields, seconds):
            yield event

    async def ready(self) -> Served:
        """What this painter paints, as soon as the model is loaded."""
        return await self._painter.ready()

    async def check_upload(self, folder: str, name: str, other: OtherFiles | None) -> ServedConcept | Refused:
        """See `Painters.check_upload`."""
        return await self._painter.check_upload(folder, name, other)
