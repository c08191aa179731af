"""A local server that takes model repositories as the hub does, as far as `huggingface_hub` asks.

It keeps the files of each commit, and refuses or quotes requests when it is told to.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_not_a_real_token"


class FakeModelHub:
    """Repositories by name: ``{"private": bool, "files": {path: bytes}}``."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Any]] = {}
        self.refuses: str | None = None  # paths that match are answered with 403, and the request's headers
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def add(self, name: str, *files: str, private: bool = False) -> None:
        self.repositories[name] = {"private": private, "files": dict.fromkeys(files, b"old")}

    @contextmanager
    def running(self) -> Iterator[FakeModelHub]:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeModelHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def _answer(self, body: bytes) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        if self.hub.refuses and re.search(self.hub.refuses, self.path):
            return self._send(403, {"error": f"refused: {self.headers['Authorization']}"})
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self._send(401, {"error": "who are you?"})
        if self.path == "/api/repos/create":
            return self._create(json.loads(body))
        if self.path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        found = re.match(r"/api/models/([^/]+/[^/?]+)/?(\w*)", self.path)
        if found is None or found[1] not in self.hub.repositories:
            return self._send(404, {"error": "not found"})
        name, what = found.groups()
        repository = self.hub.repositories[name]
        if what == "preupload":
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            return self._send(200, {"files": [{**file, "shouldIgnore": False} for file in files]})
        if what == "commit":
            self._commit(repository["files"], body)
            return self._send(200, {"commitUrl": f"{self.hub.url}/{name}/commit/1", "commitOid": "1" * 40})
        siblings = [{"rfilename": file} for file in repository["files"]]
        if what == "tree":
            return self._send(
                200, [{"type": "file", "path": f, "size": 1, "oid": "0" * 40} for f in repository["files"]]
            )
        self._send(200, {"id": name, "sha": "0" * 40, "private": repository["private"], "siblings": siblings})

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        url = {"url": f"{self.hub.url}/{name}"}
        if name in self.hub.repositories:
            return self._send(409, url)
        private = asked.get("private") is True or asked.get("visibility") == "private"
        self.hub.add(name, ".gitattributes", private=private)
        self._send(200, url)

    @staticmethod
    def _commit(files: dict[str, bytes], body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]

    def _send(self, status: int, answer: Any) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
