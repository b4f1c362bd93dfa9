"""What is running when a server is stopped is finished, and nothing new is begun."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from fastapi import FastAPI

from stages.serve.web.draining import Draining, DrainingMiddleware
from stages.serve.web.errors import ErrorsMiddleware


def _application(released: asyncio.Event) -> FastAPI:
    application = FastAPI()

    @application.get("/health")
    async def health() -> str:
        return "alive"

    @application.get("/slow")
    async def slow() -> str:
        await released.wait()
        return "done"

    @application.get("/broken")
    async def broken() -> str:
        await released.wait()
        raise RuntimeError

    return application


@pytest.mark.parametrize("running", [[], ["/slow"], ["/broken"], ["/slow"] * 5 + ["/broken"] * 2, ["/health", "/slow"]])
def test_running_requests_are_finished_and_new_ones_refused(running: list[str]) -> None:
    async def stop() -> None:
        released = asyncio.Event()
        draining = Draining()
        application = ErrorsMiddleware(DrainingMiddleware(_application(released), draining))
        transport = httpx.ASGITransport(application, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            answers = [asyncio.create_task(client.get(path)) for path in running]
            await asyncio.sleep(0.01)
            drained = asyncio.create_task(draining.drain())
            await asyncio.sleep(0.01)
            assert drained.done() == (not {"/slow", "/broken"} & set(running))
            refused = await client.get("/slow")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
            assert "Retry-After" in refused.headers
            assert (await client.get("/health")).status_code == 200
            released.set()
            await asyncio.wait_for(drained, 5)
            assert [answer.done() for answer in answers] == [True] * len(answers)
            expected = [500 if path == "/broken" else 200 for path in running]
            assert [answer.result().status_code for answer in answers] == expected

    asyncio.run(stop())
