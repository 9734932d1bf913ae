"""A run's folder belongs to one run at a time: a lock that ends with its process, and a note of who holds it."""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from whisper_lightning.errors import UserError, is_full_disk

logger = logging.getLogger(__name__)

RANKS = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
"""What torchrun, SLURM, LSF and Lightning tell a process of its place among those of a run; the first is 0 in all."""
NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}
PATIENCE_SECONDS = 1.0
"""A lock is taken a moment before its holder has written who it is."""


def is_first_process() -> bool:
    """Say whether this is the first or only process of a run; known before the run's processes know each other."""
    return all(int(os.environ.get(name) or 0) == 0 for name in RANKS)


def _us() -> dict[str, Any]:
    return {"host": platform.node(), "pid": os.getpid()}


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Hold a run's folder, making it if need be; nobody else can until the block or the process ends.

    Only the first process of a run holds it. An error inside the block for which the folder itself is the reason
    (moved, deleted, replaced, read-only) is raised as that.

    Raises:
        UserError: Another process holds it, or it cannot be written.
    """
    lock = FileLock(folder / "run.lock", timeout=PATIENCE_SECONDS)
    try:
        _claim(folder, lock)
        try:
            yield
        except Exception as error:
            if not is_full_disk(error):
                check_folder(folder)
            raise
    finally:
        with suppress(OSError):  # whatever became of the folder
            if _is_ours(_holder(folder)):
                (folder / "run.json").unlink()
        lock.release()


def check_folder(folder: Path) -> None:
    """Check that a run's folder, which this process holds, is still there and can be written.

    Raises:
        UserError: It cannot; what is whole is said.
    """
    whole = "The last checkpoint is whole: when the folder is as it was, continue with --ckpt_path last"
    if not folder.is_dir():
        what = "is a file now" if folder.exists() else "is gone: moved or deleted"
        raise UserError(f"trainer.default_root_dir: {folder} {what}. {whole}")
    holder = _holder(folder)
    if not _is_ours(holder):
        what = f"now belongs to {_named(holder)}" if holder else "is another folder now: the run's was moved or deleted"
        raise UserError(f"trainer.default_root_dir: {folder} {what}. {whole}")
    probe = folder / "run.probe"
    try:
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        reason = f"can no longer be written ({error.strerror or error})"
        raise UserError(f"trainer.default_root_dir: {folder} {reason}. {whole}") from None


def _claim(folder: Path, lock: FileLock) -> None:
    """Take the lock and note who has it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _take(lock)
        left = _holder(folder)
        note = _us() | {"since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
        (folder / "run.json").write_text(json.dumps(note), encoding="utf-8")
    except Timeout:
        raise UserError(_occupied(folder)) from None
    except OSError as error:
        if is_full_disk(error):
            raise
        raise UserError(
            f"trainer.default_root_dir: {folder} cannot be written ({error.strerror or error}); "
            "choose another folder with --trainer.default_root_dir"
        ) from None
    if left:
        logger.info("%s: %s ended without a word; nobody works there now", folder, _named(left))


def _take(lock: FileLock) -> None:
    try:
        lock.acquire()
    except OSError as error:
        if isinstance(error, Timeout) or error.errno not in NO_LOCKS:
            raise
        logger.warning("%s: no locks on this file system; see to it that no second run works there", lock.lock_file)


def _holder(folder: Path) -> dict[str, Any] | None:
    """Read who holds a folder."""
    try:
        holder = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return holder if isinstance(holder, dict) else None


def _is_ours(holder: dict[str, Any] | None) -> bool:
    return holder is not None and holder.items() >= _us().items()


def _named(holder: dict[str, Any] | None) -> str:
    if holder is None:
        return "another process"
    return f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')},"


def _occupied(folder: Path) -> str:
    holder = _holder(folder)
    message = (
        f"trainer.default_root_dir: {folder} is in use by {_named(holder)} which is still running; wait for it or stop "
        "it, or choose another folder with --trainer.default_root_dir"
    )
    if holder is None or holder.get("host") == platform.node():
        return message
    return f"{message}. Where that machine is off or gone, delete {folder / 'run.lock'}"
