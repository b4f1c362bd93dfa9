"""Metrics for Prometheus, at `GET /metrics`. No label holds text of a request."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stages.serve.painting import Event, Fields, Painted, Painters, Preview, Refused, Served
from stages.serve.served_model import ServedConcept
from stages.serve.uploaded_concepts import OtherFiles

_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0)
_BATCH_SIZES = (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
_CLIENT_LEFT = 499  # as nginx counts requests whose client leaves before there is an answer
_OTHER = "other"  # addresses that are not there


class Metrics:
    """What is measured, of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("realword_requests", "Answered requests.", ["route", "status"], registry=self.registry)
        self.seconds = self._histogram("realword_request_seconds", "From a request to the end of its answer.", "route")
        self.in_progress = self._gauge("realword_requests_in_progress", "Requests that are being answered.")
        self.waiting = self._gauge("realword_requests_waiting", "Requests that no painter has taken yet.")
        self.painting = self._gauge("realword_requests_painting", "Requests that a painter has taken.")
        self.accept_seconds = self._histogram("realword_accept_seconds", "Until a painter takes or refuses a request.")
        self.first_picture_seconds = self._histogram(
            "realword_first_picture_seconds", "Until the first preview or picture of a request."
        )
        self.pictures = Counter("realword_pictures", "Painted pictures.", registry=self.registry)
        self.painting_seconds = self._histogram(
            "realword_painting_seconds", "Of the batch in which a picture was painted, by part.", "part"
        )
        self.step_seconds = self._histogram("realword_step_seconds", "Of a picture's denoising steps, the mean.")
        self.batch_size = Histogram(
            "realword_batch_size",
            "Pictures that took a picture's steps with it, the mean.",
            buckets=_BATCH_SIZES,
            registry=self.registry,
        )
        self.encodings = Counter(
            "realword_subject_encodings",
            "Subjects' pictures whose encoding was kept from before (hit), or made (miss).",
            ["cache"],
            registry=self.registry,
        )

    def _histogram(self, name: str, description: str, *labels: str) -> Histogram:
        return Histogram(name, description, labels, buckets=_BUCKETS, registry=self.registry)

    def _gauge(self, name: str, description: str) -> Gauge:
        return Gauge(name, description, registry=self.registry)

    def count_painted(self, painted: Painted) -> None:
        """Count a picture, with what its painter has measured."""
        self.pictures.inc()
        for part, seconds in painted.timings.items():
            self.painting_seconds.labels(part).observe(seconds)
        self.step_seconds.observe((painted.timings["guidance"] + painted.timings["generation"]) / painted.steps)
        self.batch_size.observe(painted.batch_size)
        self.encodings.labels("hit").inc(painted.encodings_kept)
        self.encodings.labels("miss").inc(painted.encodings_made)


class MeasuredPainters:
    """Painters whose events are measured."""

    def __init__(self, painters: Painters, metrics: Metrics) -> None:
        self._painters = painters
        self._metrics = metrics

    async def paint(self, fields: Fields, seconds: float) -> AsyncGenerator[Event, None]:
        """See `Painters.paint`."""
        metrics, asked = self._metrics, time.perf_counter()
        phase = metrics.waiting
        phase.inc()
        has_picture = False
        try:
            async with aclosing(self._painters.paint(fields, seconds)) as events:
                async for event in events:
                    if phase is metrics.waiting:
                        metrics.accept_seconds.observe(time.perf_counter() - asked)
                        phase.dec()
                        phase = metrics.painting
                        phase.inc()
                    if isinstance(event, Preview | Painted) and not has_picture:
                        metrics.first_picture_seconds.observe(time.perf_counter() - asked)
                        has_picture = True
                    if isinstance(event, Painted):
                        metrics.count_painted(event)
                    yield event
        finally:
            phase.dec()

    @property
    def served(self) -> Served:
        """See `Painters`."""
        return self._painters.served

    async def check_ready(self) -> Served:
        """See `Painters.check_ready`."""
        return await self._painters.check_ready()

    async def check_upload(self, folder: str, name: str, other: OtherFiles | None) -> ServedConcept | Refused:
        """See `Painters.check_upload`."""
        return await self._painters.check_upload(folder, name, other)


class MetricsMiddleware:
    """Measures requests from the first to the last byte."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, started = _CLIENT_LEFT, time.perf_counter()

        async def send_with_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._metrics.in_progress.inc()
        try:
            await self._app(scope, receive, send_with_status)
        finally:
            self._metrics.in_progress.dec()
            route = getattr(scope.get("route"), "path", _OTHER)
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started)


def metrics_routes(metrics: Metrics) -> APIRouter:
    """The route."""
    routes = APIRouter()

    @routes.get("/metrics", response_class=Response)
    async def get_metrics() -> Response:
        """Metrics in Prometheus' text format."""
        return Response(generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return routes
