"""The ASGI application: all routes, in front of any painters."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from stages.serve.config import ServeConfig
from stages.serve.openai_api.models import Models
from stages.serve.openai_api.routes import openai_routes
from stages.serve.painting import NoPainterError, Painters, PaintersBusyError
from stages.serve.served_model import ServedConcept
from stages.serve.web.errors import RequestError, add_error_handlers
from stages.serve.web.generate import generate_routes
from stages.serve.web.page import add_page


def make_application(
    painters: Painters, name: str, title: str, settings: ServeConfig, concepts: Sequence[ServedConcept] = ()
) -> FastAPI:
    """The application.

    Args:
        painters: Paint the requests.
        name: The model's, in OpenAI's routes.
        title: The model's name and version, for people.
        settings: Limits of requests.
        concepts: That requests can name.
    """
    # The browser's page for the schema would load scripts from elsewhere.
    app = FastAPI(
        title="Realword", description=f"Pictures of your own subjects. Model: {title}.", docs_url=None, redoc_url=None
    )
    add_error_handlers(app)
    add_page(app)

    @app.get("/health")
    @app.head("/health", include_in_schema=False)
    async def health() -> JSONResponse:
        """200 while the server is alive."""
        return JSONResponse({"status": "alive", "model": title})

    @app.get("/ready")
    @app.head("/ready", include_in_schema=False)
    async def ready() -> JSONResponse:
        """200 while a painter answers or is busy painting, else 503."""
        try:
            await painters.check_ready()
        except PaintersBusyError:
            return JSONResponse({"status": "busy", "model": title})
        except NoPainterError as error:
            raise RequestError(503, "No painter is ready; try again in a moment.") from error
        return JSONResponse({"status": "ready", "model": title})

    app.include_router(generate_routes(painters, settings))
    app.include_router(openai_routes(painters, Models(name, concepts), settings))
    return app
