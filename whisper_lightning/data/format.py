"""The format of a folder of shards: the index's schema, its types, and what an untrusted index may say."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict, TypeGuard

import numpy as np
import torch

from whisper_lightning.audio.constants import MAX_SECONDS, SAMPLE_RATE_HZ

MAX_JSON_BYTES = 64 << 20
"""What an index.json may take: a line of 150 bytes for each shard."""
MAX_INDEX_BYTES = 1 << 30
FORMAT_VERSION = 2
_VERSION_1 = [
    ("shard", "<i4"),
    ("offset", "<i8"),  # of the FLAC bytes in the tar
    ("flac_bytes", "<i4"),
    ("json_bytes", "<i4"),
    ("num_samples", "<i4"),
    ("text_bytes", "<i4"),  # of the sentence in UTF-8
    ("row", "<i8"),
]
RECORD = np.dtype(
    [
        *_VERSION_1,
        ("flac_crc", "<u4"),  # CRC-32: every read is checked, at a hundredth of the price of decoding it
        ("json_crc", "<u4"),
        ("sound", "<u8"),  # the first 8 bytes of sha256: of the samples as they were decoded,
        ("sentence", "<u8"),  # and of the sentence; to find the same ones in other folders
    ]
)
RECORDS = {1: np.dtype(_VERSION_1), FORMAT_VERSION: RECORD}
"""What index.npy holds, by version; folders of version 1 are read, without what they do not say."""
BLOCK_BYTES = 512
"""Tar's unit: a header is one block, data is padded to whole ones."""
MAX_SAMPLES = int(MAX_SECONDS * SAMPLE_RATE_HZ)
MAX_MEMBER_BYTES = 1 << 24
"""No FLAC of so few samples is larger, and no row of a CSV; it bounds what one read takes."""


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


def spoken_language(extra: object, default: str) -> str:
    """Return the language that an utterance's column `language` names, as a lower-case code, or else the default.

    Args:
        extra: Further columns; in shards of somebody else's they may be anything.
        default: What is spoken where there is no such column, or nothing in it.
    """
    named = str(extra.get("language") or "") if isinstance(extra, dict) else ""
    return named.strip().lower() or default


def padded(num_bytes: int) -> int:
    """Round up to whole blocks of a tar."""
    return -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES


def json_offset(offset: int, flac_bytes: int) -> int:
    """Return where the JSON bytes start, which follow the FLAC bytes at `offset`."""
    return offset + padded(flac_bytes) + BLOCK_BYTES


def check_info(info: Any) -> None:
    """Check what index.json says.

    Raises:
        ValueError: With what is wrong.
    """
    index_files(info)
    if type(info.get("version")) is not int or info["version"] not in RECORDS:
        raise ValueError("index.json is of another version")
    shards = info.get("shards")
    if not isinstance(shards, list):
        raise ValueError("index.json lists no shards")
    # Nothing but the names that `build.py` gives: no folder, no drive, no device of Windows, no URL.
    odd = next((entry for entry in shards if not is_file_info(entry, r"[0-9]{1,12}\.tar")), None)
    if odd is not None:
        raise ValueError(f"index.json lists a shard that cannot be: {str(odd)[:200]}")


def check_table(table: np.ndarray, info: dict[str, Any]) -> None:
    """Check that index.npy is the table that index.json describes, and points nowhere but into the shards.

    Raises:
        ValueError: With what is wrong.
    """
    if table.dtype != RECORDS[info["version"]] or table.ndim != 1:
        raise ValueError("index.npy is of another version")
    if len(table) != info.get("num_utterances"):
        raise ValueError(f"index.npy has {len(table)} utterances, index.json {info.get('num_utterances')}")
    sizes = np.array([shard["bytes"] for shard in info["shards"]] or [0], dtype=np.int64)
    ok = (table["shard"] >= 0) & (table["shard"] < len(info["shards"]))
    available = sizes[np.where(ok, table["shard"], 0)]
    for name, most in (
        ("flac_bytes", MAX_MEMBER_BYTES),
        ("json_bytes", MAX_MEMBER_BYTES),
        ("num_samples", MAX_SAMPLES),
    ):
        ok &= (table[name] > 0) & (table[name] <= most)
    # The offset by itself first: near the end of the int64 the sum would wrap around.
    ok &= (table["offset"] >= BLOCK_BYTES) & (table["offset"] <= available) & (table["text_bytes"] >= 0)
    flac_blocks = -(-table["flac_bytes"].astype(np.int64) // BLOCK_BYTES)
    ok &= table["offset"] + flac_blocks * BLOCK_BYTES + BLOCK_BYTES + table["json_bytes"] <= available
    if not ok.all():
        raise ValueError(
            f"index.npy: utterance {int(np.argmin(ok))} lies outside of the shards or has impossible sizes"
        )


class FileInfo(TypedDict):
    """A file as index.json lists it: name in the folder, size in bytes, sha256 in hexadecimal."""

    name: str
    bytes: int
    sha256: str


def is_file_info(entry: Any, name: str) -> TypeGuard[FileInfo]:
    """Say whether an entry of somebody's index.json is sane; `name` is a pattern, so that no path leads elsewhere."""
    if not isinstance(entry, dict) or type(entry.get("bytes")) is not int or not 0 <= entry["bytes"] < 2**53:
        return False
    texts = [entry.get("name"), entry.get("sha256")]
    # Where all rows of a shard were rejected there is no file.
    digest = r"[0-9a-f]{64}" if entry["bytes"] else r"([0-9a-f]{64})?"
    return all(isinstance(text, str) and re.fullmatch(p, text) for text, p in zip(texts, (name, digest), strict=True))


def index_files(info: Any) -> list[FileInfo]:
    """Return what an index.json says of index.npy and rejected.csv, nothing where an older build wrote it.

    Raises:
        ValueError: It says what cannot be.
    """
    if not isinstance(info, dict):
        raise ValueError("index.json is no object")
    files = info.get("files", [])
    sane = isinstance(files, list) and all(is_file_info(file, r"index\.npy|rejected\.csv") for file in files)
    if not sane or any(file["bytes"] > MAX_INDEX_BYTES for file in files):
        raise ValueError(f"index.json lists files that cannot be: {str(files)[:200]}")
    if files and [file["name"] for file in files] != ["index.npy", "rejected.csv"]:
        raise ValueError("index.json does not list index.npy and rejected.csv")
    return list(files)
