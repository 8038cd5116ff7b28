"""A page as a real browser opens it: Chromium without a window, told what to do over a pipe.

The DevTools protocol, https://chromedevtools.github.io/devtools-protocol/ : JSON messages that end
in a null byte, read by the browser from file descriptor 3 and written to 4.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_SECONDS = 90.0
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@dataclass
class Visit:
    """What a page asked for beside itself, what its console said, and how it looks."""

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    width: int = 0
    text: str = ""
    png: bytes = b""


class _Browser:
    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._rest, self._calls = b"", 0
        self.events: list[dict[str, Any]] = []
        self._until = time.monotonic() + _SECONDS

    def call(self, method: str, session: str | None = None, **params: object) -> dict[str, Any]:
        self._calls += 1
        message: dict[str, Any] = {"id": self._calls, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._calls:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self.events.append(answer)

    def evaluate(self, session: str, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", session, expression=expression)
        return answer["result"]["value"]

    def check_time(self, what: str) -> None:
        if time.monotonic() > self._until:
            raise TimeoutError(what)

    def wait_for(self, method: str) -> None:
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._read())

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            left = max(0.0, self._until - time.monotonic())
            if not select.select([self._from], [], [], left)[0]:
                raise TimeoutError(f"Chromium said nothing for {_SECONDS} s")
            read = os.read(self._from, 1 << 20)
            if not read:
                raise EOFError("Chromium ended")
            self._rest += read
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))


@contextmanager
def _chromium(profile: Path) -> Iterator[_Browser]:
    assert CHROMIUM is not None
    # Above 4, so that moving one to 3 or 4 closes no other.
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for pipe in (os.pipe(), os.pipe()) for end in pipe]
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
               "--remote-debugging-pipe", f"--user-data-dir={profile}"]  # fmt: skip
    started = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(3, 4),
        preexec_fn=lambda: [os.dup2(*each) for each in ((ends[0], 3), (ends[3], 4))],
    )
    os.close(ends[0])
    os.close(ends[3])
    try:
        yield _Browser(ends[1], ends[2])
    finally:
        os.close(ends[1])
        os.close(ends[2])
        started.terminate()
        started.wait()


def visit(
    page: Path | str,
    profile: Path,
    *,
    until: tuple[str, ...] = (),
    width: int = 1280,
    height: int = 800,
) -> Visit:
    """Open a file or URL in a window of this size, and wait until it shows all texts of `until`.

    The picture is of the whole page.
    """
    seen = Visit()
    url = page if isinstance(page, str) else page.as_uri()
    with _chromium(profile) as browser:
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        attached = browser.call("Target.attachToTarget", targetId=target, flatten=True)
        session = attached["sessionId"]
        for domain in ("Network", "Log", "Runtime", "Page"):
            browser.call(f"{domain}.enable", session)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        browser.call("Emulation.setDeviceMetricsOverride", session, **size)
        browser.call("Page.navigate", session, url=url)
        browser.wait_for("Page.loadEventFired")
        seen.text = browser.evaluate(session, "document.body.innerText")
        while not all(text in seen.text for text in until):
            time.sleep(0.2)
            browser.check_time(f"{url} does not show {until}, but: {seen.text[-2000:]}")
            seen.text = browser.evaluate(session, "document.body.innerText")
        seen.width = browser.evaluate(session, "document.documentElement.scrollWidth")
        shot = browser.call("Page.captureScreenshot", session, captureBeyondViewport=True)
        seen.png = base64.b64decode(shot["data"])
        for event in browser.events:
            params = event.get("params", {})
            match event.get("method"):
                case "Network.requestWillBeSent":
                    seen.requests.append(params["request"]["url"])
                case "Log.entryAdded":
                    seen.complaints.append(params["entry"]["text"])
                case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown":
                    seen.complaints.append(json.dumps(params))
    seen.requests = [
        other for other in seen.requests if other != url and not other.startswith("data:")
    ]
    return seen
