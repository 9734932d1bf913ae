"""Folders of WebDataset shards: the format, the index, and random access to utterances.

A folder holds `000000.tar`, … (per utterance `KEY.flac`, 16 kHz mono, and `KEY.json`), a record `000000.json` for each,
which lets a killed build go on, and the index: `index.json` and `index.npy`. The tars are ordinary: plain `webdataset`
reads them. `build.py` writes what this file reads. A folder is not trusted: what its index says is checked
before it leads anywhere.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zlib
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import soundfile
import torch

from whisper_lightning.audio.constants import SAMPLE_RATE_HZ
from whisper_lightning.data.format import (
    MAX_JSON_BYTES,
    FileInfo,
    Rejected,
    Utterance,
    check_info,
    check_table,
    index_files,
    json_offset,
)
from whisper_lightning.data.remote import RemoteFolder
from whisper_lightning.errors import UserError


class ShardIndex:
    """Random access to the utterances of a folder of shards.

    Picklable: a worker process opens the folder anew instead of receiving the table, when it first reads, and compares
    it with what the main process has opened.

    Attributes:
        folder: The folder; where the shards are remote, the one that holds their index.
        remote: Where the shards are, unless they are in the folder.
        lease: What keeps the folder from being cleared away while this process reads it; see `generations.py`.
    """

    def __init__(self, folder: Path, remote: RemoteFolder | None = None, identity: str = "") -> None:
        self.folder = folder
        self.remote = remote
        self.lease: object = None
        self._identity = identity
        self._files: OrderedDict[tuple[int, int], BinaryIO] = OrderedDict()

    @classmethod
    def open(cls, source: Path | RemoteFolder) -> ShardIndex:
        """Open a folder and check that its shards are whole; remote ones are downloaded when they are first read.

        Raises:
            UserError: It is no folder of shards, of another version, its index points outside of the shards, or a
                shard is missing or cut.
        """
        remote, folder = (source, source.fetch_index()) if isinstance(source, RemoteFolder) else (None, source)
        index = cls(folder, remote)
        table, info = index.table, index.info
        try:
            check_table(table, info)
        except (ValueError, TypeError, OverflowError) as error:
            raise index._unusable(error) from None
        if remote is None:
            index._check_sizes()
        return index

    @cached_property
    def info(self) -> dict[str, Any]:
        """What `index.json` says."""
        try:
            path = self.folder / "index.json"
            if path.stat().st_size > MAX_JSON_BYTES:
                raise ValueError(f"index.json has {path.stat().st_size} bytes and is no list of shards")
            content = path.read_bytes()
            info: dict[str, Any] = json.loads(content)
            check_info(info)
        except (OSError, ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
            raise self._unusable(error) from None
        identity = hashlib.sha256(content).hexdigest()
        if self._identity not in ("", identity):
            raise UserError(f"{self.folder}: other shards stand there than when the run began; start it again")
        self._identity = identity
        return info

    @cached_property
    def table(self) -> np.ndarray:
        """One record per utterance, mapped from disk."""
        listed = index_files(self.info)  # folders of the oldest builds have no sums
        path = self.folder / "index.npy"
        try:
            with path.open("rb") as file:
                if listed and hashlib.file_digest(file, "sha256").hexdigest() != listed[0]["sha256"]:
                    raise ValueError("index.npy is damaged, or belongs to another index.json")
            return np.lib.format.open_memmap(path, mode="r")  # unlike np.load: no archives, no pickles
        except Exception as error:  # a header of .npy is Python, which can be wrong in many ways
            raise self._unusable(error) from None

    def _unusable(self, error: Exception) -> UserError:
        remedy = "build the shards again" + (f" (index in {self.folder})" if self.remote else "")
        problem = " ".join(str(error).split()) or type(error).__name__
        return UserError(f"{self.remote or self.folder}: not a folder of shards that can be used: {problem}; {remedy}")

    def _check_sizes(self) -> None:
        for shard in self.shards:
            path = self.folder / shard["name"]
            num_bytes = path.stat().st_size if path.is_file() else 0
            if num_bytes != shard["bytes"]:
                raise UserError(
                    f"{path}: {num_bytes} bytes instead of {shard['bytes']}; delete this shard and index.json, "
                    "it is built again"
                )

    def __reduce__(self) -> tuple[type[ShardIndex], tuple[Path, RemoteFolder | None, str]]:
        assert "info" in vars(self), "an index that nobody has opened"
        return (ShardIndex, (self.folder, self.remote, self._identity))

    def __len__(self) -> int:
        return len(self.table)

    @property
    def shards(self) -> list[FileInfo]:
        """Name, size in bytes and sha256 of each shard."""
        shards: list[FileInfo] = self.info["shards"]
        return shards

    @property
    def reading(self) -> int:
        """The `READING` of the rows that it was built from."""
        options = self.info.get("options")
        reading = options.get("reading") if isinstance(options, dict) else None
        return reading if isinstance(reading, int) else 1

    @property
    def num_samples(self) -> np.ndarray:
        """Length of each utterance in samples, `(U,)`."""
        return np.asarray(self.table["num_samples"])

    def rejected(self) -> list[Rejected]:
        """Return the rows that were left out when the shards were built.

        Raises:
            UserError: rejected.csv cannot be read.
        """
        path = self.folder / "rejected.csv"
        listed = index_files(self.info)
        try:
            content = path.read_bytes()
            if listed and hashlib.sha256(content).hexdigest() != listed[1]["sha256"]:
                raise ValueError("it is damaged, or belongs to another index.json")
            table = pd.read_csv(io.BytesIO(content), dtype={"value": str, "detail": str}, keep_default_na=False)
            return [Rejected(int(row), str(v), str(why), str(d)) for row, v, why, d in table.itertuples(index=False)]
        except (OSError, ValueError) as error:
            problem = " ".join(str(error).split())
            raise UserError(f"{path}: cannot be read ({problem}); build the shards again") from None

    def read(self, i: int) -> Utterance:
        """Read utterance `i`: one contiguous read of its two members.

        Raises:
            UserError: What the shard holds there is not what the index says.
        """
        entry = self.table[i]
        offset, flac_bytes = int(entry["offset"]), int(entry["flac_bytes"])
        skip = json_offset(offset, flac_bytes) - offset
        data = self._read(int(entry["shard"]), offset, skip + int(entry["json_bytes"]))
        self._check_crc(entry, "flac_crc", data[:flac_bytes])
        promised = ("FLAC", SAMPLE_RATE_HZ, 1, entry["num_samples"])
        try:
            with soundfile.SoundFile(io.BytesIO(data[:flac_bytes])) as file:
                # Before decoding, which makes room for as many samples as the file claims to have.
                if (file.format, file.samplerate, file.channels, file.frames) != promised:
                    raise self._damaged(entry)
                samples = file.read(dtype="float32")
        except soundfile.LibsndfileError:
            raise self._damaged(entry) from None
        if len(samples) != entry["num_samples"]:
            raise self._damaged(entry)
        return self._utterance(entry, torch.from_numpy(samples), data[skip:])

    def read_text(self, i: int) -> Utterance:
        """Read utterance `i` without its audio; the waveform is empty.

        Raises:
            UserError: What the shard holds there is not what the index says.
        """
        entry = self.table[i]
        start = json_offset(int(entry["offset"]), int(entry["flac_bytes"]))
        return self._utterance(entry, torch.empty(0), self._read(int(entry["shard"]), start, int(entry["json_bytes"])))

    def _check_crc(self, entry: np.void, field: str, data: bytes) -> None:
        if self.info["version"] > 1 and zlib.crc32(data) != entry[field]:
            raise self._damaged(entry)

    def _utterance(self, entry: np.void, waveform: torch.Tensor, encoded: bytes) -> Utterance:
        self._check_crc(entry, "json_crc", encoded)
        row = int(entry["row"])
        try:
            text = json.loads(encoded)
            sentence, audio, extra = text["sentence"], text["audio"], text["extra"]
            whole = text["row"] == row and isinstance(sentence, str) and isinstance(audio, str)
            whole = whole and isinstance(extra, dict)
        except (ValueError, KeyError, TypeError, RecursionError):
            whole = False
        if not whole:
            raise self._damaged(entry)
        return Utterance(f"{row:08d}", waveform, sentence, row, audio, extra)

    def _damaged(self, entry: np.void) -> UserError:
        shard = self.shards[entry["shard"]]
        if self.remote is None:
            return UserError(
                f"{self.folder / shard['name']}: row {entry['row']} is damaged; "
                "delete this shard and index.json, it is built again"
            )
        return UserError(
            f"{self.remote}/{shard['name']}: row {entry['row']} is damaged; delete {self.remote.cached(shard)}, it is "
            "downloaded again; if that does not help, build the shards again and upload them"
        )

    def _read(self, shard: int, offset: int, num_bytes: int) -> bytes:
        """Read bytes of a shard; a few files stay open, each process its own: a fork would share their positions."""
        if self.remote is not None:
            return self.remote.read(self.shards[shard], offset, num_bytes)
        key = (os.getpid(), shard)
        path = self.folder / self.shards[shard]["name"]
        try:
            if key not in self._files:
                if len(self._files) >= 16:
                    self._files.popitem(last=False)[1].close()
                self._files[key] = path.open("rb")
            self._files.move_to_end(key)
            file = self._files[key]
            file.seek(offset)
            return file.read(num_bytes)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error}); build the shards again") from None
