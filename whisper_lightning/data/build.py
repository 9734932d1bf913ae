"""Tables of utterances to folders of shards: in parallel, restartable, the same bytes for any number of workers."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import signal
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import soundfile
import torch
from tqdm import tqdm

from whisper_lightning.audio import SAMPLE_RATE_HZ, AudioError, load_audio
from whisper_lightning.data.manifest import READING, Row, read_manifest
from whisper_lightning.data.remote import FileInfo
from whisper_lightning.data.shards import BLOCK_BYTES, FORMAT_VERSION, RECORD, Rejected, ShardIndex, json_offset, padded
from whisper_lightning.data.transfer import local_path
from whisper_lightning.errors import UserError

ROWS_PER_SHARD = 500
"""Rows of the CSV that one shard is made of: about 50 MB of FLAC."""


class _Task(NamedTuple):
    folder: Path
    number: int
    rows: list[Row]
    require_sentence: bool
    fingerprint: str


def build_shards(
    source: Path,
    folder: Path,
    *,
    audio_root: Path | None = None,
    columns: Sequence[str] | None = None,
    require_sentence: bool = True,
    num_workers: int | None = None,
    rows_per_shard: int = ROWS_PER_SHARD,
) -> ShardIndex:
    """Turn a CSV into a folder of shards, or open the folder when it is current.

    Shard i holds the usable ones of the CSV's i-th `rows_per_shard` rows, so its bytes do not depend on the number of
    workers. A killed build keeps its finished shards. A folder is current while CSV and options are the same and no
    rejected audio file has changed since.

    Args:
        source: The CSV.
        folder: Where the shards go.
        audio_root: Folder that audio paths are relative to; the CSV's own by default.
        columns: Names of the audio and the sentence column; found by default.
        require_sentence: Reject rows without a sentence.
        num_workers: Processes that decode; one per processor by default, 0 for this one.
        rows_per_shard: Rows of the CSV per shard.

    Raises:
        UserError: The CSV cannot be read, `audio_root` is not local, or the folder cannot be written.
    """
    if audio_root is not None:
        audio_root = local_path("data.audio_root", str(audio_root))
    options = {
        "audio_root": None if audio_root is None else str(audio_root),
        "columns": None if columns is None else list(columns),
        "require_sentence": require_sentence,
        "rows_per_shard": rows_per_shard,
    } | {"version": FORMAT_VERSION, "reading": READING}
    fingerprint = _fingerprint(source, options)
    if (current := _open_current(folder, fingerprint)) is not None:
        return current
    num_rows = sum(1 for _ in read_manifest(source, audio_root, columns, require_sentence))
    if num_rows == 0:
        raise UserError(f"{source}: there are no rows under the header")
    num_shards = -(-num_rows // rows_per_shard)
    workers = min(num_shards, (os.cpu_count() or 1) if num_workers is None else num_workers)
    rows = read_manifest(source, audio_root, columns, require_sentence)
    chunks = iter(lambda: list(islice(rows, rows_per_shard)), [])
    tasks = (_Task(folder, number, chunk, require_sentence, fingerprint) for number, chunk in enumerate(chunks))
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # It must not stand beside shards that it does not describe, should this build be killed.
        (folder / "index.json").unlink(missing_ok=True)
        with tqdm(total=num_rows, desc=f"{source.name} to shards", unit="utterance", unit_scale=True) as bar:
            for number in _run(tasks, workers):
                bar.update(min(rows_per_shard, num_rows - number * rows_per_shard))
        _write_index(folder, num_shards, num_rows, fingerprint, options)
    return ShardIndex.open(folder)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Say in one line why shards could not be written."""
    try:
        yield
    except BrokenProcessPool:
        raise UserError(
            f"{folder}: a process that built shards was killed (out of memory?); start again, finished shards are kept"
        ) from None
    except OSError as error:
        raise UserError(
            f"{folder}: cannot write shards ({error.strerror or error}); finished ones are kept. "
            "Make room or choose a writable folder, then start again"
        ) from None


def _fresh(path: Path) -> Path:
    """Name an unfinished file; two builds of one folder at a time do not share it."""
    return path.with_name(f"{path.name}.{os.getpid()}.new")


def _fingerprint(source: Path, options: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    with source.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _open_current(folder: Path, fingerprint: str) -> ShardIndex | None:
    """Open a folder that was built from the same CSV, is whole, and whose rejected files have not changed."""
    try:
        info = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if info.get("fingerprint") != fingerprint or "files" not in info:  # without the sums, which remote reading needs
        return None
    if any(_load_record(folder, number, fingerprint) is None for number in info["shards_with_rejected"]):
        return None
    try:
        return ShardIndex.open(folder)
    except UserError:  # a shard is cut or gone; it is built again
        return None


def _load_record(folder: Path, number: int, fingerprint: str) -> dict[str, Any] | None:
    """Give the record of a finished shard, or None when it is to be built (again)."""
    try:
        record: dict[str, Any] = json.loads((folder / f"{number:06d}.json").read_text(encoding="utf-8"))
        tar_bytes = (folder / f"{number:06d}.tar").stat().st_size if record["table"] else 0
    except (OSError, ValueError, KeyError):
        return None
    if record["fingerprint"] != fingerprint or record["bytes"] != tar_bytes:
        return None
    mended = any(_stat(path) != stat for path, stat in record["rejected_files"])
    return None if mended else record


def _stat(path: str) -> list[int] | None:
    try:
        stat = Path(path).stat()
    except (OSError, ValueError):
        return None
    return [stat.st_size, stat.st_mtime_ns]


def _run(tasks: Iterator[_Task], workers: int) -> Iterator[int]:
    """Build shards, few at a time, and give the number of each when it is finished."""
    if workers <= 1:
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)  # resampling is many small products: measured 4 to 7 times slower on 2 busy cores
        try:
            yield from (_build_shard(task) for task in tasks)
        finally:
            torch.set_num_threads(num_threads)
        return
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(stop,)) as pool:
        pending: set[Future[int]] = set()
        try:
            for task in tasks:
                pending.add(pool.submit(_build_shard, task))
                if len(pending) > 2 * workers:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            yield from (future.result() for future in pending)
        except BaseException:
            stop.set()  # workers would finish their shard first, which may take a minute
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_stop: Event | None = None


def _start_worker(stop: Event) -> None:
    global _stop
    _stop = stop
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _build_shard(task: _Task) -> int:
    """Build one shard and its record, unless they are there."""
    folder, number, fingerprint = task.folder, task.number, task.fingerprint
    if _load_record(folder, number, fingerprint) is not None:
        return number
    path = folder / f"{number:06d}.tar"
    fresh = _fresh(path)
    try:
        table, rejected, files = _write_tar(fresh, task)
        with fresh.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        num_bytes = fresh.stat().st_size
        if table:
            fresh.replace(path)
    except FileNotFoundError:
        # A build of the same folder beside this one was first and has cleared up.
        if _load_record(folder, number, fingerprint) is None:
            raise
        return number
    finally:
        fresh.unlink(missing_ok=True)
    if not table:
        sha256, num_bytes = "", 0
        path.unlink(missing_ok=True)
    record = {
        "fingerprint": fingerprint,
        "bytes": num_bytes,
        "sha256": sha256,
        "table": table,
        "rejected": [asdict(row) for row in rejected],
        "rejected_files": files,
    }
    _write_json(folder / f"{number:06d}.json", record)
    return number


def _write_tar(path: Path, task: _Task) -> tuple[list[tuple[int, ...]], list[Rejected], list[tuple[str, Any]]]:
    """Give the table of the utterances written, the rows left out, and the state of the files left out."""
    table: list[tuple[int, ...]] = []
    rejected: list[Rejected] = []
    files = []
    with path.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for row in task.rows:
                if _stop is not None and _stop.is_set():
                    raise InterruptedError("stopped")
                before = _stat(row.path)
                try:
                    table.append(_add(tar, task.number, row, task.require_sentence))
                except AudioError as error:
                    rejected.append(Rejected(row.row, row.audio, error.reason, str(error)))
                    files.append((row.path, before))
                except _RowError as error:
                    rejected.append(Rejected(row.row, row.audio, *error.args))
        file.flush()
        os.fsync(file.fileno())
    return table, rejected, files


class _RowError(ValueError):
    """A row is wrong in itself; the arguments are reason and detail."""


def _add(tar: tarfile.TarFile, shard: int, row: Row, require_sentence: bool) -> tuple[int, ...]:
    """Add one utterance to a tar and give its entry in the table."""
    if row.reason:
        raise _RowError(row.reason, row.problem)
    if require_sentence and not row.sentence:
        raise _RowError("empty sentence", "there is no sentence")
    waveform = load_audio(Path(row.path))
    flac = io.BytesIO()
    soundfile.write(flac, waveform.clamp(-1, 1).numpy(), SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    text = {"row": row.row, "audio": row.audio, "sentence": row.sentence, "num_samples": len(waveform)}
    encoded = json.dumps(text | {"extra": row.extra}, ensure_ascii=False).encode()
    key = f"{row.row:08d}"
    offset = tar.offset + BLOCK_BYTES
    for suffix, data in (("flac", flac.getvalue()), ("json", encoded)):
        member = tarfile.TarInfo(f"{key}.{suffix}")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    num_bytes = flac.getbuffer().nbytes
    assert tar.offset == json_offset(offset, num_bytes) + padded(len(encoded)), "an unexpected layout of the tar"
    return (shard, offset, num_bytes, len(encoded), len(waveform), len(row.sentence.encode()), row.row)


def _file_info(path: Path) -> FileInfo:
    with path.open("rb") as file:
        return {
            "name": path.name,
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _write_json(path: Path, value: Any) -> None:
    fresh = _fresh(path)
    fresh.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    fresh.replace(path)


def _write_index(folder: Path, num_shards: int, num_rows: int, fingerprint: str, options: dict[str, Any]) -> None:
    """Join the records into index.npy, rejected.csv and, last, index.json."""
    shards, tables, with_rejected = [], [], []
    rejected: list[dict[str, Any]] = []
    for number in range(num_shards):
        record = _load_record(folder, number, fingerprint)
        assert record is not None, f"shard {number} is missing"
        tables.append(np.array([tuple(entry) for entry in record["table"]], dtype=RECORD))
        name = f"{number:06d}.tar"
        shards.append({"name": name, "bytes": record["bytes"], "sha256": record["sha256"]})
        rejected += record["rejected"]
        if record["rejected"]:
            with_rejected.append(number)
    table = np.concatenate(tables)
    fresh = _fresh(folder / "index.npy")
    with fresh.open("wb") as file:
        np.save(file, table)
    fresh.replace(folder / "index.npy")
    columns = ["row", "value", "reason", "detail"]
    fresh = _fresh(folder / "rejected.csv")
    pd.DataFrame(rejected, columns=columns).to_csv(fresh, index=False, encoding="utf-8")
    fresh.replace(folder / "rejected.csv")
    files = [_file_info(folder / name) for name in ("index.npy", "rejected.csv")]
    info = {
        "version": FORMAT_VERSION,
        "fingerprint": fingerprint,
        "options": options,
        "num_rows": num_rows,
        "num_utterances": len(table),
        "total_seconds": int(table["num_samples"].sum()) / SAMPLE_RATE_HZ,
        "rejected": dict(Counter(row["reason"] for row in rejected)),
        "shards_with_rejected": with_rejected,
        "files": files,
        "shards": shards,
    }
    _write_json(folder / "index.json", info)
    kept = {Path(str(shard["name"])).stem for shard in shards}
    for path in folder.iterdir():
        surplus = path.suffix in (".tar", ".json") and path.stem.isdigit() and path.stem not in kept
        if surplus or (path.suffix == ".new" and ".tar." in path.name):
            path.unlink(missing_ok=True)
