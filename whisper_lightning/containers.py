"""What decoders mend silently or misname: audio files that are shorter than their own structure says."""

from __future__ import annotations

import struct
from typing import BinaryIO

PLACEHOLDER_BYTES = 0x7FFFF000
"""Programs that write a wav to a pipe leave this or more in place of the length of the sound (sox, FFmpeg)."""


def find_cut(file: BinaryIO, num_bytes: int) -> str:
    """Say in a few words where a wav, aiff, Ogg or MPEG-4 file was cut; "" if it is whole or of another kind.

    Args:
        file: The open file, at its beginning.
        num_bytes: Its size.
    """
    head = file.read(12)
    if head[:4] == b"RIFF" and head[8:] == b"WAVE":
        return _cut_in_chunks(file, num_bytes, "<I")
    if head[:4] == b"FORM" and head[8:] in (b"AIFF", b"AIFC"):
        return _cut_in_chunks(file, num_bytes, ">I")
    if head[:4] == b"OggS":
        return _cut_in_last_page(file, num_bytes)
    if head[4:8] == b"ftyp":
        return _cut_in_boxes(file, num_bytes)
    return ""


def _cut_in_chunks(file: BinaryIO, num_bytes: int, size_format: str) -> str:
    """Walk the chunks of a wav (little-endian) or aiff (big-endian) file to its sound data."""
    described = False
    while len(header := file.read(8)) == 8:
        (size,) = struct.unpack(size_format, header[4:])
        rest = num_bytes - file.tell()
        if header[:4] in (b"data", b"SSND"):
            return f"{rest} of {size} bytes of sound" if rest < size < PLACEHOLDER_BYTES else ""
        described |= header[:4] in (b"fmt ", b"COMM")
        file.seek(size + size % 2, 1)
    return "the file ends before its sound" if described else ""


def _cut_in_boxes(file: BinaryIO, num_bytes: int) -> str:
    """Walk the outermost boxes of an MPEG-4 file (ISO/IEC 14496-12, 4.2) to its end."""
    position, kinds = 0, set[bytes]()
    while position < num_bytes:
        file.seek(position)
        header = file.read(16).ljust(16, b"\0")
        size, kind, long_size = struct.unpack(">I4sQ", header)
        kinds.add(kind)
        if size == 0:  # to the end of the file
            break
        position += max(8, long_size if size == 1 else size)
    if position > num_bytes or b"moov" not in kinds:
        return f"{num_bytes} of at least {max(position, num_bytes + 8)} bytes"
    return ""


def _cut_in_last_page(file: BinaryIO, num_bytes: int) -> str:
    """Look whether the last Ogg page is whole and marked as the end of the stream (RFC 3533)."""
    file.seek(max(0, num_bytes - 2 * 65_307))
    tail = file.read()
    start = tail.rfind(b"OggS")
    page = tail[start:]
    if start < 0 or len(page) < 27 or len(page) < 27 + page[26]:
        return "the last Ogg page is cut"
    if len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]]) or not page[5] & 4:
        return "the end of the Ogg stream is missing"
    return ""
