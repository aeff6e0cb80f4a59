"""A local stand-in of the Hugging Face hub that takes uploads, by the requests of its library."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class Hub:
    """``created``: what repositories were asked for; ``files``: name → path → bytes."""

    def __init__(self) -> None:
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, dict[str, bytes]] = {}
        self.tokens: set[str | None] = set()
        self.refuses_commits = False
        self.url = ""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/api/repos/create":
            asked = json.loads(body)
            self.created.append(asked)
            name = f"{asked['organization']}/{asked['name']}"
            self.files.setdefault(name, {})
            return 200, {"url": f"{self.url}/{name}", "name": name}
        if path.endswith("/preupload/main"):
            asked = json.loads(body)["files"]
            regular = {"uploadMode": "regular", "shouldIgnore": False}
            return 200, {"files": [{"path": file["path"], **regular} for file in asked]}
        if path.endswith("/commit/main"):
            if self.refuses_commits:
                return 403, {"error": "no room"}
            name = path.removeprefix("/api/models/").removesuffix("/commit/main")
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.files[name][line["value"]["path"]] = content
            commit = "0" * 40
            return 200, {"commitUrl": f"{self.url}/{name}/commit/{commit}", "commitOid": commit}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        return 200, {"sha": "0" * 40, "id": "some/one", "siblings": []}


@contextmanager
def hub() -> Iterator[Hub]:
    """One that answers while this lasts."""
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            state.tokens.add(self.headers.get("Authorization"))
            status, content = state.answer(self.command, self.path.partition("?")[0], body)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_POST = do_HEAD = do_PUT = _answer  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield state
        finally:
            server.shutdown()
