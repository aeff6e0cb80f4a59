"""A headless Chromium, driven through its DevTools protocol over a pipe."""

import base64
import itertools
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")


def find() -> str | None:
    """Path of a Chromium, None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab. ``heard`` holds every console message, error and request so far."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive = send, os.fdopen(receive, "rb", buffering=0)
        self._numbers, self._rest = itertools.count(1), b""
        self._session: str | None = None
        self.heard: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **values: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": values}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self.heard.append(answer)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def open(self, path: Path, width: int, scheme: str, height: int = 900) -> None:
        """Load a file in a window so wide, with a light or a dark colour scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])
        self.heard.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.heard):
            self.heard.append(self._next())

    def told(self) -> list[str]:
        """Console messages and errors since the page was opened."""
        names = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(event) for event in self.heard if event.get("method") in names]

    def requests(self) -> list[str]:
        """Addresses asked for since the page was opened."""
        return [
            event["params"]["request"]["url"]
            for event in self.heard
            if event.get("method") == "Network.requestWillBeSent"
        ]

    def key(self, name: str, code: int, text: str = "") -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=name,
                windowsVirtualKeyCode=code,
                **({"text": text} if text and kind == "keyDown" else {}),
            )

    def picture(self, path: Path) -> None:
        """The whole page as PNG."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            read = self._receive.read(1 << 16)
            assert read, "the browser ended"
            self._rest += read
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


@contextmanager
def opened(browser: str, folder: Path) -> Iterator[Page]:
    """A tab of a browser of its own, whose profile is in ``folder``."""
    to_browser, send = os.pipe()
    receive, from_browser = os.pipe()
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    options += ["--no-first-run", "--hide-scrollbars", "--remote-debugging-pipe"]
    options += [f"--user-data-dir={folder / 'profile'}"]
    # The browser wants the pipes to be its files 3 and 4.
    command = f"exec {shlex.join([browser, *options])} 3<&{to_browser} 4>&{from_browser}"
    with (folder / "browser.log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", command], pass_fds=(to_browser, from_browser), stdout=log, stderr=log
        )
    os.close(to_browser)
    os.close(from_browser)
    try:
        page = Page(send, receive)
        yield page
        page._session = None
        page.call("Browser.close")
    finally:
        os.close(send)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
