"""Folders of WebDataset shards: the format, the index, and random access to utterances.

A folder holds `000000.tar`, … (per utterance `KEY.flac`, 16 kHz mono, and `KEY.json`), a record `000000.json` for each,
which lets a killed build go on, and the index: `index.json` and `index.npy`. The tars are ordinary: plain `webdataset`
reads them. `build.py` writes what this file reads.
"""

from __future__ import annotations

import io
import json
import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pandas as pd
import soundfile
import torch

from whisper_lightning.audio import SAMPLE_RATE_HZ
from whisper_lightning.errors import UserError

FORMAT_VERSION = 1
RECORD = np.dtype(
    [
        ("shard", "<i4"),
        ("offset", "<i8"),  # of the FLAC bytes in the tar
        ("flac_bytes", "<i4"),
        ("json_bytes", "<i4"),
        ("num_samples", "<i4"),
        ("text_bytes", "<i4"),  # of the sentence in UTF-8
        ("row", "<i8"),
    ]
)
BLOCK_BYTES = 512
"""Tar's unit: a header is one block, data is padded to whole ones."""


@dataclass(frozen=True)
class Rejected:
    """A row that is left out.

    Attributes:
        row: Row in a spreadsheet.
        value: What was wrong: an audio path or a sentence.
        reason: Why, in the few words that reports count by.
        detail: Why, in full.
    """

    row: int
    value: str
    reason: str
    detail: str


class Utterance(NamedTuple):
    """One utterance as read from a shard; `waveform` is `(N,)` float32 at 16 kHz."""

    key: str
    waveform: torch.Tensor
    sentence: str
    row: int
    audio: str
    extra: dict[str, str]


def padded(num_bytes: int) -> int:
    """Round up to whole blocks of a tar."""
    return -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES


def json_offset(offset: int, flac_bytes: int) -> int:
    """Give where the JSON bytes start, which follow the FLAC bytes at `offset`."""
    return offset + padded(flac_bytes) + BLOCK_BYTES


class ShardIndex:
    """Random access to the utterances of a folder of shards.

    Picklable: a worker process opens the folder anew instead of receiving the table.

    Attributes:
        folder: The folder.
        info: What `index.json` says.
        table: One `RECORD` per utterance, mapped from disk.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.info: dict[str, Any] = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        self.table = np.load(folder / "index.npy", mmap_mode="r", allow_pickle=False)
        self._files: OrderedDict[tuple[int, int], BinaryIO] = OrderedDict()

    @classmethod
    def open(cls, folder: Path) -> ShardIndex:
        """Open a folder and check that its shards are whole.

        Raises:
            UserError: It is no folder of shards, of another version, or a shard is missing or cut.
        """
        try:
            index = cls(folder)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder}: not a folder of shards (no readable index.json and index.npy: {error})"
            ) from None
        if index.info.get("version") != FORMAT_VERSION or index.table.dtype != RECORD:
            raise UserError(f"{folder}: shards of another version; delete the folder, they are built again")
        for shard in index.shards:
            path = folder / Path(shard["name"]).name
            num_bytes = path.stat().st_size if path.is_file() else 0
            if num_bytes != shard["bytes"]:
                raise UserError(
                    f"{path}: {num_bytes} bytes instead of {shard['bytes']}; delete this shard and index.json, "
                    "it is built again"
                )
        return index

    def __reduce__(self) -> tuple[type[ShardIndex], tuple[Path]]:
        return (ShardIndex, (self.folder,))

    def __len__(self) -> int:
        return len(self.table)

    @property
    def shards(self) -> list[dict[str, Any]]:
        """Name, size in bytes and sha256 of each shard."""
        shards: list[dict[str, Any]] = self.info["shards"]
        return shards

    @property
    def fingerprint(self) -> str:
        """Changes when CSV or options change."""
        return str(self.info["fingerprint"])

    @property
    def num_samples(self) -> np.ndarray:
        """Length of each utterance in samples, `(U,)`."""
        return np.asarray(self.table["num_samples"])

    def rejected(self) -> list[Rejected]:
        """Give the rows that were left out when the shards were built."""
        path = self.folder / "rejected.csv"
        table = pd.read_csv(path, dtype={"value": str, "detail": str}, keep_default_na=False, encoding="utf-8")
        return [Rejected(int(row), str(v), str(why), str(d)) for row, v, why, d in table.itertuples(index=False)]

    def read(self, i: int) -> Utterance:
        """Read utterance `i`: one contiguous read of its two members.

        Raises:
            UserError: What the shard holds there is not what the index says.
        """
        entry = self.table[i]
        offset, flac_bytes = int(entry["offset"]), int(entry["flac_bytes"])
        skip = json_offset(offset, flac_bytes) - offset
        data = self._read(int(entry["shard"]), offset, skip + int(entry["json_bytes"]))
        try:
            samples, rate = soundfile.read(io.BytesIO(data[:flac_bytes]), dtype="float32")
        except soundfile.LibsndfileError:
            raise self._damaged(entry) from None
        if len(samples) != entry["num_samples"] or rate != SAMPLE_RATE_HZ:
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

    def _utterance(self, entry: np.void, waveform: torch.Tensor, encoded: bytes) -> Utterance:
        try:
            text = json.loads(encoded)
        except ValueError:
            raise self._damaged(entry) from None
        if text["row"] != entry["row"]:
            raise self._damaged(entry)
        key = f"{text['row']:08d}"
        return Utterance(key, waveform, text["sentence"], text["row"], text["audio"], text["extra"])

    def _damaged(self, entry: np.void) -> UserError:
        return UserError(
            f"{self.folder / self.shards[entry['shard']]['name']}: row {entry['row']} is damaged; "
            "delete this shard and index.json, it is built again"
        )

    def _read(self, shard: int, offset: int, num_bytes: int) -> bytes:
        """Read bytes of a shard; a few files stay open, each process its own: a fork would share their positions."""
        key = (os.getpid(), shard)
        if key not in self._files:
            if len(self._files) >= 16:
                self._files.popitem(last=False)[1].close()
            self._files[key] = (self.folder / Path(self.shards[shard]["name"]).name).open("rb")
        self._files.move_to_end(key)
        file = self._files[key]
        file.seek(offset)
        return file.read(num_bytes)
