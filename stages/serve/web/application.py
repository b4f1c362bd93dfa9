"""The ASGI application: all routes, in front of any painters."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI, Security
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from starlette.middleware import Middleware

from stages.serve.api_keys import ApiKeys
from stages.serve.config import ServeConfig
from stages.serve.openai_api.models import Models
from stages.serve.openai_api.routes import openai_routes
from stages.serve.painting import NoPainterError, Painters, PaintersBusyError
from stages.serve.served_model import ServedConcept
from stages.serve.web.access import AccessMiddleware
from stages.serve.web.errors import ErrorsMiddleware, RequestError, add_error_handlers, error_schema
from stages.serve.web.generate import generate_routes
from stages.serve.web.headers import HeadersMiddleware
from stages.serve.web.metrics import MeasuredPainters, Metrics, MetricsMiddleware, metrics_routes
from stages.serve.web.page import add_page


def make_application(
    painters: Painters,
    name: str,
    title: str,
    settings: ServeConfig,
    keys: ApiKeys | None = None,
    concepts: Sequence[ServedConcept] = (),
) -> FastAPI:
    """The application.

    Args:
        painters: Paint the requests.
        name: The model's, in OpenAI's routes.
        title: The model's name and version, for people.
        settings: Limits of requests.
        keys: That requests may have; None: they need none.
        concepts: That requests can name.
    """
    metrics = Metrics()
    measured = MeasuredPainters(painters, metrics)
    # The browser's page for the schema would load scripts from elsewhere.
    app = FastAPI(
        title="Realword",
        description=f"Pictures of your own subjects. Model: {title}.",
        docs_url=None,
        redoc_url=None,
        responses={"default": error_schema("An error; see its status.")},
        middleware=[
            Middleware(HeadersMiddleware),
            Middleware(MetricsMiddleware, metrics),
            Middleware(ErrorsMiddleware),
            Middleware(AccessMiddleware, settings, keys or ApiKeys()),
        ],
    )
    add_error_handlers(app)
    add_page(app)

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> JSONResponse:
        """200 while the server is alive."""
        return JSONResponse({"status": "alive", "model": title})

    @app.head("/ready", include_in_schema=False)
    @app.get("/ready")
    async def ready() -> JSONResponse:
        """200 while a painter answers or is busy painting, else 503."""
        try:
            await painters.check_ready()
        except PaintersBusyError:
            return JSONResponse({"status": "busy", "model": title})
        except NoPainterError as error:
            raise RequestError(503, "No painter is ready; try again in a moment.") from error
        return JSONResponse({"status": "ready", "model": title})

    asks_key = [Security(HTTPBearer(auto_error=False))] if keys else []  # for the schema; `AccessMiddleware` checks it
    for routes in (
        metrics_routes(metrics),
        generate_routes(measured, settings),
        openai_routes(measured, Models(name, concepts), settings),
    ):
        app.include_router(routes, dependencies=asks_key)
    return app
