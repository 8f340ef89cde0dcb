"""A stand-in for the hub's server on this machine: it makes repositories, takes commits, and keeps what it was sent."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """What was sent.

    Attributes:
        repositories: Name → whether it is private.
        files: Path → content, of the last commit.
        tokens: That requests came with.
        validated: The cards whose heads it was asked to check.
    """

    def __init__(self, refuse: bool):
        self.refuse = refuse
        self.repositories: dict[str, bool] = {}
        self.files: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        self.validated: list[str] = []


@contextmanager
def hub_stand_in(*, refuse: bool = False):
    """(address, the `Hub`); with `refuse` it makes no repository."""
    hub = Hub(refuse)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_POST(self):
            length = self.headers.get("Content-Length")
            body = self._chunks() if length is None else self.rfile.read(int(length))
            hub.tokens.add(self.headers.get("Authorization", ""))
            address = f"http://{self.headers['Host']}"
            if hub.refuse:
                return self._answer(403, {"error": "You don't have the rights to create a model under this namespace"})
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
                hub.repositories[name] = bool(asked.get("private")) or asked.get("visibility") == "private"
                return self._answer(200, {"url": f"{address}/{name}", "name": name})
            if self.path == "/api/validate-yaml":
                hub.validated.append(json.loads(body)["content"])
                return self._answer(200, {"errors": [], "warnings": []})
            if "/preupload/" in self.path:
                asked = json.loads(body)["files"]
                answers = [
                    {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None} for each in asked
                ]
                return self._answer(200, {"files": answers})
            if "/commit/" in self.path:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                name = self.path.removeprefix("/api/models/").partition("/commit/")[0]
                made = {"commitUrl": f"{address}/{name}/commit/1", "commitOid": "1" * 40, "pullRequestUrl": None}
                return self._answer(200, made)
            return self._answer(404, {"error": f"nothing at {self.path}"})

        def do_GET(self):
            self._answer(404, {"error": f"nothing at {self.path}"})

        def _chunks(self) -> bytes:
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            return b"".join(parts)

        def _answer(self, code: int, value: dict):
            data = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", hub
    finally:
        server.shutdown()
        server.server_close()
