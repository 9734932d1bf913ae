"""A file server on loopback that misbehaves as real ones do."""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote


@dataclass
class Faults:
    """What is wrong with a server, and what it was asked for.

    Attributes:
        drop_after: Bytes after which a connection is dropped.
        resets: Drop it with a reset, as a machine that goes away, not in good order.
        unavailable: Requests, of every three, that are answered 503.
        ignores_range: Every answer is the whole file.
        altered: Byte of each tar that is another.
        missing_bytes: How much shorter each tar is than it should be.
        redirect: Where every request is sent on to.
        block_bytes: What is sent at a time.
        block_seconds: Pause after each of these.
        asked: Path and first byte of each request.
        sent: Bytes sent of each path.
    """

    drop_after: int | None = None
    resets: bool = False
    unavailable: int = 0
    ignores_range: bool = False
    altered: int | None = None
    missing_bytes: int = 0
    redirect: str = ""
    block_bytes: int = 16384
    block_seconds: float = 0.0
    asked: list[tuple[str, int]] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)

    def starts(self, name: str) -> list[int]:
        return [start for path, start in self.asked if path.endswith(name)]


class Handler(BaseHTTPRequestHandler):
    root: Path
    faults: Faults

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        faults, path = self.faults, unquote(self.path.partition("?")[0])
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        faults.asked.append((path, int(asked[1]) if asked else 0))
        if faults.redirect:
            self.send_response(302)
            self.send_header("Location", faults.redirect + self.path)
            self.end_headers()
            return
        if len(faults.asked) % 3 < faults.unavailable:
            self.send_error(503)
            return
        file = self.root / path.lstrip("/")
        if not file.is_file():
            self.send_error(404)
            return
        content = bytearray(file.read_bytes())
        if file.suffix == ".tar":
            del content[len(content) - faults.missing_bytes :]
            if faults.altered is not None:
                content[faults.altered] ^= 1
        start, end = 0, len(content)
        if asked and not faults.ignores_range:
            start, end = int(asked[1]), min(len(content), int(asked[2]) + 1)
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        self._send(path, bytes(content[start:end]))

    def _send(self, path: str, body: bytes) -> None:
        step = self.faults.block_bytes
        for at in range(0, len(body[: self.faults.drop_after]), step):
            block = body[: self.faults.drop_after][at : at + step]
            try:
                self.wfile.write(block)
            except OSError:  # the other side was killed
                return
            self.faults.sent[path] = self.faults.sent.get(path, 0) + len(block)
            if self.faults.block_seconds:
                time.sleep(self.faults.block_seconds)
        if self.faults.resets and len(body) > (self.faults.drop_after or 0):
            self.wfile.flush()
            time.sleep(0.02)  # a reset discards what the other side has not read yet
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()


@contextmanager
def serve(root: Path, faults: Faults | None = None) -> Iterator[str]:
    """Serve a folder; the address, without a slash at its end."""
    handler = type("Here", (Handler,), {"root": root, "faults": faults or Faults()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
