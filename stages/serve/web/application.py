"""The ASGI application: all routes, in front of any painters."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI, Security
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from starlette.middleware import Middleware

from stages.serve.api_keys import ApiKeys
from stages.serve.config import ServeConfig
from stages.serve.openai_api.concept_uploads import ConceptUploads
from stages.serve.openai_api.models import Models
from stages.serve.openai_api.routes import openai_routes
from stages.serve.painting import NoPainterError, Painters, PaintersBusyError
from stages.serve.web.access import AccessMiddleware
from stages.serve.web.draining import Draining, DrainingMiddleware
from stages.serve.web.errors import ErrorsMiddleware, RequestError, add_error_handlers, error_schema
from stages.serve.web.generate import generate_routes
from stages.serve.web.headers import HeadersMiddleware
from stages.serve.web.metrics import MeasuredPainters, Metrics, MetricsMiddleware, metrics_routes
from stages.serve.web.page import add_page


def make_application(
    painters: Painters,
    name: str,
    settings: ServeConfig,
    keys: ApiKeys | None = None,
    draining: Draining | None = None,
    uploads: Path | None = None,
) -> FastAPI:
    """The application.

    Args:
        painters: Paint the requests.
        name: The model's, in OpenAI's routes.
        settings: Limits of requests.
        keys: That requests may have; None: they need none.
        draining: Says when the server ends.
        uploads: The folder of uploaded concepts; None: clients cannot upload any.
    """
    metrics = Metrics()
    measured = MeasuredPainters(painters, metrics)
    models = Models(name, measured)
    # The browser's page for the schema would load scripts from elsewhere.
    app = FastAPI(
        title="Realword",
        description="Pictures of your own subjects.",
        docs_url=None,
        redoc_url=None,
        responses={"default": error_schema("An error; see its status.")},
        middleware=[
            Middleware(HeadersMiddleware),
            Middleware(MetricsMiddleware, metrics),
            Middleware(ErrorsMiddleware),
            Middleware(DrainingMiddleware, draining or Draining()),
            Middleware(AccessMiddleware, settings, keys or ApiKeys()),
        ],
    )
    add_error_handlers(app)
    add_page(app)

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> JSONResponse:
        """200 while the server is alive."""
        return JSONResponse({"status": "alive", "model": painters.served.title})

    @app.head("/ready", include_in_schema=False)
    @app.get("/ready")
    async def ready() -> JSONResponse:
        """200 while a painter answers or is busy painting, else 503."""
        try:
            await painters.check_ready()
        except PaintersBusyError:
            return JSONResponse({"status": "busy", "model": painters.served.title})
        except NoPainterError as error:
            raise RequestError(503, "No painter is ready; try again in a moment.") from error
        return JSONResponse({"status": "ready", "model": painters.served.title})

    asks_key = [Security(HTTPBearer(auto_error=False))] if keys else []  # for the schema; `AccessMiddleware` checks it
    for routes in (
        metrics_routes(metrics),
        generate_routes(measured, settings),
        openai_routes(measured, models, ConceptUploads(uploads, models, measured, settings), settings),
    ):
        app.include_router(routes, dependencies=asks_key)
    return app
