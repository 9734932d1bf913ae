"""Files that a kill or a power cut leaves as they were or as they should be, never in between."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint so that a kill at any moment leaves the old file or the new one, whole.

    Lightning's own writer goes through `TMPDIR`; from another file system the final move is a copy that can be cut.

    Raises:
        OSError: The disk is full, say; the old file is untouched. torch may raise its own errors for it.
    """
    fresh = path.with_name(path.name + ".new")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with fresh.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Bring a folder's entries, or a file's bytes, to the disk. Windows opens no folders and needs none of it."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
