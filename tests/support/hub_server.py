"""The Hugging Face hub on loopback, as far as its library needs it to make, fill and read a repository of models."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote

Files = dict[str, bytes]


@dataclass
class HubServer:
    """Commits of repositories, oldest first; every branch is the last commit, a commit's id is a revision."""

    token: str
    endpoint: str = ""
    commits: dict[str, list[tuple[str, Files]]] = field(default_factory=dict)

    def files(self, repo_id: str, revision: str) -> tuple[str, Files]:
        """A commit's id, and its files."""
        commits = self.commits[repo_id]
        return next((commit for commit in commits if commit[0] == revision), commits[-1])


@contextmanager
def hub_server(token: str) -> Iterator[HubServer]:
    hub = HubServer(token)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self._json(401, {"error": "Invalid credentials in Authorization header"})
        if self.path == "/api/repos/create":
            values = json.loads(body)
            repo_id = "/".join(filter(None, (values.get("organization"), values["name"])))
            self.hub.commits.setdefault(repo_id, [])
            return self._json(200, {"url": f"{self.hub.endpoint}/{repo_id}"})
        if self.path == "/api/validate-yaml":
            return self._json(200, {"errors": [], "warnings": []})
        *_, owner, name, what, _ = self.path.split("?")[0].split("/")
        if what == "preupload":
            files = [{"path": one["path"], "uploadMode": "regular"} for one in json.loads(body)["files"]]
            return self._json(200, {"files": [{**one, "shouldIgnore": False, "oid": None} for one in files]})
        return self._commit(f"{owner}/{name}", [json.loads(line) for line in body.splitlines()])

    def _commit(self, repo_id: str, lines: list[dict[str, Any]]) -> None:
        commits = self.hub.commits[repo_id]
        files = dict(commits[-1][1]) if commits else {}
        for line in lines:
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit = hashlib.sha1(f"{repo_id} {len(commits)}".encode()).hexdigest()
        commits.append((commit, files))
        url = f"{self.hub.endpoint}/{repo_id}/commit/{commit}"
        self._json(200, {"success": True, "commitOid": commit, "commitUrl": url})

    def do_HEAD(self) -> None:
        self._file(with_body=False)

    def do_GET(self) -> None:
        if "/resolve/" in self.path:
            return self._file(with_body=True)
        return self._json(404, {"error": "not found"})

    def _file(self, *, with_body: bool) -> None:
        repository, _, rest = unquote(self.path).strip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        if not self.hub.commits.get(repository):
            return self._json(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        commit, files = self.hub.files(repository, revision)
        headers = {"X-Repo-Commit": commit}
        if name not in files:
            return self._json(404, {"error": "Entry not found"}, {**headers, "X-Error-Code": "EntryNotFound"})
        headers["ETag"] = f'"{hashlib.sha1(files[name]).hexdigest()}"'
        return self._send(200, files[name], headers, with_body=with_body)

    def _json(self, status: int, values: Any, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(values).encode(), headers or {}, with_body=self.command != "HEAD")

    def _send(self, status: int, body: bytes, headers: dict[str, str], *, with_body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Write no log."""
