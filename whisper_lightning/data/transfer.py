"""Bytes from a URL: which addresses are read, and how to get a whole file over connections that drop."""

from __future__ import annotations

import http.client
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib import request
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit, urlunsplit

from tqdm import tqdm

from whisper_lightning.addresses import CONTAINERS, REMOTE
from whisper_lightning.errors import UserError

PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "hf": "huggingface_hub"}
"""What is read through fsspec, and the package it needs. No other protocol: some run commands or open local files."""
RETRIES = 5
"""Attempts after the first that bring no new byte, before a download is given up."""
BACKOFF_SECONDS = 0.5
"""Pause before the first of them; it doubles."""
TIMEOUT_SECONDS = 30.0
"""Longest silence of a server, and the longest that its answer may take to begin."""
PACE_SECONDS = 60.0
"""Over how long its pace is measured."""
QUIET_SECONDS = 5.0
"""What takes longer is shown."""
BLOCK_BYTES = 1 << 16
RANGE_BYTES = 8 << 20
"""What fsspec is asked for at a time: no more is lost when a connection drops."""
T = TypeVar("T")


def is_remote(option: str, source: str) -> bool:
    """Say whether a source is the URL of a folder of shards.

    Args:
        option: Where it was given, for the message.
        source: URL or local path.

    Raises:
        UserError: It is a URL or a command of another kind, or a URL that cannot be used.
    """
    match = REMOTE.match(source)
    if match is None:
        return False
    scheme = match[0][:-1].lower()
    if scheme not in ("http", "https", *PACKAGES) or "::" in source:
        raise UserError(
            f"{option}: {source!r} is not read; give a local path, or a folder of shards at https://, http:// or "
            f"{', '.join(f'{known}://' for known in PACKAGES)}"
        )
    try:
        parts = urlsplit(source)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UserError(f"{option}: {source!r} is not a URL ({error}); write https://host/folder") from None
    if not host or parts.password is not None or (parts.username is not None and scheme not in CONTAINERS):
        raise UserError(f"{option}: a URL needs a host, and no name and password in it; write https://host/folder")
    return True


def local_path(option: str, path: str) -> Path:
    """Return the path, which must be local.

    Raises:
        UserError: It is a URL or a command.
    """
    if REMOTE.match(path):
        raise UserError(f"{option}: {path!r} is not a local path; give a folder of this machine")
    return Path(path)


def join(url: str, name: str) -> str:
    """Return the URL of a file in the folder at `url`."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc, f"{parts.path.rstrip('/')}/{name}", parts.query, ""))


def size_of(url: str) -> int:
    """Ask how many bytes a file has.

    Raises:
        UserError: It is not there, or the server does not answer or does not say.
    """
    return _retry(url, partial(_size, url))


def transfer(url: str, num_bytes: int, out: BinaryIO, min_bytes_per_second: float = 0.0) -> None:
    """Append what `out` does not have yet of the first `num_bytes` of a file, with as many requests as it takes.

    Raises:
        UserError: The file is not there or shorter, or the server gives nothing more for a while, or too little.
    """
    start = out.seek(0, os.SEEK_END)
    pace = _Pace(url, min_bytes_per_second)
    name = urlsplit(url).path.rpartition("/")[2]
    # A process that reads data would draw into the bar of the main one.
    quiet = multiprocessing.parent_process() is not None
    with tqdm(
        total=num_bytes, initial=start, desc=name, unit="B", unit_scale=True, delay=QUIET_SECONDS, disable=quiet
    ) as bar:
        while out.seek(0, os.SEEK_END) < num_bytes:
            _retry(url, partial(_receive, url, num_bytes, out, pace, bar))


class _Pace:
    """Ends a download that would take for ever: a server that sends a byte a second is never silent."""

    def __init__(self, url: str, min_bytes_per_second: float) -> None:
        self._url, self._least = url, min_bytes_per_second
        self._begun, self._num_bytes = time.monotonic(), 0

    def add(self, num_bytes: int) -> None:
        """Count bytes that have come; `UserError` where a minute brought too few."""
        self._num_bytes += num_bytes
        seconds = time.monotonic() - self._begun
        if seconds < PACE_SECONDS:
            return
        if self._num_bytes < self._least * seconds:
            raise UserError(
                f"{self._url}: {self._num_bytes / seconds:.3g} bytes a second come from there; use another server, or "
                f"lower data.min_kib_per_second (now {self._least / 1024:g}). What has arrived is kept"
            )
        self._begun, self._num_bytes = time.monotonic(), 0


class _DroppedError(Exception):
    """A request failed in a way that may pass."""


def _retry(url: str, attempt: Callable[[], T]) -> T:
    reason = ""
    for failures in range(RETRIES + 1):
        if failures:
            time.sleep(BACKOFF_SECONDS * 2 ** (failures - 1))
        try:
            return attempt()
        except _DroppedError as error:
            reason = str(error)
    raise UserError(
        f"{url}: given up after {RETRIES + 1} attempts ({reason}); check the connection and that the "
        "file is complete there, then start again: what has arrived is kept"
    )


def _receive(url: str, num_bytes: int, out: BinaryIO, pace: _Pace, bar: tqdm[None]) -> None:
    """Make one request and append what it brings, which must be something."""
    start, reason = out.tell(), "the server ends the connection too early"
    try:
        for block in _blocks(url, start, num_bytes):
            out.write(block)
            bar.update(len(block))
            pace.add(len(block))
    except _DroppedError as error:
        reason = str(error)
    if out.tell() == start:
        raise _DroppedError(f"{reason}; {start} of {num_bytes} bytes are here")


@contextmanager
def _asking(url: str) -> Iterator[None]:
    """Turn the many errors of servers and libraries into those that may pass and those that will not."""
    try:
        yield
    except (UserError, _DroppedError):
        raise
    except Exception as error:  # each of fsspec's libraries has exceptions of its own
        status = error.code if isinstance(error, HTTPError) else None
        final = isinstance(error, (FileNotFoundError, PermissionError))
        if not final and (status is None or status >= 500 or status in (408, 429)):
            raise _DroppedError(" ".join(f"{type(error).__name__}: {error}".split())) from None
        what = "is shorter than index.json says" if status == 416 else " ".join(str(error).split())
        raise UserError(
            f"{url}: {what}; check the address (config.yaml keeps none of its keys), your rights, and "
            "that the whole folder of shards (as whisper-lightning shards writes it) was uploaded"
        ) from None


def _size(url: str) -> int:
    with _asking(url):
        if _is_http(url):
            # Not HEAD: signed addresses admit only GET.
            with _get(url, "bytes=0-0") as response:
                field = "Content-Length" if response.status == 200 else "Content-Range"
                size = response.headers.get(field, "").rpartition("/")[2]
        else:
            filesystem, path = _filesystem(url)
            size = str(filesystem.size(path))
    if not size.isdecimal():
        raise UserError(f"{url}: the server does not say how long it is; use another server")
    return int(size)


def _blocks(url: str, offset: int, num_bytes: int) -> Iterator[bytes]:
    """Return the bytes of a file from `offset` on, up to `num_bytes` or until the connection drops."""
    with _asking(url):
        if not _is_http(url):
            filesystem, path = _filesystem(url)
            for start in range(offset, num_bytes, RANGE_BYTES):
                yield filesystem.cat_file(path, start=start, end=min(start + RANGE_BYTES, num_bytes))
            return
        with _get(url, f"bytes={offset}-{num_bytes - 1}") as response:
            skip = offset  # where a server ignores the range and sends the whole file
            if response.status == 206:
                skip = 0
                if not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
                    raise _DroppedError("the server sends another range than it was asked for")
            left = num_bytes - offset
            # `read1`: `read` would wait for a whole block, and lose what it has when the connection is reset.
            while left and (block := response.read1(min(BLOCK_BYTES, skip or left))):
                if skip:
                    skip -= len(block)
                else:
                    left -= len(block)
                    yield block


def _is_http(url: str) -> bool:
    return url.lower().startswith("http")


class _InTime(http.client.HTTPConnection):
    """A connection whose answer begins in time: the timeout of a socket begins anew with each byte."""

    def getresponse(self) -> http.client.HTTPResponse:
        """Wait for the answer's head, and no longer than a silent server is waited for."""
        assert self.sock is not None
        connection, late = self.sock, threading.Event()

        def end() -> None:
            late.set()
            with suppress(OSError):  # the other side was faster
                connection.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(TIMEOUT_SECONDS, end)
        timer.start()
        try:
            response = super().getresponse()
        except Exception:
            if not late.is_set():
                raise
        finally:
            timer.cancel()
        if late.is_set():
            raise TimeoutError("timed out before an answer had begun")
        return response


class _InTimeSecurely(_InTime, http.client.HTTPSConnection): ...


class _HTTPHandler(request.HTTPHandler):
    def http_open(self, req: request.Request) -> http.client.HTTPResponse:
        return self.do_open(_InTime, req)


class _HTTPSHandler(request.HTTPSHandler):
    def https_open(self, req: request.Request) -> http.client.HTTPResponse:
        return self.do_open(_InTimeSecurely, req)


def _get(url: str, byte_range: str) -> http.client.HTTPResponse:
    """Open a URL of http or https, redirected to such only: `urlopen` would follow to ftp: too."""
    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler,
        _HTTPHandler,
        _HTTPSHandler,
        request.HTTPDefaultErrorHandler,
        request.HTTPRedirectHandler,
        request.HTTPErrorProcessor,
        request.UnknownHandler,
    ):
        opener.add_handler(handler())
    headers = {"Range": byte_range, "Accept-Encoding": "identity"}
    asked = request.Request(quote(url, safe="/%:@!$&'()*+,;=~?[]"), headers=headers)
    response = opener.open(asked, timeout=TIMEOUT_SECONDS)
    assert isinstance(response, http.client.HTTPResponse)
    return response


def _filesystem(url: str) -> tuple[Any, str]:
    package = PACKAGES[urlsplit(url).scheme]
    try:
        import fsspec

        filesystem, path = fsspec.url_to_fs(url)
    except ImportError:
        raise UserError(f"{url}: this address is read with {package}; pip install fsspec {package}") from None
    return filesystem, path
