"""A proxy on loopback between a client and an S3 server, which spoils chosen answers as a busy or broken store does."""

import http.client
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import urlsplit

CHUNK_BYTES = 64 * 1024


class Fault(NamedTuple):
    """What is done to one answer."""

    status: int | None = None  # answered in the store's place, such as 503
    cut_after: int | None = None  # bytes of the body after which the connection is closed
    pause_s: float = 0.0  # before the answer
    pause_per_chunk_s: float = 0.0  # between the body's chunks
    before: Callable[[], None] | None = None  # called before the request is passed on


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away, or was killed, is no news; whatever else went wrong is."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class FaultyStore:
    """`endpoint` passes everything on to the store; `faults` is asked before each request.

    `faults(method, path)` returns a `Fault` or None; `requests` lists (method, path) of all that came.
    """

    def __init__(self, upstream: str):
        self.upstream = urlsplit(upstream)
        self.faults: Callable[[str, str], Fault | None] = lambda method, path: None
        self.requests: list[tuple[str, str]] = []
        self._server = _Server(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def first(self, count: int, fault: Fault, *, method: str, path: str = "") -> None:
        """Spoil the first `count` requests of that method whose path has `path` in it."""
        left = [count]

        def decide(of_method: str, of_path: str) -> Fault | None:
            if of_method != method or path not in of_path or left[0] < 1:
                return None
            left[0] -= 1
            return fault

        self.faults = decide

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                store.requests.append((self.command, self.path))
                fault = store.faults(self.command, self.path) or Fault()
                body = self._body()
                if fault.before is not None:
                    fault.before()
                time.sleep(fault.pause_s)
                if fault.status is not None:
                    self._refuse(fault.status)
                    return
                self._pass_on(body, fault)

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any

            def log_message(self, *args: object) -> None:
                """Quiet."""

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                raw = b""
                while True:
                    line = self.rfile.readline()
                    size = int(line.split(b";")[0], 16)
                    raw += line + self.rfile.read(size + 2)
                    if size == 0:
                        return raw

            def _refuse(self, status: int) -> None:
                body = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
                self.send_response(status)
                self.send_header("Content-Type", "application/xml")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def _pass_on(self, body: bytes, fault: Fault) -> None:
                connection = http.client.HTTPConnection(store.upstream.hostname, store.upstream.port, timeout=60)
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    connection.putheader(name, value)
                connection.endheaders(body)
                answer = connection.getresponse()
                content = answer.read()
                self.send_response_only(answer.status, answer.reason)
                for name, value in answer.getheaders():
                    if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                        self.send_header(name, value)
                length = answer.getheader("Content-Length") if self.command == "HEAD" else len(content)
                self.send_header("Content-Length", str(length or 0))
                self.end_headers()
                connection.close()
                stop = len(content) if fault.cut_after is None else min(fault.cut_after, len(content))
                for start in range(0, stop, CHUNK_BYTES):
                    self.wfile.write(content[start : min(stop, start + CHUNK_BYTES)])
                    time.sleep(fault.pause_per_chunk_s)
                if fault.cut_after is not None:
                    self.wfile.flush()
                    self.close_connection = True

        return Handler
