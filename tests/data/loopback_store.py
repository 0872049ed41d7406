"""A web server of this process that serves a folder by ranges, and fails as stores do, by a plan drawn from a seed."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import numpy as np

Fault = Literal["", "slow", "dropped", "503", "429", "truncated", "short", "whole", "403", "404"]
FAULTS: tuple[Fault, ...] = ("slow", "dropped", "503", "429", "truncated", "short")


class StoreServer(ThreadingHTTPServer):
    """Serves a folder on the loopback.

    Args:
        root: what it serves.
        seed: of the faults.
        share: of the requests for bytes that fail.
        latency: of every answer, s.
        always: the one fault of every request; "" none.

    Attributes:
        requests: how many of each kind came.
        faults: how many of each kind were made.
        down: whether it answers nothing at all.
    """

    daemon_threads = True

    def __init__(self, root: Path, seed: int = 0, share: float = 0.0, latency: float = 0.0, always: Fault = "") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.share, self.latency, self.always = root, share, latency, always
        self.requests: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.down = False
        self._random = np.random.default_rng(seed)
        self._lock = threading.Lock()

    @property
    def address(self) -> str:
        """Of the folder."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def draw(self) -> Fault:
        """The fault of the next request."""
        with self._lock:
            drawn = self._random.random()
            fault: Fault = self.always
            if drawn < self.share:
                fault = FAULTS[int(self._random.integers(len(FAULTS)))]
            self.faults[fault or "none"] += 1
            return fault

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no news."""


@contextmanager
def serving(root: Path, **how: Any) -> Iterator[StoreServer]:
    """A server within the block."""
    server = StoreServer(root, **how)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: StoreServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        server = self.server
        server.requests[self.command] += 1
        time.sleep(server.latency)
        file = server.root / self.path.lstrip("/")
        fault = "dropped" if server.down else server.draw() if file.suffix == ".tar" else ""
        if fault == "dropped":
            self.close_connection = True
            self.connection.close()
            return
        if fault in ("503", "429", "403", "404"):
            self._head(int(fault), 0)
            return
        if fault == "slow":
            time.sleep(0.3)
        if not file.is_file():
            self._head(404, 0)
            return
        data, status, extra = file.read_bytes(), 200, {"ETag": f'"{file.stat().st_mtime_ns}"'}
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked and fault != "whole":
            start, end = int(asked[1]), min(int(asked[2]), len(data) - 1)
            extra["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            data, status = data[start : end + 1], 206
        if fault == "short" and body:  # an honest length of too few bytes
            data = data[: len(data) // 2]
        self._head(status, len(data), extra)
        if body:
            self.wfile.write(data[: len(data) // 2] if fault == "truncated" else data)
            if fault == "truncated":
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()

    def _head(self, status: int, length: int, extra: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in (extra or {}).items():
            self.send_header(name, value)
        self.end_headers()
