"""Files that are there as a whole or not at all, and checkpoints, which are known to be whole before they are used.

A checkpoint is a ZIP archive, as `torch.save` writes it. Its checksum stands in the archive's comment, the place that
the format has for remarks, so that it can neither be lost nor belong to another file; `torch.load` does not mind it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch

from whisper_lightning.errors import UserError

logger = logging.getLogger(__name__)

COMMENT = re.compile(rb"\x47\x00sha256:([0-9a-f]{64})")
"""What ends a checkpoint: the comment's length (71) and the comment. `torch.save` writes the length 0."""
COMMENT_BYTES = 73
BLOCK_BYTES = 1 << 20


@contextmanager
def replacing(path: Path, writer: str = "") -> Iterator[Path]:
    """Return a place beside `path` for a file or folder that takes its place when the block has ended without an error.

    A kill at any moment leaves what was at `path`, or what is new, whole; of a folder the old one may be left, between
    two renamings, at `NAME.old`.

    Args:
        path: What is to be written.
        writer: Tells several processes apart that may write it at once.
    """
    fresh = path.with_name(".".join(filter(None, (path.name, writer, "new"))))
    remove(fresh)  # a kill's
    try:
        yield fresh
        if path.is_dir():
            old = path.with_name(f"{path.name}.old")
            remove(old)
            path.rename(old)
            fresh.rename(path)
            remove(old)
        else:
            fresh.replace(path)
    finally:
        remove(fresh)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


class _HashedFile:
    """Hashes what is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.sha256.update(content)
        return self._file.write(content)

    def flush(self) -> None:
        self._file.flush()


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint with its checksum; the one that was there becomes `previous.ckpt`.

    A kill at any moment leaves the old one or the new one at `path`, or, between two renamings, the old one at
    `previous.ckpt` alone: `find_checkpoint` knows. Lightning's own writer goes through `TMPDIR`; from another file
    system its final move is a copy that can be cut.

    Raises:
        OSError: The disk is full, say; the old file is untouched. torch may raise its own errors for it.
    """
    path.parent.mkdir(exist_ok=True)  # no parents: a run's folder that is gone shall not come back without its run
    with replacing(path) as fresh:
        with fresh.open("wb") as file:
            hashed = _HashedFile(file)
            torch.save(checkpoint, cast("IO[bytes]", hashed))
            comment = b"sha256:" + hashed.sha256.hexdigest().encode()
            file.seek(-2, os.SEEK_END)
            file.write(len(comment).to_bytes(2, "little") + comment)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            path.replace(previous_checkpoint(path))
    sync(path.parent)


def previous_checkpoint(path: Path) -> Path:
    """Return the place of the checkpoint before the one at `path`."""
    return path.with_name("previous.ckpt")


def find_damage(path: Path) -> str | None:
    """Say what is wrong with a checkpoint file: None when each bit of it is as it was written."""
    size = path.stat().st_size
    if size == 0:
        return "is empty"
    with path.open("rb") as file:
        file.seek(max(0, size - COMMENT_BYTES))
        match = COMMENT.fullmatch(file.read())
        if match is None:
            return "has no checksum at its end: it is cut, damaged, or not a checkpoint of this program"
        file.seek(0)
        digest, left = hashlib.sha256(), size - COMMENT_BYTES
        while left > 0:
            block = file.read(min(left, BLOCK_BYTES))
            digest.update(block)
            left -= len(block)
        digest.update(b"\x00\x00")  # the comment's length, as torch wrote it
    return None if digest.hexdigest().encode() == match[1] else "is damaged: its checksum is not that of its content"


def find_whole(path: Path) -> Path | None:
    """Return the checkpoint to go on from: that at `path`, or the one before it where that one is missing or damaged.

    Returns:
        None where neither is there.

    Raises:
        UserError: There are only damaged ones.
    """
    faults: list[str] = []
    for each in (path, previous_checkpoint(path)):
        fault = find_damage(each) if each.is_file() else "is missing"
        if fault is None:
            if faults:
                logger.warning("%s; going on from %s, which is whole", faults[0], each)
            return each
        faults.append(f"{each} {fault}")
    if all(fault.endswith("is missing") for fault in faults):
        return None
    best = path.parent.parent / "best"
    raise UserError(
        f"--ckpt_path: {'; '.join(faults)}. Start anew from the best model so far: --model.checkpoint {best} "
        "--model.random_weights false and a new --trainer.default_root_dir"
    )


def read_checkpoint(path: Path, *, verify: bool = True) -> dict[str, Any]:
    """Open a checkpoint file; its tensors are read when they are used.

    Args:
        path: The file.
        verify: Check it against its checksum first.

    Raises:
        UserError: It is damaged, or no checkpoint; nothing that stands in it is run.
    """
    damage = find_damage(path) if verify else None
    if damage:
        previous = previous_checkpoint(path)
        whole = previous != path and previous.is_file() and find_damage(previous) is None
        raise UserError(f"{path} {damage}" + (f". The one before it is whole: {previous}" if whole else ""))
    try:
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
        # torch's own words advise to open it all the same.
        raise UserError(f"{path} is no checkpoint: it holds other things than numbers and names") from None
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise UserError(f"{path} is no checkpoint of a run: it has no state_dict")
    return checkpoint


def sync(path: Path) -> None:
    """Bring a folder's entries, or a file's bytes, to the disk. Windows opens no folders and needs none of it."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
