"""A local server that answers as the hub does, as far as `huggingface_hub` and `datasets` ask, and misbehaves
when it is told to.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

USER = "TIGER-Lab"


@dataclass
class Fault:
    """What goes wrong with requests whose method and path match, so many times."""

    pattern: str  # such as "GET */resolve/*.parquet"
    kind: int | Literal["drop", "hang"]  # a status, a connection closed in the middle of the body, or silence
    times: float = float("inf")


class FakeHub:
    """Serves the folders under `root` as the data sets ``TIGER-Lab/<folder>``."""

    def __init__(self, root: Path) -> None:
        self.root, self.faults = root, list[Fault]()
        self.requests: list[str] = []
        self.ranges: list[str] = []  # the parts of files that were asked for
        self.released = threading.Event()  # lets the silent answers end
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def fault_of(self, request: str) -> int | str | None:
        with self._lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault.times > 0 and fnmatch.fnmatch(request, fault.pattern):
                    fault.times -= 1
                    return fault.kind
        return None

    def files(self, name: str) -> list[str]:
        folder = self.root / name
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

    def commit(self, name: str) -> str:
        return hashlib.sha1(f"{self.root} {name}".encode()).hexdigest()

    @contextmanager
    def running(self) -> Iterator[FakeHub]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.released.set()
            self._server.shutdown()
            self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        path = unquote(url.path)
        fault = self.hub.fault_of(f"{self.command} {path}")
        if fault == "hang":
            self.hub.released.wait(60)
            self.close_connection = True
            return
        if isinstance(fault, int):
            return self._send(fault, b'{"error": "told to fail"}')
        api = re.fullmatch(rf"/api/datasets/{USER}/([^/]+)(?:/(revision|tree|paths-info)/[^/]+/?(.*))?", path)
        file = re.fullmatch(rf"/datasets/{USER}/([^/]+)/resolve/([^/]+)/(.+)", path)
        if file and (self.hub.root / file[1] / file[3]).is_file():
            return self._send_file(file[1], file[3], drop=fault == "drop")
        if api and (self.hub.root / api[1]).is_dir():
            answer = json.dumps(self._api(api, url.query, body)).encode()
            return self._send(200, answer, cut=fault == "drop")
        code = "EntryNotFound" if file and (self.hub.root / file[1]).is_dir() else "RepoNotFound"
        self._send(404, b'{"error": "not found"}', {"X-Error-Code": code})

    def _api(self, request: re.Match[str], query: str, body: bytes) -> object:
        name, what, under = request.groups()
        files = self.hub.files(name)
        if what in (None, "revision"):
            siblings = [{"rfilename": file} for file in files]
            if "blobs=true" in query.lower():
                siblings = [{**one, "size": self._entry(name, one["rfilename"])["size"]} for one in siblings]
            return {"id": f"{USER}/{name}", "sha": self.hub.commit(name), "siblings": siblings}
        if what == "paths-info":
            wanted = parse_qs(body.decode()).get("paths", [])
            return [self._entry(name, file) for file in files if file in wanted]
        inside = [file for file in files if not under or file.startswith(f"{under}/")]
        if "recursive=true" in query.lower():
            return [self._entry(name, file) for file in inside]
        depth = under.count("/") + 1 if under else 0
        direct = [self._entry(name, file) for file in inside if file.count("/") == depth]
        folders = sorted(
            {"/".join(file.split("/")[: depth + 1]) for file in inside if file.count("/") > depth}
        )
        return [{"type": "directory", "path": folder, "oid": "0" * 40} for folder in folders] + direct

    def _entry(self, name: str, file: str) -> dict[str, object]:
        data = (self.hub.root / name / file).read_bytes()
        return {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

    def _send_file(self, name: str, file: str, *, drop: bool) -> None:
        data = (self.hub.root / name / file).read_bytes()
        etag = hashlib.sha1(data).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": self.hub.commit(name), "Accept-Ranges": "bytes"}
        status = 200
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            self.hub.ranges.append(asked[0])
            start, end = int(asked[1]), int(asked[2] or len(data) - 1)
            headers["Content-Range"] = f"bytes {start}-{min(end, len(data) - 1)}/{len(data)}"
            data, status = data[start : end + 1], 206
        self._send(status, data, headers, cut=drop)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: bool = False
    ) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.wfile.flush()
            self.close_connection = True


def use(hub: FakeHub, cache: Path, patch: Any) -> None:
    """Let `huggingface_hub` and `datasets` talk to `hub`, keep their files in `cache`, and wait briefly."""
    quick = SimpleNamespace(**{**vars(time), "sleep": lambda _: None})
    for name, value in {
        "huggingface_hub.constants.ENDPOINT": hub.url,
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE": hub.url
        + "/{repo_id}/resolve/{revision}/{filename}",
        "huggingface_hub.constants.HF_HUB_CACHE": str(cache),
        "huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT": 0.1,
        "huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT": 0.1,
        "huggingface_hub.file_download._ETAG_RETRY_TIMEOUT": 0.1,
        "huggingface_hub.utils._http.time": quick,
        "huggingface_hub.file_download.time": quick,
        "datasets.config.HF_ENDPOINT": hub.url,
        "datasets.utils.file_utils.time": quick,
        "fanoise_lightning.data.sources.hub_errors.WAITS": (0.01, 0.01),
    }.items():
        patch.setattr(name, value)
