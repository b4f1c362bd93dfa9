"""A stand-in for the Hugging Face hub on the loopback interface, which has some files and refuses others."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.support.hub_cache import use_hub_cache

REVISION = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Refusal:
    """How the hub answers for a model that it does not give."""

    status: int
    code: str = ""  # of the header X-Error-Code
    seconds: float = 0  # until it answers


@contextmanager
def hub_server(models: Mapping[str, Refusal | set[str]]) -> Iterator[str]:
    """The address of a hub that has the files of some models, and refuses others; the rest it does not know."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            repository, _, place = self.path.lstrip("/").partition("/resolve/")
            revision, _, file = place.partition("/")
            found = models.get(repository, Refusal(404, "RepoNotFound"))
            if revision != "main":
                found = Refusal(404, "RevisionNotFound")
            if not isinstance(found, Refusal):
                found = Refusal(200) if file in found else Refusal(404, "EntryNotFound")
            time.sleep(found.seconds)
            self.send_response(found.status)
            self.send_header("X-Error-Code", found.code)
            self.send_header("X-Repo-Commit", REVISION)
            self.send_header("ETag", '"1"')
            self.send_header("Content-Length", "1")
            self.end_headers()

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def use_hub(patch: pytest.MonkeyPatch, endpoint: str | None, cache: Path) -> None:
    """Let the hub's client ask `endpoint` (None: it is offline) and keep its files in `cache`."""
    use_hub_cache(patch, cache)
    if endpoint is not None:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "ENDPOINT", endpoint)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
