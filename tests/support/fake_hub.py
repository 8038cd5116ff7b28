"""A hub on this machine: the few answers of the real one that a download asks for."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40


class FakeHub:
    """One repository at one commit.

    `refusals` maps a path's beginning to (status, error code); `before` is called with the name of
    each file that is asked for, and `fetched` lists those that were sent.
    """

    def __init__(self, repository: str, files: dict[str, bytes]) -> None:
        self.repository = repository
        self.files = files
        self.refusals: dict[str, tuple[int, str]] = {}
        self.before: Callable[[str], None] | None = None
        self.fetched: list[str] = []
        self.url = ""

    def info(self) -> dict[str, Any]:
        return {
            "id": self.repository,
            "sha": COMMIT,
            "siblings": [self._sibling(name, data) for name, data in self.files.items()],
        }

    def send(self, name: str) -> None:
        if self.before is not None:
            self.before(name)
        self.fetched.append(name)

    def _sibling(self, name: str, data: bytes) -> dict[str, Any]:
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": blob}
        if name.endswith((".safetensors", ".bin")):
            sha256 = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 134}
        return entry


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        prefix = f"/{hub.repository}/resolve/{COMMIT}/"
        name = path.removeprefix(prefix)
        refused = [hub.refusals[start] for start in hub.refusals if path.startswith(start)]
        if refused:
            status, code = refused[0]
            self._send(status, b"", {"X-Error-Code": code}, body=body)
        elif path.startswith(f"/api/models/{hub.repository}"):
            self._send(200, json.dumps(hub.info()).encode(), {}, body=body)
        elif name not in hub.files:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body=body)
        else:
            if body:
                hub.send(name)
            etag = hashlib.sha256(hub.files[name]).hexdigest()
            self._send(200, hub.files[name], {"ETag": f'"{etag}"'}, body=body)

    def _send(self, status: int, data: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(status)
        for key, value in {"X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """Answer on a free port of this machine."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
