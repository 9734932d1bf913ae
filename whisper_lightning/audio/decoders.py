"""Audio files of any format to blocks of samples, by libsndfile and, where that cannot, by FFmpeg."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import av
import numpy as np
import soundfile
from av.audio.stream import AudioStream
from av.container import InputContainer

from whisper_lightning.audio.constants import SAMPLE_RATE_HZ
from whisper_lightning.audio.containers import find_mp3_header

BLOCK_SECONDS = 60
"""About how much of a long recording is decoded at once."""
LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 4_000, 384_000
MOST_CHANNELS = 64
MOST_VALUES = 1 << 25
"""Of a block, whatever rate and channels a file claims to have: 128 MiB."""
SOUNDFILE_FORMATS = {"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "NIST", "FLAC", "OGG", "MP3"}
"""Of libsndfile's formats, those of which a cut file can be told from a whole one."""
MP3_GRANULE_SAMPLES = 576
"""An mp3's header counts whole frames, the decoder drops the silence that encoders add: up to a granule less."""
CODEC_DELAY_SECONDS = 0.15
"""How far the container's duration and what a complete lossy file decodes to may lie apart."""
UNKNOWN_FRAMES = 2**40
"""libsndfile claims this or more for a file whose header does not give a length."""
AV_FORMATS = "mov,matroska,ogg,aac,flac,asf,amr,ac3,eac3,mpegts,flv,avi,wv,ape,tta"
"""What FFmpeg may take a file for: no playlists, which would make it open other files and addresses."""

Block = tuple[np.ndarray, int]
"""What a decoder gives: `(N, channels)` float32, and their rate in Hz."""
Reason = Literal[
    "missing",
    "not a local file",
    "unreadable",
    "not audio",
    "empty",
    "truncated",
    "too long",
    "beyond the end",
    "silent",
]


class AudioError(ValueError):
    """An audio file cannot be used.

    Attributes:
        reason: Why, in the few words that reports count by.
    """

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason: Reason = reason


def promised_seconds(path: Path) -> float:
    """Return the length that a file's header claims, without decoding it; 0 where it claims none or cannot be read."""
    with suppress(Exception):
        info = soundfile.info(path)
        return float(info.frames / info.samplerate) if info.frames < UNKNOWN_FRAMES else 0.0
    with suppress(Exception), _open_with_av(path) as file:
        return max(0.0, float((file.duration or 0) / av.time_base))
    return 0.0


def _check_length(seconds: float, max_seconds: float) -> None:
    if seconds > max_seconds:
        raise AudioError("too long", f"{seconds:.6g} s; at most {max_seconds:g} s")


def _check_form(rate_hz: int, channels: int) -> None:
    """Refuse what no recording has, before room is made for it."""
    if not (LOWEST_RATE_HZ <= rate_hz <= HIGHEST_RATE_HZ and 1 <= channels <= MOST_CHANNELS):
        raise AudioError(
            "unreadable",
            f"its header claims {rate_hz:,} Hz and {channels:,} channels; "
            f"{LOWEST_RATE_HZ:,} to {HIGHEST_RATE_HZ:,} Hz and 1 to {MOST_CHANNELS} channels are read",
        )


def decode_blocks(path: Path, max_seconds: float) -> Iterator[Block]:
    """Decode an audio file, about a minute at a time.

    Raises:
        AudioError: With the reason why the file is rejected, as soon as it is found.
    """
    blocks = _decode_with_soundfile(path, max_seconds)
    try:
        first = next(blocks, None)
    except (soundfile.LibsndfileError, TypeError):  # the latter of a name that ends in .raw
        first = None
    if first is None:
        yield from _decode_with_av(path, max_seconds)
    else:
        yield first
        yield from blocks


def _decode_with_soundfile(path: Path, max_seconds: float) -> Iterator[Block]:
    """Decode to blocks; to none, what is FFmpeg's to read."""
    with soundfile.SoundFile(path) as file:
        if file.format not in SOUNDFILE_FORMATS:
            raise AudioError("unreadable", f"a cut {file.format} file looks like a whole one; convert it to wav")
        rate, count = file.samplerate, 0
        _check_form(rate, file.channels)
        promised = file.frames if file.format != "MP3" or _counts_frames(path) else UNKNOWN_FRAMES
        tolerated = MP3_GRANULE_SAMPLES if file.format == "MP3" else 0
        if file.format == "FLAC" and promised >= UNKNOWN_FRAMES:  # written to a pipe; libsndfile gives up at its end
            return
        if promised < UNKNOWN_FRAMES:
            _check_length(promised / rate, max_seconds)
        wanted = min(int(min(max_seconds, BLOCK_SECONDS) * rate) + 1, MOST_VALUES // file.channels)
        samples = np.zeros((wanted, 1), np.float32)
        while len(samples) == wanted:
            try:
                samples = file.read(wanted, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                if promised >= UNKNOWN_FRAMES and count == 0:
                    raise
                raise AudioError("truncated", str(error)) from None
            count += len(samples)
            _check_length(count / rate, max_seconds)
            yield samples, rate
    if count + tolerated < promised < UNKNOWN_FRAMES:
        raise AudioError("truncated", f"{count} of {promised} samples")


def _counts_frames(path: Path) -> bool:
    """Say whether an mp3 has the header that counts its frames; otherwise libsndfile guesses from the bit rate."""
    with path.open("rb") as file:
        return find_mp3_header(file)[1] != b""


def _decode_with_av(path: Path, max_seconds: float) -> Iterator[Block]:
    chunks: list[np.ndarray] = []
    count, given, rate, promised, exact = 0, 0, 0, 0.0, False
    # Packed, because PyAV 18 crashes on planes of 8 channels and more.
    to_float = av.AudioResampler(format="flt")
    try:
        with _open_with_av(path) as file:
            if not file.streams.audio:
                raise AudioError("not audio", "no audio stream")
            stream = file.streams.audio[0]
            promised, exact = _promised_seconds(file, stream)
            _check_length(promised - (0 if exact else CODEC_DELAY_SECONDS), max_seconds)
            for frame in file.decode(stream):
                if rate not in (0, frame.sample_rate):
                    raise AudioError("unreadable", f"the sample rate changes from {rate} to {frame.sample_rate} Hz")
                rate = frame.sample_rate
                _check_form(rate, frame.layout.nb_channels)
                for packed in to_float.resample(frame):
                    chunks.append(packed.to_ndarray().reshape(-1, packed.layout.nb_channels))
                    count += len(chunks[-1])
                if count - given > BLOCK_SECONDS * rate:
                    yield np.concatenate(chunks), rate
                    chunks, given = [], count
                if count > (max_seconds + CODEC_DELAY_SECONDS) * rate:
                    break
    except av.FFmpegError as error:
        if count:
            raise AudioError("truncated", str(error)) from None
        raise AudioError("not audio", "neither libsndfile nor FFmpeg can read it") from None
    rate = rate or SAMPLE_RATE_HZ  # of nothing at all
    if count < (promised - CODEC_DELAY_SECONDS) * rate:
        raise AudioError("truncated", f"{count / rate:.2f} of {promised:.2f} s")
    # AAC fills up its last frame; what is beyond the duration is no sound of the recording's.
    surplus = count - round(promised * rate)
    surplus = surplus if exact and 0 < surplus <= CODEC_DELAY_SECONDS * rate else 0
    _check_length((count - surplus) / rate, max_seconds)
    if count - surplus > given:
        yield np.concatenate(chunks)[: count - surplus - given], rate


def _open_with_av(path: Path) -> InputContainer:
    options = {"format_whitelist": AV_FORMATS}
    file: InputContainer = av.open(str(path.resolve()), "r", metadata_errors="ignore", options=options)
    return file


def _promised_seconds(file: InputContainer, stream: AudioStream) -> tuple[float, bool]:
    """Return the duration that a file claims, 0 if it claims none, and whether it is that of the sound to the sample.

    MPEG-4 counts samples, Matroska milliseconds and the codec's delay; for others FFmpeg guesses by the bit rate.
    """
    if file.format.name.startswith("mov") and stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base), True
    if file.duration and file.format.name.startswith("matroska"):
        return file.duration / av.time_base, False
    return 0.0, False
