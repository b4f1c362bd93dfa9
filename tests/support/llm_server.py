"""A small OpenAI-compatible endpoint that gives the answers of a test."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class LanguageModel:
    """Answers request number n (from 0) with `answer(n, request)`: the message's text, or an HTTP status."""

    answer: Callable[[int, dict[str, Any]], str | int]
    requests: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    def respond(self, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.requests.append(request)
        said = self.answer(len(self.requests) - 1, request)
        if isinstance(said, int):
            return said, {"error": {"message": f"answers {said}"}}
        message = {"role": "assistant", "content": said}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return 200, {"id": "1", "object": "chat.completion", "created": 0, "model": "stub", "choices": [choice]}


@contextmanager
def language_model(answer: Callable[[int, dict[str, Any]], str | int]) -> Iterator[LanguageModel]:
    """Serve the model on a free loopback port."""
    model = LanguageModel(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, body = model.respond(request) if self.path == "/v1/chat/completions" else (404, {})
            data = json.dumps(body).encode()
            self.send_response(status)
            if status == 429:
                self.send_header("retry-after-ms", "10")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    model.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield model
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def batch(*prompts: str, variation: str = "background") -> str:
    """An answer to the schema."""
    return json.dumps({"prompts": [{"prompt": prompt, "variation": variation} for prompt in prompts]})
