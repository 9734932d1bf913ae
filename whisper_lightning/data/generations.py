"""The shards beside a CSV: a folder of its own for each build, so that nobody's change while they are read.

`train.shards` holds one folder per fingerprint of CSV and options, and one more for each time that it was mended. A
finished build is never changed. Who builds or reads one holds a lock in it, which the system frees when the process
dies; builds that nobody holds leave when another one is in use.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from whisper_lightning.audio.constants import AUDIO_SUFFIXES
from whisper_lightning.data.build import LOCK, ROWS_PER_SHARD, Recipe, fill, open_current, writing
from whisper_lightning.data.shards import ShardIndex
from whisper_lightning.data.source import is_table, read_source
from whisper_lightning.errors import UserError

logger = logging.getLogger(__name__)

REGISTRY = "registry.lock"
"""In `train.shards`; held for as long as builds are looked for, begun, taken or cleared away."""
_NAME = re.compile(r"[0-9a-f]{16}-([0-9]+)")


def open_csv(
    source: Path,
    audio_root: Path | None = None,
    columns: Sequence[str] | None = None,
    *,
    require_sentence: bool = True,
    num_workers: int | None = None,
    rows_per_shard: int = ROWS_PER_SHARD,
) -> ShardIndex:
    """Open the shards of a CSV in the folder beside it (`train.csv` in `train.shards`), building them if need be.

    So those of subtitles with their recording (`talk.srt` in `talk.srt.shards`), or of a folder of recordings (`talks`
    in `talks.shards`). They are built again when the source or options have changed, an audio file has, or a shard is
    cut or gone; a shard that is still good is taken over.

    Args:
        source: See `Recipe`.
        audio_root: Folder that audio paths of a CSV are relative to; the CSV's own by default.
        columns: Names of its audio and sentence column; found by default.
        require_sentence: Refuse a source without sentences. What is stored is the same.
        num_workers: Processes that decode; one per processor by default, 0 for this one.
        rows_per_shard: Rows of the CSV per shard.

    Raises:
        UserError: The CSV cannot be read, or shards cannot be written.
        Interrupted: SIGTERM or SIGUSR1 arrived while they were built.
    """
    if require_sentence:
        next(read_source(source, audio_root, columns, require_sentence=True), None)
    home = source.with_name(f"{source.stem if is_table(source) else source.name}.shards")
    recipe = Recipe(source, audio_root, columns, rows_per_shard)
    try:
        while (index := _take_or_build(home, recipe, num_workers)) is None:
            pass
    except OSError:
        # Only its owner can write there, which does not keep others from reading.
        index = _find_current(home, recipe.fingerprint)
        if index is None:
            with writing(home):
                raise
    return index


def holds_recordings(folder: Path) -> bool:
    """Say whether a folder holds audio, and no shards."""
    if (folder / "index.json").is_file() or _builds(folder):
        return False
    return any(path.suffix.lower() in AUDIO_SUFFIXES for path in folder.rglob("*"))


def open_folder(folder: Path) -> ShardIndex:
    """Open a folder of shards; of one that stands beside a CSV (`train.shards`), its newest build.

    Raises:
        UserError: It is none, or is damaged.
    """
    finished = [build for build in _builds(folder) if (build / "index.json").is_file()]
    if finished:
        folder = max(finished, key=lambda build: (build / "index.json").stat().st_mtime_ns)
    elif not (folder / "index.json").is_file():
        raise UserError(f"{folder}: not a folder of shards, since it has no index.json; nor is there audio in it")
    if _NAME.fullmatch(folder.name) and (folder.parent / REGISTRY).is_file():
        with suppress(OSError), FileLock(folder.parent / REGISTRY):
            return _hold(ShardIndex.open(folder))
    return ShardIndex.open(folder)


def _take_or_build(home: Path, recipe: Recipe, num_workers: int | None) -> ShardIndex | None:
    """Open the current build, or make one (or wait for the process that does) and give None."""
    with FileLock(home / REGISTRY):
        index = _find_current(home, recipe.fingerprint)
        if index is not None:
            if index.folder != home:
                _hold(index)
            _clear_away(home, index.folder)
            return index
        folder, earlier = _next_build(home, recipe.fingerprint)
        folder.mkdir(exist_ok=True)
        lock = FileLock(folder / LOCK)
        with suppress(Timeout):
            lock.acquire(timeout=0)
    if not lock.is_locked:
        logger.info("%s: another process builds these shards; waiting for it", folder)
        with lock:
            return None
    try:
        with writing(folder):
            fill(folder, recipe, num_workers, earlier)
        with suppress(OSError):  # whoever waits for it will find a finished build
            (folder / LOCK).unlink()
    finally:
        lock.release()
    if any(home.glob("*.tar")):
        logger.info("%s: the files that are not in a folder there are of an older version; delete them", home)
    return None


def _builds(home: Path, fingerprint: str = "") -> list[Path]:
    """Return the folders of builds, the older ones first; all, or those of one fingerprint."""
    found = []
    for path in home.iterdir() if home.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match and path.name.startswith(fingerprint[:16]) and path.is_dir():
            found.append((int(match[1]), path))
    return [path for _, path in sorted(found)]


def _find_current(home: Path, fingerprint: str) -> ShardIndex | None:
    """Open the newest build that is current; it may have been made in `home` itself, with the command `shards`."""
    candidates = [*reversed(_builds(home, fingerprint)), home]
    return next((index for each in candidates if (index := open_current(each, fingerprint)) is not None), None)


def _next_build(home: Path, fingerprint: str) -> tuple[Path, Path | None]:
    """Return the folder to build in, and that of the build before it: an unfinished one is gone on with."""
    builds: list[Path | None] = [None, *_builds(home, fingerprint)]
    last = builds[-1]
    if last is not None and not (last / "index.json").exists():
        return last, builds[-2]
    number = 1 if last is None else int(last.name.partition("-")[2]) + 1
    return home / f"{fingerprint[:16]}-{number}", last


def _hold(index: ShardIndex) -> ShardIndex:
    """Keep a build from being cleared away while this process has the index."""
    lease = FileLock(index.folder / f"reader-{os.getpid()}-{secrets.token_hex(4)}.lock", thread_local=False)
    lease.acquire(timeout=0)
    index.lease = lease
    return index


def _clear_away(home: Path, current: Path) -> None:
    """Remove what dead readers have left, and builds that nobody has open."""
    for folder in _builds(home):
        if not _in_use(folder) and folder != current:
            (folder / "index.json").unlink(missing_ok=True)  # first: nobody shall take half of it for a build
            shutil.rmtree(folder, ignore_errors=True)


def _in_use(folder: Path) -> bool:
    used = False
    for path in folder.glob("*.lock"):
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            used = True
            continue
        lock.release()
        path.unlink(missing_ok=True)
    return used
