"""The ASGI application: all routes, in front of any painters."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, JSONResponse

from stages.serve.config import ServeConfig
from stages.serve.openai_api.routes import openai_routes
from stages.serve.painting import NoPainterError, Painters, PaintersBusyError
from stages.serve.web.errors import RequestError, add_error_handlers
from stages.serve.web.generate import generate_routes

_PAGE = Path(__file__).parents[1] / "page.html"


def make_application(painters: Painters, name: str, settings: ServeConfig) -> FastAPI:
    """The application.

    Args:
        painters: Paint the requests.
        name: The model's, in OpenAI's routes.
        settings: Limits of requests.
    """
    # The browser's page for the schema would load scripts from elsewhere.
    app = FastAPI(title="Realword", description="Pictures of your own subjects.", docs_url=None, redoc_url=None)
    add_error_handlers(app)
    page = _PAGE.read_text()

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def index() -> HTMLResponse:
        """A page with the form."""
        return HTMLResponse(page.replace("{{ model }}", painters.title))

    @app.get("/health")
    @app.head("/health", include_in_schema=False)
    async def health() -> JSONResponse:
        """200 while the server is alive."""
        return JSONResponse({"status": "alive", "model": painters.title})

    @app.get("/ready")
    @app.head("/ready", include_in_schema=False)
    async def ready() -> JSONResponse:
        """200 while a painter answers or is busy painting, else 503."""
        try:
            await painters.check_ready()
        except PaintersBusyError:
            return JSONResponse({"status": "busy", "model": painters.title})
        except NoPainterError as error:
            raise RequestError(503, "No painter is ready; try again in a moment.") from error
        return JSONResponse({"status": "ready", "model": painters.title})

    app.include_router(generate_routes(painters, settings))
    app.include_router(openai_routes(painters, name, settings))
    return app
