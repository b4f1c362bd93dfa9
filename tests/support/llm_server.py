"""A small OpenAI-compatible endpoint that gives the answers of a test."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """An HTTP answer: its body is sent as JSON, or as it is if it is bytes."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def completion(message: dict[str, Any], **choice: Any) -> Reply:
    """A completion with one choice."""
    choices = [{"index": 0, "message": {"role": "assistant"} | message, "finish_reason": "stop"} | choice]
    return Reply({"id": "1", "object": "chat.completion", "created": 0, "model": "stub", "choices": choices})


@dataclass
class LanguageModel:
    """Answers request number n (from 0) with `answer(n, request)`: the message's text, an HTTP status, or all of it."""

    answer: Callable[[int, dict[str, Any]], str | int | Reply]
    requests: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    def respond(self, request: dict[str, Any]) -> Reply:
        self.requests.append(request)
        said = self.answer(len(self.requests) - 1, request)
        if isinstance(said, int):
            return Reply({"error": {"message": f"answers {said}"}}, status=said)
        return completion({"content": said}) if isinstance(said, str) else said


@contextmanager
def language_model(answer: Callable[[int, dict[str, Any]], str | int | Reply]) -> Iterator[LanguageModel]:
    """Serve the model on a free loopback port."""
    model = LanguageModel(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            right_path = self.path.partition("?")[0] == "/v1/chat/completions"
            reply = model.respond(request) if right_path else Reply({}, status=404)
            data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            headers = {"retry-after-ms": "10", "Content-Type": "application/json", "Content-Length": str(len(data))}
            self.send_response(reply.status)
            for name, value in (headers | reply.headers).items():
                self.send_header(name, value)
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
