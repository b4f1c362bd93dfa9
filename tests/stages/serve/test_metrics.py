"""`GET /metrics`: requests, and what their painters do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from stages.serve.painting import Accepted, Event, Fields, Painted, PaintersBusyError, Preview, Refused, Served
from stages.serve.web.application import make_application
from stages.serve.web.metrics import MeasuredPainters, Metrics
from tests.support.local_painters import NAME, SETTINGS, TITLE, WithoutUploads

ACCEPTED = Accepted(size=(32, 32), text_tokens=1, reference_tokens=1, picture_tokens=1, title=TITLE)
PREVIEW = Preview(index=0, number=0, picture=b"", mask=None)
PAINTED = Painted(
    index=0,
    picture=b"",
    mask=None,
    timings={"guidance": 0.4, "generation": 0.6, "decode": 0.2, "total": 1.5},
    steps=10,
    batch_size=2.5,
    encodings_kept=1,
    encodings_made=2,
)


class ScriptedPainters(WithoutUploads):
    """Painters with given events."""

    served = Served(title=TITLE)

    def __init__(self, *events: Event, error: Exception | None = None) -> None:
        self.events = events
        self.error = error

    async def paint(self, fields: Fields, seconds: float) -> AsyncGenerator[Event, None]:
        for event in self.events:
            yield event
        if self.error is not None:
            raise self.error

    async def check_ready(self) -> Served:
        """They are."""
        return self.served


def values_of(text: str) -> dict[str, float]:
    """Samples by name and labels, without buckets."""
    return {
        " ".join((sample.name, *sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith(("_bucket", "_created"))
    }


def measured(painters: ScriptedPainters, **requests: Any) -> dict[str, float]:
    client = TestClient(
        make_application(painters, NAME, SETTINGS), base_url="http://localhost", raise_server_exceptions=False
    )
    for method, path in requests.values():
        client.request(method, path, json={"prompt": "a cat", "n": 2} if method == "POST" else None)
    return values_of(client.get("/metrics").text)


def test_requests_are_counted_by_route_and_status() -> None:
    found = measured(
        ScriptedPainters(ACCEPTED, PREVIEW, PAINTED, PAINTED),
        painted=("POST", "/v1/images/generations"),
        health=("GET", "/health"),
        model=("GET", f"/v1/models/{NAME}"),
        other_model=("GET", "/v1/models/secret-of-a-user"),
        nowhere=("GET", "/secret-of-a-user"),
        odd=("SECRET", "/health"),
    )
    requests = {name: value for name, value in found.items() if name.startswith("realword_requests_total")}
    assert requests == {
        "realword_requests_total /v1/images/generations 200": 1,
        "realword_requests_total /health 200": 1,
        "realword_requests_total /v1/models/{model_id:path} 200": 1,
        "realword_requests_total /v1/models/{model_id:path} 404": 1,
        "realword_requests_total other 404": 1,
        "realword_requests_total /health 405": 1,
    }
    assert found["realword_request_seconds_count /v1/images/generations"] == 1
    assert found["realword_requests_in_progress"] == 1  # the one that asks
    assert found["realword_pictures_total"] == found["realword_painting_seconds_count total"] == 2
    assert found["realword_painting_seconds_sum decode"] == pytest.approx(0.4)
    assert found["realword_step_seconds_sum"] == pytest.approx(0.2)
    assert found["realword_batch_size_sum"] == 5
    assert found["realword_subject_encodings_total hit"] == 2
    assert found["realword_subject_encodings_total miss"] == 4
    assert found["realword_accept_seconds_count"] == found["realword_first_picture_seconds_count"] == 1
    assert found["realword_requests_waiting"] == found["realword_requests_painting"] == 0


@pytest.mark.parametrize(
    ("painters", "status"),
    [
        (ScriptedPainters(Refused(field="prompt", message="No.")), 400),
        (ScriptedPainters(error=PaintersBusyError()), 429),
        (ScriptedPainters(ACCEPTED, error=RuntimeError()), 500),
    ],
)
def test_failures_leave_nothing_in_progress(painters: ScriptedPainters, status: int) -> None:
    found = measured(painters, failed=("POST", "/v1/images/generations"))
    assert found[f"realword_requests_total /v1/images/generations {status}"] == 1
    assert found["realword_requests_waiting"] == found["realword_requests_painting"] == 0
    assert found["realword_pictures_total"] == 0


def test_a_request_waits_until_it_is_taken_and_is_painted_until_its_reader_leaves() -> None:
    metrics = Metrics()

    def phases() -> tuple[float, float]:
        found = [metrics.registry.get_sample_value(f"realword_requests_{name}") for name in ("waiting", "painting")]
        return found[0] or 0, found[1] or 0

    async def seen() -> list[tuple[float, float]]:
        taken = asyncio.Event()

        class Slow(ScriptedPainters):
            async def paint(self, fields: Fields, seconds: float) -> AsyncGenerator[Event, None]:
                await taken.wait()
                yield ACCEPTED
                yield PREVIEW

        events = MeasuredPainters(Slow(), metrics).paint({}, 60)
        first = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        found = [phases()]
        taken.set()
        await first
        found.append(phases())
        await events.aclose()
        return [*found, phases()]

    assert asyncio.run(seen()) == [(1, 0), (0, 1), (0, 0)]
