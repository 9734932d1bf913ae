"""Tables of utterances to folders of shards: in parallel, restartable, the same bytes for any number of workers."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from filelock import FileLock
from tqdm import tqdm

from whisper_lightning.data.format import FORMAT_VERSION
from whisper_lightning.data.manifest import READING, Row
from whisper_lightning.data.shards import ShardIndex
from whisper_lightning.data.source import identity, read_source
from whisper_lightning.data.workers import starting_workers
from whisper_lightning.data.write import Task, build_shard, has_other_audio, load_record, start_worker, write_index
from whisper_lightning.errors import Interrupted, UserError, is_full_disk

ROWS_PER_SHARD = 500
"""Rows of the CSV that one shard is made of: about 50 MB of FLAC."""
LOCK = "build.lock"
"""Held by who builds a folder, and gone when it is finished."""


@dataclass(frozen=True)
class Recipe:
    """All that decides what shards of a CSV hold, besides the audio. How they will be used does not.

    Attributes:
        source: A CSV, subtitles beside a recording, or a folder of recordings: see `read_source`.
        audio_root: Folder that audio paths of a CSV are relative to; the CSV's own by default.
        columns: Names of its audio and sentence column; found by default.
        rows_per_shard: Shard i holds the readable ones of the CSV's i-th `rows_per_shard` rows, so its bytes do not
            depend on the number of workers.
    """

    source: Path
    audio_root: Path | None = None
    columns: Sequence[str] | None = None
    rows_per_shard: int = ROWS_PER_SHARD

    @property
    def options(self) -> dict[str, Any]:
        """All but the CSV's content, as index.json keeps it."""
        return {
            "audio_root": None if self.audio_root is None else str(self.audio_root),
            "columns": None if self.columns is None else list(self.columns),
            "rows_per_shard": self.rows_per_shard,
            "version": FORMAT_VERSION,
            "reading": READING,
        }

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the CSV and the options."""
        digest = hashlib.sha256(json.dumps(self.options, sort_keys=True).encode())
        for block in identity(self.source):
            digest.update(block)
        return digest.hexdigest()

    def rows(self) -> Iterator[Row]:
        """Read the source's rows, sentences or not."""
        return read_source(self.source, self.audio_root, self.columns, require_sentence=False)


def build_shards(
    source: Path,
    folder: Path,
    audio_root: Path | None = None,
    columns: Sequence[str] | None = None,
    *,
    num_workers: int | None = None,
    rows_per_shard: int = ROWS_PER_SHARD,
) -> ShardIndex:
    """Turn a CSV into shards in a folder of the caller's choice, or open the folder when it holds them.

    A finished folder is not changed any more, because somebody may be reading it.

    Args:
        source: The CSV.
        folder: Where the shards go.
        audio_root: Folder that audio paths are relative to; the CSV's own by default.
        columns: Names of the audio and the sentence column; found by default.
        num_workers: Processes that decode; one per processor by default, 0 for this one.
        rows_per_shard: Rows of the CSV per shard.

    Raises:
        UserError: The CSV cannot be read, or the folder cannot be written or holds other shards.
        Interrupted: SIGTERM or SIGUSR1 arrived.
    """
    recipe = Recipe(source, audio_root, columns, rows_per_shard)
    if (index := _open_finished(folder, recipe)) is not None:
        return index
    with writing(folder), FileLock(folder / LOCK):
        if (index := _open_finished(folder, recipe)) is None:  # a build beside this one may have been first
            fill(folder, recipe, num_workers)
            index = ShardIndex.open(folder)
        with suppress(OSError):  # whoever waits for it will find a finished folder
            (folder / LOCK).unlink()
    return index


def _open_finished(folder: Path, recipe: Recipe) -> ShardIndex | None:
    """Open a folder unless it is still to be built; refuse one that holds something else."""
    index = open_current(folder, recipe.fingerprint)
    if index is None and (folder / "index.json").exists():
        raise UserError(
            f"{folder}: holds other shards: of another CSV, of other options, or a shard or an audio file has "
            "changed; choose another folder, or delete its index.json to have it built anew there"
        )
    return index


def fill(folder: Path, recipe: Recipe, num_workers: int | None = None, earlier: Path | None = None) -> None:
    """Build what is missing in a folder without an index, then its index. The caller holds the folder's lock.

    A killed build keeps its finished shards.

    Raises:
        UserError: The CSV has no rows, cannot be read, or changes meanwhile.
        Interrupted: SIGTERM or SIGUSR1 arrived.
    """
    rows_per_shard = recipe.rows_per_shard
    num_rows = sum(1 for _ in recipe.rows())
    if num_rows == 0:
        raise UserError(f"{recipe.source}: there are no rows in it")
    num_shards = -(-num_rows // rows_per_shard)
    workers = min(num_shards, (os.cpu_count() or 1) if num_workers is None else num_workers)
    rows = recipe.rows()
    chunks = iter(lambda: list(islice(rows, rows_per_shard)), [])
    tasks = (Task(folder, number, chunk, recipe.fingerprint, earlier) for number, chunk in enumerate(chunks))
    bar = tqdm(total=num_rows, desc=f"{recipe.source.resolve().name} to shards", unit="utterance", unit_scale=True)
    with _interruptible(), bar:
        for number in _run(tasks, workers, recipe):
            bar.update(min(rows_per_shard, num_rows - number * rows_per_shard))
    if Recipe(recipe.source, recipe.audio_root, recipe.columns, rows_per_shard).fingerprint != recipe.fingerprint:
        raise UserError(f"{recipe.source}: has changed while shards were built of it; start again")
    description = {"fingerprint": recipe.fingerprint, "options": recipe.options, "num_rows": num_rows}
    write_index(folder, num_shards, description)


def open_current(folder: Path, fingerprint: str) -> ShardIndex | None:
    """Open a folder that was built from the same CSV, is whole, and whose audio has not changed."""
    try:
        info = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        if info["fingerprint"] != fingerprint or "files" not in info:  # without the sums, which remote reading needs
            return None
        if any(load_record(folder, number, fingerprint) is None for number in info["shards_with_rejected"]):
            return None
        others = set(range(len(info["shards"]))).difference(info["shards_with_rejected"])
        if any(has_other_audio(folder, number) for number in sorted(others)):
            return None
        return ShardIndex.open(folder)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # UserError too: a shard is cut or gone
        return None


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say in one line why shards could not be written."""
    try:
        yield
    except OSError as error:
        remedy = (
            "finished ones are kept. Make room, then start again"
            if is_full_disk(error)
            else "build them elsewhere, whisper-lightning shards CSV FOLDER, and give FOLDER in place of the CSV"
        )
        raise UserError(f"{folder}: cannot write shards ({error.strerror or error}); {remedy}") from None


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let the signals of a cluster end a build as Ctrl-C does: at once, its workers with it, finished shards kept."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted("stopped while shards were built; start again, finished ones are kept", 75)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    before = [signal.signal(number, stop) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _run(tasks: Iterator[Task], workers: int, recipe: Recipe) -> Iterator[int]:
    """Build shards, few at a time, and give the number of each when it is finished."""
    if workers <= 1:
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)  # resampling is many small products: measured 4 to 7 times slower on 2 busy cores
        try:
            yield from (build_shard(task) for task in tasks)
        finally:
            torch.set_num_threads(num_threads)
        return
    context = multiprocessing.get_context("spawn")
    with starting_workers():  # this already starts Python's resource tracker, which a SIGUSR1 would kill
        stop, places = context.Event(), context.Array("q", 2 * workers)
    processes: set[BaseProcess] = set()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker, initargs=(stop, places))
    try:
        with pool:
            pending: set[Future[int]] = set()
            try:
                for task in tasks:
                    with starting_workers():
                        pending.add(pool.submit(build_shard, task))
                    processes.update(multiprocessing.active_children())
                    if len(pending) > 2 * workers:
                        done, pending = wait(pending, return_when=FIRST_COMPLETED)
                        yield from (future.result() for future in done)
                yield from (future.result() for future in pending)
            except BaseException:
                stop.set()  # workers would finish their shard first, which may take a minute
                pool.shutdown(cancel_futures=True)  # and wait until all have ended
                raise
    except BrokenProcessPool:
        killed = {process.pid for process in processes if process.exitcode not in (None, 0, -signal.SIGTERM)}
        rows = {row for pid, row in zip(places[::2], places[1::2], strict=True) if pid in killed}
        raise UserError(_killed(recipe, rows)) from None


def _killed(recipe: Recipe, rows: set[int]) -> str:
    """Say which files were being read by processes that somebody has killed."""
    audio = ", ".join(f"{row.audio} (row {row.row})" for row in recipe.rows() if row.row in rows)
    return (
        f"{recipe.source}: a process that built shards was killed (out of memory?){audio and f' at {audio}'}; "
        "finished shards are kept: start again, or take that row out if it ends there again"
    )
