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

import pytest

COMMIT = "c" * 40


class FakeHub:
    """A model's repository and any number of data sets', all at one commit.

    `datasets` maps the other repositories to their files. `refusals` maps a path's beginning to
    (status, error code); `before` is called with the name of each file that is asked for, and
    `fetched` lists those that were sent.
    """

    def __init__(self, repository: str, files: dict[str, bytes]) -> None:
        self.repository = repository
        self.files = files
        self.datasets: dict[str, dict[str, bytes]] = {}
        self.gated = False
        self.commit = COMMIT
        self.refusals: dict[str, tuple[int, str]] = {}
        self.before: Callable[[str], None] | None = None
        self.fetched: list[str] = []
        self.url = ""

    def info(self, files: dict[str, bytes] | None = None) -> dict[str, Any]:
        files = self.files if files is None else files
        return {
            "id": self.repository,
            "sha": self.commit,
            "gated": self.gated,
            "cardData": {"license": "mit"},
            "siblings": [self._sibling(name, data) for name, data in files.items()],
        }

    def found(self, path: str) -> tuple[dict[str, bytes], str, str] | None:
        """Return the files of the repository in a path, what is asked about it, and the rest."""
        for repository, files in ((self.repository, self.files), *self.datasets.items()):
            kind = "models" if files is self.files else "datasets"
            if path.startswith(f"/api/{kind}/{repository}"):
                return files, "api", path.removeprefix(f"/api/{kind}/{repository}")
            start = f"{'' if kind == 'models' else '/datasets'}/{repository}/resolve/"
            if path.startswith(start):
                return files, "file", path.removeprefix(start).partition("/")[2]
        return None

    def tree(self, files: dict[str, bytes], folder: str) -> list[dict[str, Any]]:
        """Return the entries of a folder, "" for the top, as the hub lists them."""
        inside = [name for name in files if name.startswith(f"{folder}/" if folder else "")]
        depth = folder.count("/") + 1 if folder else 0
        entries = []
        for path in dict.fromkeys("/".join(name.split("/")[: depth + 1]) for name in inside):
            if path in files:
                oid = self._sibling(path, files[path])["blobId"]
                entries.append({"type": "file", "path": path, "size": len(files[path]), "oid": oid})
            else:
                entries.append({"type": "directory", "path": path, "size": 0, "oid": "0" * 40})
        return entries

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
        found = hub.found(path)
        refused = [hub.refusals[start] for start in hub.refusals if path.startswith(start)]
        if refused:
            status, code = refused[0]
            self._send(status, b"", {"X-Error-Code": code}, body=body)
        elif found is None:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, body=body)
        elif found[1] == "api":
            files, _, rest = found
            answer: Any = hub.info(files)
            if rest.startswith("/tree/"):
                answer = hub.tree(files, rest.split("/", 3)[3] if rest.count("/") > 2 else "")
            self._send(200, json.dumps(answer).encode(), {}, body=body)
        elif found[2] not in found[0]:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body=body)
        else:
            files, _, name = found
            if body:
                hub.send(name)
            etag = hashlib.sha256(files[name]).hexdigest()
            self._send(200, files[name], {"ETag": f'"{etag}"'}, body=body)

    def _send(self, status: int, data: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(status)
        for key, value in {"X-Repo-Commit": self.hub.commit, **headers}.items():
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


@contextmanager
def asked_by_libraries(hub: FakeHub, patch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Answer, and have huggingface_hub and datasets ask this hub in this process."""
    import datasets
    import huggingface_hub.constants as constants

    with serving(hub), patch.context() as context:
        context.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        context.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        context.setattr(datasets.config, "HF_ENDPOINT", hub.url)
        context.setenv("HF_ENDPOINT", hub.url)  # for processes that tests start
        yield hub
