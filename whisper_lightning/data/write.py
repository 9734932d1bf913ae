"""What a build writes: the tar of each shard, the record beside it that lets a killed build go on, the index."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import shutil
import tarfile
import zlib
from collections import Counter
from dataclasses import asdict
from multiprocessing.sharedctypes import SynchronizedArray
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import soundfile
import torch

from whisper_lightning.audio.constants import SAMPLE_RATE_HZ
from whisper_lightning.audio.decoders import AudioError
from whisper_lightning.audio.read import load_audio
from whisper_lightning.audio.stretches import Cutter
from whisper_lightning.data.format import BLOCK_BYTES, FORMAT_VERSION, RECORD, FileInfo, Rejected, json_offset, padded
from whisper_lightning.data.manifest import Row
from whisper_lightning.data.workers import obey_the_main_process
from whisper_lightning.errors import UserError
from whisper_lightning.files import replacing
from whisper_lightning.text import marks


class Task(NamedTuple):
    """A shard to be built.

    Attributes:
        folder: Where it goes.
        number: Which one it is.
        rows: The rows of the CSV that it is made of.
        fingerprint: Of CSV and options.
        earlier: An earlier build of the same, whose shard is taken over where it is still good.
    """

    folder: Path
    number: int
    rows: list[Row]
    fingerprint: str
    earlier: Path | None = None


_States = list[tuple[str, list[int] | None]]
"""Paths, each with size and time of change."""

_stop: Event | None = None
_places: SynchronizedArray[int] | None = None
_place = 0


def start_worker(stop: Event, places: SynchronizedArray[int]) -> None:
    """Prepare a process that builds shards until `stop` is set.

    Args:
        stop: Set when it shall end.
        places: Two numbers for each process, from 0: its id, and the row that it is at.
    """
    global _stop, _places, _place
    _stop, _places = stop, places
    with places.get_lock():
        _place = list(places[::2]).index(0)
        places[2 * _place] = os.getpid()
    torch.set_num_threads(1)
    obey_the_main_process()


def build_shard(task: Task) -> int:
    """Build one shard and its record, unless they are there; return its number."""
    folder, number, fingerprint = task.folder, task.number, task.fingerprint
    if load_record(folder, number, fingerprint) is not None or _take_over(task):
        return number
    path = folder / f"{number:06d}.tar"
    with replacing(path, _writer()) as fresh:
        table, rejected, files, rejected_files = _write_tar(fresh, task)
        tar = describe_file(fresh)
    if not table:
        path.unlink()
    record = {
        "fingerprint": fingerprint,
        "bytes": tar["bytes"] if table else 0,
        "sha256": tar["sha256"] if table else "",
        "table": table,
        "rejected": [asdict(row) for row in rejected],
        "files": files,
        "rejected_files": rejected_files,
        "marks": sorted(set[str]().union(*(marks(row.sentence) for row in task.rows))),
    }
    _write_json(folder / f"{number:06d}.json", record)
    return number


def load_record(folder: Path, number: int, fingerprint: str) -> dict[str, Any] | None:
    """Return the record of a finished shard, or None when it is to be built (again)."""
    try:
        record: dict[str, Any] = json.loads((folder / f"{number:06d}.json").read_text(encoding="utf-8"))
        tar_bytes = (folder / f"{number:06d}.tar").stat().st_size if record["table"] else 0
        if record["fingerprint"] != fingerprint or record["bytes"] != tar_bytes or "marks" not in record:
            return None
        mended = any(_state(path) != state for path, state in record["rejected_files"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return None if mended or has_other_audio(folder, number) else record


def has_other_audio(folder: Path, number: int) -> bool:
    """Say whether an audio file that a shard holds has been replaced since, by size and time of change.

    One that is not there any more is no reason to build: whoever has the shards may have deleted or moved the audio.
    """
    try:
        files = json.loads((folder / f"{number:06d}.json").read_text(encoding="utf-8"))["files"]
        return any(_state(path) not in (None, state) for path, state in files)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # of an earlier version, or uploaded without
        return False


def _writer() -> str:
    return str(os.getpid())


def _write_json(path: Path, value: Any) -> None:
    with replacing(path, _writer()) as fresh:
        fresh.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def describe_file(path: Path) -> FileInfo:
    """Return name, size and sha256 of a file."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256}


def _take_over(task: Task) -> bool:
    """Let a shard of the earlier build stand here too, on the same disk blocks if the file system can."""
    if task.earlier is None:
        return False
    record = load_record(task.earlier, task.number, task.fingerprint)
    if record is None:
        return False
    path = task.folder / f"{task.number:06d}.tar"
    if record["table"]:
        try:
            with replacing(path, _writer()) as fresh:
                try:
                    fresh.hardlink_to(task.earlier / path.name)
                except FileNotFoundError:
                    raise
                except OSError:  # not on every file system
                    shutil.copyfile(task.earlier / path.name, fresh)
        except FileNotFoundError:  # the earlier build was cleared away meanwhile
            return False
    _write_json(path.with_suffix(".json"), record)
    return True


def _state(path: str) -> list[int] | None:
    try:
        stat = Path(path).stat()
    except (OSError, ValueError):
        return None
    return [stat.st_size, stat.st_mtime_ns]


def _write_tar(path: Path, task: Task) -> tuple[list[tuple[int, ...]], list[Rejected], _States, _States]:
    """Return the table of the utterances written, the rows left out, and the states of both's files."""
    table: list[tuple[int, ...]] = []
    rejected: list[Rejected] = []
    files: _States = []
    rejected_files: _States = []
    cutter = Cutter()
    with path.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for row in task.rows:
                if _stop is not None and _stop.is_set():
                    raise InterruptedError("stopped")
                if _places is not None:
                    _places[2 * _place + 1] = row.row
                before = _state(row.path)
                try:
                    table.append(_add(tar, task.number, row, cutter))
                    files.append((row.path, before))
                except AudioError as error:
                    rejected.append(Rejected(row.row, row.audio, error.reason, str(error)))
                    rejected_files.append((row.path, before))
                except _RowError as error:
                    rejected.append(Rejected(row.row, row.audio, *error.args))
        file.flush()
        os.fsync(file.fileno())
    return table, rejected, files, rejected_files


class _RowError(ValueError):
    """A row is wrong in itself; the arguments are reason and detail."""


def _add(tar: tarfile.TarFile, shard: int, row: Row, cutter: Cutter) -> tuple[int, ...]:
    """Add one utterance to a tar and give its `RECORD`."""
    if row.reason:
        raise _RowError(row.reason, row.problem)
    whole = (row.start, row.end) == (0, math.inf)
    waveform = load_audio(Path(row.path)) if whole else cutter.cut(Path(row.path), row.start, row.end)
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform.clamp(-1, 1).numpy(), SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    flac = buffer.getvalue()
    text = {"row": row.row, "audio": row.audio, "sentence": row.sentence, "num_samples": len(waveform)}
    encoded = json.dumps(text | {"extra": row.extra}, ensure_ascii=False).encode()
    sentence = row.sentence.encode()
    key = f"{row.row:08d}"
    offset = tar.offset + BLOCK_BYTES
    for suffix, data in (("flac", flac), ("json", encoded)):
        member = tarfile.TarInfo(f"{key}.{suffix}")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    assert tar.offset == json_offset(offset, len(flac)) + padded(len(encoded)), "an unexpected layout of the tar"
    place = (shard, offset, len(flac), len(encoded), len(waveform), len(sentence), row.row)
    return (*place, zlib.crc32(flac), zlib.crc32(encoded), _digest(waveform.numpy().tobytes()), _digest(sentence))


def _digest(content: bytes) -> int:
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "little")


def write_index(folder: Path, num_shards: int, description: dict[str, Any]) -> None:
    """Join the records of all shards into index.npy, rejected.csv and, last, index.json.

    Args:
        folder: Where the shards are.
        num_shards: How many, all of them built.
        description: What index.json says beside them: `fingerprint`, `options` and `num_rows`.

    Raises:
        UserError: A shard, or an audio file of it, has changed meanwhile.
    """
    shards: list[FileInfo] = []
    tables, with_rejected, found = [], [], set[str]()
    rejected: list[dict[str, Any]] = []
    for number in range(num_shards):
        record = load_record(folder, number, description["fingerprint"])
        if record is None:
            raise UserError(f"{folder}: shard {number} or an audio file of it has changed meanwhile; start again")
        tables.append(np.array([tuple(entry) for entry in record["table"]], dtype=RECORD))
        shards.append({"name": f"{number:06d}.tar", "bytes": record["bytes"], "sha256": record["sha256"]})
        rejected += record["rejected"]
        found.update(record["marks"])
        if record["rejected"]:
            with_rejected.append(number)
    table = np.concatenate(tables)
    with replacing(folder / "index.npy", _writer()) as fresh, fresh.open("wb") as file:
        np.save(file, table)
    columns = ["row", "value", "reason", "detail"]
    with replacing(folder / "rejected.csv", _writer()) as fresh:
        pd.DataFrame(rejected, columns=columns).to_csv(fresh, index=False, encoding="utf-8")
    _remove_surplus(folder, {Path(shard["name"]).stem for shard in shards})
    info = {
        "version": FORMAT_VERSION,
        **description,
        "num_utterances": len(table),
        "total_seconds": int(table["num_samples"].sum()) / SAMPLE_RATE_HZ,
        "marks": sorted(found),
        "rejected": dict(Counter(row["reason"] for row in rejected)),
        "shards_with_rejected": with_rejected,
        "files": [describe_file(folder / name) for name in ("index.npy", "rejected.csv")],
        "shards": shards,
    }
    _write_json(folder / "index.json", info)


def _remove_surplus(folder: Path, kept: set[str]) -> None:
    """Delete the shards of another build, and what kills have left unfinished."""
    for path in folder.iterdir():
        surplus = path.suffix in (".tar", ".json") and path.stem.isdigit() and path.stem not in kept
        if surplus or path.suffix == ".new":
            path.unlink(missing_ok=True)
