"""Folders of shards at a URL, through a cache that is verified, shared by processes, and bounded in size.

The cache names shards by their sha256. So files of the same name from two folders never meet, a changed folder is never
mixed with its old shards, and a shard that stands at two addresses is kept once.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from whisper_lightning.addresses import without_keys
from whisper_lightning.data.format import MAX_JSON_BYTES, FileInfo, index_files
from whisper_lightning.data.transfer import join, size_of, transfer
from whisper_lightning.errors import UserError
from whisper_lightning.files import replacing

TOUCH_SECONDS = 60.0
"""How exactly the cache knows when a shard was last used."""


def default_cache() -> Path:
    """Return the folder that downloads are kept in when none is named: the user's own."""
    return platformdirs.user_cache_path("whisper_lightning", appauthor=False)


@dataclass(frozen=True)
class RemoteFolder:
    """A folder of shards at a URL, read through a cache that processes share.

    Attributes:
        url: The folder, as `is_remote` accepts it.
        cache: Where downloads are kept.
        limit_bytes: What the shards of all folders in the cache may take; the least recently used leave.
        min_bytes_per_second: A server that sends less is given up.
    """

    url: str
    cache: Path
    limit_bytes: int
    min_bytes_per_second: float = 0.0

    def __str__(self) -> str:
        return without_keys(self.url)

    def fetch_index(self) -> Path:
        """Download index.json, and the files it lists unless they are here; return the local folder that holds them.

        The folder is named by what index.json says, and never changes.

        Raises:
            UserError: It cannot be read, is no index, or cannot be stored.
        """
        url = join(self.url, "index.json")
        with self._storing():
            num_bytes = size_of(url)
            if num_bytes > MAX_JSON_BYTES:
                raise UserError(f"{url}: {num_bytes} bytes, which is no list of shards; give the folder of the shards")
            buffer = io.BytesIO()
            transfer(url, num_bytes, buffer, self.min_bytes_per_second)
            content = buffer.getvalue()
            folder = self.cache / "indexes" / hashlib.sha256(content).hexdigest()
            folder.mkdir(parents=True, exist_ok=True)
            for file in self._listed(content):
                self._ensure(file, folder / file["name"])
            if not (folder / "index.json").is_file():
                with replacing(folder / "index.json", str(os.getpid())) as fresh:
                    fresh.write_bytes(content)
        return folder

    def read(self, shard: FileInfo, offset: int, num_bytes: int) -> bytes:
        """Read bytes of a shard, downloading it first where it is not in the cache.

        The file is not kept open: its space is free as soon as it leaves, and Windows can delete it.

        Raises:
            UserError: The shard cannot be downloaded, is not what index.json says, or cannot be stored.
        """
        path = self.cached(shard)
        with self._storing():
            while True:
                try:
                    with path.open("rb") as file:
                        stat = os.fstat(file.fileno())
                        if stat.st_size == shard["bytes"]:
                            file.seek(offset)
                            data = file.read(num_bytes)
                            if time.time() - stat.st_mtime > TOUCH_SECONDS:
                                with suppress(OSError):
                                    os.utime(path)
                            return data
                except FileNotFoundError:  # not yet, or no longer: another process may have needed the room
                    pass
                self._download(shard, path)

    def cached(self, shard: FileInfo) -> Path:
        """Return where a shard is, or would be, in the cache."""
        return self.cache / "shards" / f"{shard['sha256']}.tar"

    def _download(self, shard: FileInfo, path: Path) -> None:
        if shard["bytes"] > self.limit_bytes:
            raise UserError(
                f"{self}/{shard['name']}: {shard['bytes'] / 2**30:.3g} GiB is more than the cache may hold "
                f"({self.limit_bytes / 2**30:.3g} GiB); raise data.cache_gib"
            )
        self._ensure(shard, path)
        self._make_room(0, path)  # for what others have stored in the meantime

    def _ensure(self, file: FileInfo, target: Path) -> None:
        """Download a file to where it belongs, unless it is there; one process at a time, going on where one died."""
        parts = self.cache / "shards"
        parts.mkdir(parents=True, exist_ok=True)
        # The system frees the lock of a process that is killed.
        with FileLock(self._lock(file["sha256"])):
            if target.is_file() and target.stat().st_size == file["bytes"]:
                return
            part = parts / f"{file['sha256']}.part"
            found = ""
            for _ in range(2):
                kept = part.stat().st_size if part.exists() else 0
                self._make_room(max(0, file["bytes"] - kept), part)
                with part.open("ab") as out:
                    transfer(join(self.url, file["name"]), file["bytes"], out, self.min_bytes_per_second)
                    out.flush()
                    os.fsync(out.fileno())
                with part.open("rb") as whole:
                    found = hashlib.file_digest(whole, "sha256").hexdigest()
                if found == file["sha256"]:
                    part.replace(target)
                    return
                part.unlink()
        raise UserError(
            f"{self}/{file['name']}: its sha256 is {found[:12]}…, index.json says {file['sha256'][:12]}…: it was "
            "altered, or belongs to another index; upload the folder again"
        )

    def _lock(self, digest: str) -> Path:
        """Return the file that guards a download; two digits, so that not more than 256 of them lie about."""
        folder = self.cache / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{digest[:2]}.lock"

    def _make_room(self, num_bytes: int, wanted: Path) -> None:
        """Let the least recently used shards leave, and what is left of abandoned downloads, until so much fits."""
        with FileLock(self._lock("room")):
            files = []
            for path in (self.cache / "shards").iterdir():
                with suppress(FileNotFoundError):
                    stat = path.stat()
                    files.append((stat.st_mtime, stat.st_size, path))
            total = sum(size for _, size, _ in files)
            for _, size, path in sorted(files):
                if total + num_bytes <= self.limit_bytes:
                    break
                if path != wanted and self._remove(path):
                    total -= size

    def _remove(self, path: Path) -> bool:
        """Delete a file of the cache, unless it is in use: a download, or a shard that Windows has open."""
        try:
            if path.suffix == ".part":
                with FileLock(self._lock(path.name), timeout=0):
                    path.unlink(missing_ok=True)
            else:
                path.unlink(missing_ok=True)
        except (Timeout, PermissionError):
            return False
        return True

    def _listed(self, content: bytes) -> list[FileInfo]:
        """Return the files that index.json lists, which a remote folder must do."""
        try:
            files = index_files(json.loads(content))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self}/index.json: {error}; upload the folder again") from None
        if not files:
            raise UserError(
                f"{self}/index.json: has no checksums of index.npy and rejected.csv; run whisper-lightning shards "
                "again (finished shards are kept) and upload the folder"
            )
        return files

    @contextmanager
    def _storing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.cache}: cannot store what is downloaded ({error.strerror or error}); make room there, or "
                "choose another folder with data.cache_dir"
            ) from None
