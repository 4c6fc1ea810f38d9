"""A web server with range requests on 127.0.0.1 that can be told to fail."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

Kind = Literal["unavailable", "truncate", "short", "corrupt", "stall", "hang_up"]


@dataclass
class Failure:
    """What happens to the next `times` requests for a path that ends so, from byte `start` on if that is given."""

    kind: Kind
    path: str
    times: int = 10**9
    start: int | None = None


@dataclass
class Server:
    """`requests` are the paths and ranges that were asked for, in order."""

    url: str
    root: Path
    ranges: bool = True
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    lock: threading.Condition = field(default_factory=threading.Condition)
    gate: threading.Event = field(default_factory=threading.Event)
    """Set to let stalled requests go."""

    def fail(self, kind: Kind, path: str, times: int = 10**9, start: int | None = None) -> None:
        with self.lock:
            self.failures.append(Failure(kind, path, times, start))

    def asked(self, ending: str) -> int:
        """How many requests there were for paths with this ending."""
        with self.lock:
            return sum(path.endswith(ending) for path, _ in self.requests)

    def note(self, path: str, ranged: str | None) -> Kind | None:
        """Take down a request; what shall happen to it."""
        start = int(ranged.removeprefix("bytes=").partition("-")[0]) if ranged else None
        with self.lock:
            self.requests.append((path, ranged))
            self.lock.notify_all()
            for failure in self.failures:
                if path.endswith(failure.path) and failure.times > 0 and failure.start in (None, start):
                    failure.times -= 1
                    return failure.kind
        return None


@contextmanager
def serving(root: Path) -> Iterator[Server]:
    """Serve the files below `root` until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            ranged = self.headers.get("Range") if server.ranges else None
            failure = server.note(self.path, ranged)
            if failure == "unavailable":
                return self._answer(503, b"slow down")
            if failure == "hang_up":
                self.close_connection = True
                return None
            if failure == "stall":
                server.gate.wait(60)
            path = root / self.path.lstrip("/")
            if not path.is_file():
                return self._answer(404, b"no such file")
            content = path.read_bytes()
            code = 200
            if ranged:
                first, last = ranged.removeprefix("bytes=").split("-")
                content, code = content[int(first) : int(last) + 1], 206
            if failure == "corrupt":
                content = content[:-1] + bytes([content[-1] ^ 1])
            if failure == "short":
                content = content[:-1]
            return self._answer(code, content, cut=1 if failure == "truncate" else 0)

        def _answer(self, code: int, content: bytes, cut: int = 0) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) - cut])
            if cut:
                self.close_connection = True

        def handle(self) -> None:
            try:
                super().handle()
            except ConnectionError:
                self.close_connection = True  # the other side has given up, as it should after a stall

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

    http = Quiet(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{http.server_address[1]}", root)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.gate.set()
        http.shutdown()
        http.server_close()
        thread.join()
