"""A stand-in for the server of Weights & Biases: as much of it as a run needs to log."""

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """Knows which runs were asked for, and what was sent of each; ``lost``: answers no more."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lost = False
        self.runs: list[tuple[str, str]] = []  # project and id, of each run that was begun
        self.rows: dict[str, list[dict[str, Any]]] = {}  # id of a run -> its history

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.lost:
            self.close_connection = True
            return
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        asked = json.loads(body) if body.startswith(b"{") else {}
        if self.path.endswith("/file_stream"):
            self._take_rows(asked)
        answer = json.dumps({"data": self._answer(asked)}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_PUT = do_POST  # noqa: N815

    def _take_rows(self, sent: dict[str, Any]) -> None:
        history = (sent.get("files") or {}).get("wandb-history.jsonl")
        if history:
            rows = self.server.rows.setdefault(self.path.split("/")[-2], [])
            rows += [json.loads(line) for line in history["content"]]

    def _answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        query, variables = asked.get("query", ""), asked.get("variables") or {}
        project = {"id": "p", "name": variables.get("project"), "entity": {"id": "e", "name": "me"}}
        if "upsertBucket" in query:
            run_id = variables.get("name") or variables.get("id")
            if variables.get("project"):
                self.server.runs.append((variables["project"], run_id))
            bucket = {"id": run_id, "name": run_id, "displayName": "run", "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "viewer" in query:
            viewer = {"id": "u", "entity": "me", "username": "me", "flags": "{}"}
            return {"viewer": {**viewer, "teams": {"edges": []}}}
        if "serverInfo" in query:
            return {"serverInfo": {"features": []}}
        if "createRunFiles" in query:
            upload = [
                {"name": name, "uploadUrl": f"{self.server.address}/upload"}
                for name in variables["files"]
            ]
            sent = {"runID": variables.get("run"), "uploadHeaders": [], "files": upload}
            return {"createRunFiles": sent}
        if "bucket(" in query:
            return {"model": {**project, "bucket": None}}
        return {}

    def log_message(self, *_: Any) -> None:
        pass
