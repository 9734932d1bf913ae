"""What decoders mend silently or misname: audio files that are shorter or longer than their own structure says."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

PLACEHOLDER_BYTES = 0x7FFFF000
"""Programs that write a wav to a pipe leave this or more in place of the length of the sound (sox, FFmpeg)."""
PLACEHOLDER_64_BYTES = 1 << 62
"""The same where lengths have 64 bits."""
LONGEST_MP3_FRAME_BYTES = 1441
_FLAC_HEAD = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
_SCAN_BYTES = 1 << 20


class _Layout(NamedTuple):
    """How a file is divided into chunks: where the first one is, and how its name and size are written."""

    start: int
    name_bytes: int
    size_format: str
    size_has_header: bool = False
    alignment: int = 2


_RIFF = _Layout(12, 4, "<I")
_AIFF = _Layout(12, 4, ">I")
_CAF = _Layout(8, 4, ">Q", alignment=1)
_WAVE64 = _Layout(40, 16, "<Q", size_has_header=True, alignment=8)


def find_cut(file: BinaryIO, num_bytes: int) -> str:
    """Say in a few words where an audio file was cut; "" if it is whole, or of a kind that decoders judge rightly.

    Args:
        file: The open file.
        num_bytes: Its size.
    """
    file.seek(0)
    head = file.read(12)
    if head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:] == b"WAVE":
        return _cut_in_chunks(file, num_bytes, _RIFF)
    if head[:4] == b"FORM" and head[8:] in (b"AIFF", b"AIFC"):
        return _cut_in_chunks(file, num_bytes, _AIFF)
    if head[:4] == b"caff":
        return _cut_in_chunks(file, num_bytes, _CAF)
    if head == b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb":
        return _cut_in_chunks(file, num_bytes, _WAVE64)
    if head[:4] in (b".snd", b"dns."):
        start, size = struct.unpack(">II" if head[:1] == b"." else "<II", head[4:].ljust(8, b"\0"))
        return _compare(num_bytes - start, size, PLACEHOLDER_BYTES)
    if head[:7] == b"NIST_1A":
        return _cut_in_sphere(file, num_bytes)
    if head[:4] == b"OggS":
        return _cut_in_last_page(file, num_bytes)
    if head[4:8] == b"ftyp":
        return _cut_in_boxes(file, num_bytes)
    return ""


def has_several_parts(file: BinaryIO, num_bytes: int) -> bool:
    """Say whether whole recordings stand one after another in a file, of which decoders may give the first alone.

    Args:
        file: The open file.
        num_bytes: Its size.
    """
    file.seek(0)
    head = file.read(8)
    if head[:4] == b"OggS":
        return _is_chained(file)
    if head[:4] == b"fLaC":
        return _holds_again(file, _FLAC_HEAD)
    if head[4:] == b"ftyp":
        return [kind for kind, _ in _boxes(file, num_bytes)].count(b"moov") > 1
    if head[:3] == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0"):
        return _is_joined_mp3(file)
    return False


def find_mp3_header(file: BinaryIO) -> tuple[int, bytes]:
    """Return where an mp3's first frame is, and that frame if it counts the others (Xing, Info, VBRI), else b""."""
    file.seek(0)
    tag = file.read(10)  # ID3v2: its size has 7 bits per byte
    start = 10 + sum(byte << (21 - 7 * i) for i, byte in enumerate(tag[6:])) if tag[:3] == b"ID3" else 0
    file.seek(start)
    frame = file.read(LONGEST_MP3_FRAME_BYTES)
    return start, frame if any(name in frame for name in (b"Xing", b"Info", b"VBRI")) else b""


def _compare(available: int, promised: int, placeholder: int) -> str:
    return f"{max(0, available)} of {promised} bytes of sound" if available < promised < placeholder else ""


def _chunks(file: BinaryIO, num_bytes: int, layout: _Layout) -> Iterator[tuple[bytes, int]]:
    """Return name and size of each chunk; meanwhile the file is at the chunk's content."""
    position, header_bytes = layout.start, layout.name_bytes + struct.calcsize(layout.size_format)
    while position < num_bytes:
        file.seek(position)
        header = file.read(header_bytes)
        if len(header) < header_bytes:
            return
        (size,) = struct.unpack(layout.size_format, header[layout.name_bytes :])
        size = max(0, size - header_bytes) if layout.size_has_header else size
        yield header[:4], size
        position += header_bytes + size + -size % layout.alignment


def _cut_in_chunks(file: BinaryIO, num_bytes: int, layout: _Layout) -> str:
    described, long_size = False, 0
    placeholder = PLACEHOLDER_64_BYTES if layout.size_format[1] == "Q" else PLACEHOLDER_BYTES
    for name, size in _chunks(file, num_bytes, layout):
        available = num_bytes - file.tell()
        if name == b"ds64":  # EBU Tech 3306: the size of a data chunk that is too long for 32 bits
            long_size = struct.unpack("<Q", file.read(16)[8:].ljust(8, b"\0"))[0]
        elif name in (b"data", b"SSND"):
            if size == 0xFFFFFFFF and long_size:
                return _compare(available, long_size, PLACEHOLDER_64_BYTES)
            return _compare(available, size, placeholder)
        described |= name in (b"fmt ", b"COMM", b"desc")
    return "the file ends before its sound" if described else ""


def _cut_in_sphere(file: BinaryIO, num_bytes: int) -> str:
    """Compare what a SPHERE header (NIST, as in LDC's corpora) counts with what there is."""
    file.seek(0)
    header = file.read(1024).decode("latin-1")
    counts = {name: int(value) for name, value in re.findall(r"^(\w+) -\w+ (\d{1,12})\s*$", header, re.MULTILINE)}
    names = ("sample_count", "sample_n_bytes", "channel_count")
    if "shorten" in header or not all(name in counts for name in names):
        return ""
    size = counts[names[0]] * counts[names[1]] * counts[names[2]]
    start = int(header[8:16]) if header[8:16].strip().isdecimal() else 1024
    return _compare(num_bytes - start, size, PLACEHOLDER_64_BYTES)


def _boxes(file: BinaryIO, num_bytes: int) -> Iterator[tuple[bytes, int]]:
    """Return kind and end of each outermost box of an MPEG-4 file (ISO/IEC 14496-12, 4.2)."""
    position = 0
    while position < num_bytes:
        file.seek(position)
        size, kind, long_size = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
        # A size of 0 reaches to the end of the file.
        position = num_bytes if size == 0 else position + max(8, long_size if size == 1 else size)
        yield kind, position


def _cut_in_boxes(file: BinaryIO, num_bytes: int) -> str:
    boxes = dict(_boxes(file, num_bytes))
    end = max(boxes.values())
    if end > num_bytes or b"moov" not in boxes:
        return f"{num_bytes} of at least {max(end, num_bytes + 8)} bytes"
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


def _is_chained(file: BinaryIO) -> bool:
    """Look for an Ogg page that begins a stream after one that does not (RFC 3533)."""
    position, inside = 0, False
    while True:
        file.seek(position)
        header = file.read(27 + 255)
        if len(header) < 27 or header[:4] != b"OggS":
            return False
        begins = bool(header[5] & 2)
        if begins and inside:
            return True
        inside = inside or not begins
        position += 27 + header[26] + sum(header[27 : 27 + header[26]])


def _holds_again(file: BinaryIO, head: re.Pattern[bytes]) -> bool:
    """Look for the first bytes of such a file after its beginning."""
    file.seek(4)
    kept = b""
    while block := file.read(_SCAN_BYTES):
        if head.search(kept + block):
            return True
        kept = block[-8:]
    return False


def _is_joined_mp3(file: BinaryIO) -> bool:
    """Look whether sound follows where an mp3's own header says that it ends; tags may."""
    start, frame = find_mp3_header(file)
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    if at < 0 or len(frame) < at + 16:
        return False
    flags, first, second = struct.unpack(">III", frame[at + 4 : at + 16])
    if not flags & 2:  # no count of bytes
        return False
    file.seek(start + (second if flags & 1 else first))
    # Where the count leaves out the first frame, one frame remains.
    rest = file.read(8 * LONGEST_MP3_FRAME_BYTES).lstrip(b"\0")
    is_sound = rest[:3] == b"ID3" or (rest[:1] == b"\xff" and rest[1:2] >= b"\xe0")
    return is_sound and len(rest) > 2 * LONGEST_MP3_FRAME_BYTES
