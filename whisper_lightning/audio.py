"""Audio files to 16 kHz mono waveforms."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Literal

import av
import numpy as np
import soundfile
import torch
import torchaudio
from av.audio.stream import AudioStream
from av.container import InputContainer

from whisper_lightning.containers import find_cut, find_mp3_header, has_several_parts
from whisper_lightning.errors import Interrupted

SAMPLE_RATE_HZ = 16_000
HOP_LENGTH = 160
"""Samples from frame to frame: 10 ms."""
FRAMES_PER_SECOND = SAMPLE_RATE_HZ // HOP_LENGTH
SAMPLES_PER_POSITION = 2 * HOP_LENGTH
"""The encoder's second convolution has stride 2: one position per 20 ms."""
POSITIONS_PER_SECOND = SAMPLE_RATE_HZ // SAMPLES_PER_POSITION
MAX_SECONDS = 30.0
"""The longest context of any published Whisper."""
BLOCK_SECONDS = 60
"""About how much of a long recording is decoded at once."""
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aac", ".aiff", ".aif", ".webm", ".mp4")
SILENCE_PEAK = 1e-4
"""An utterance whose loudest sample is below this (-80 dBFS) is silent."""
SHORTEST_SOUND_FRAMES = 5
"""No word is shorter than 50 ms; a click is, also after resampling."""
LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 4_000, 384_000
MOST_CHANNELS = 64
MOST_VALUES = 1 << 25
"""Of a block, whatever rate and channels a file claims to have: 128 MiB."""
CANCELLED_SHARE = 0.5
"""Channels cancel where their mix has less than this share of the power that it has for unrelated channels."""
SOUNDFILE_FORMATS = {"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "NIST", "FLAC", "OGG", "MP3"}
"""Of libsndfile's formats, those of which a cut file can be told from a whole one."""
MP3_GRANULE_SAMPLES = 576
"""An mp3's header counts whole frames, the decoder drops the silence that encoders add: up to a granule less."""
LOUDEST_PEAK = 4.0
"""Lossy formats overshoot full scale a little; beyond this, samples are in another unit."""
CODEC_DELAY_SECONDS = 0.15
"""How far the container's duration and what a complete lossy file decodes to may lie apart."""
UNKNOWN_FRAMES = 2**40
"""libsndfile claims this or more for a file whose header does not give a length."""
AV_FORMATS = "mov,matroska,ogg,aac,flac,asf,amr,ac3,eac3,mpegts,flv,avi,wv,ape,tta"
"""What FFmpeg may take a file for: no playlists, which would make it open other files and addresses."""
REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
"""Beginning of a URL or of a command (`pipe:`); one letter and a colon is a drive of Windows."""

Block = tuple[np.ndarray, int]
"""What a decoder gives: `(N, channels)` float32, and their rate in Hz."""
Reason = Literal["missing", "not a local file", "unreadable", "not audio", "empty", "truncated", "too long", "silent"]


class AudioError(ValueError):
    """An audio file cannot be used.

    Attributes:
        reason: Why, in the few words that reports count by.
    """

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason: Reason = reason


def load_audio(path: Path, max_seconds: float = MAX_SECONDS) -> torch.Tensor:
    """Read any audio file as 16 kHz mono, whole.

    Args:
        path: A local file.
        max_seconds: Longest audio that is accepted; no more than that is decoded.

    Returns:
        `(N,)` float32.

    Raises:
        AudioError: With the reason why the file is rejected.
    """
    waveform = torch.cat(list(stream_audio(path, max_seconds)))
    if not _sounds(waveform):
        seconds = SHORTEST_SOUND_FRAMES / FRAMES_PER_SECOND
        raise AudioError("silent", f"nothing above {SILENCE_PEAK:g} of full scale lasts {seconds:g} s")
    return waveform


def _sounds(waveform: torch.Tensor) -> bool:
    """Say whether `(N,)` has a sound that lasts; a constant is none, nor is a click."""
    frames = waveform[: len(waveform) // HOP_LENGTH * HOP_LENGTH].view(-1, HOP_LENGTH)
    ranges = frames.amax(dim=1) - frames.amin(dim=1)
    # A resampler makes ripples of a constant, far below it.
    floor = torch.clamp(0.01 * frames.mean(dim=1).abs(), min=2 * SILENCE_PEAK)
    return int((ranges >= floor).sum()) >= SHORTEST_SOUND_FRAMES


def stream_audio(path: Path, max_seconds: float = math.inf) -> Iterator[torch.Tensor]:
    """Read any audio file as 16 kHz mono, about a minute at a time: memory does not grow with its length.

    soundfile reads wav, flac, ogg, opus, mp3 and aiff; PyAV what it cannot (m4a, aac, webm). Both decode a cut file
    to fewer samples without an error, so lengths are checked against what the file's header promises.

    Args:
        path: A local file.
        max_seconds: Longest audio that is accepted.

    Yields:
        `(N,)` float32; whole seconds, but for the last block.

    Raises:
        AudioError: With the reason why the file is rejected, as soon as it is found: perhaps after the last block.
    """
    try:
        yield from _stream(path, max_seconds)
    except (AudioError, Interrupted):
        raise
    except Exception as error:  # MemoryError too: whatever a decoder raises is about this file alone
        raise AudioError("unreadable", f"{type(error).__name__}: {error}".removesuffix(": ")) from error


def promised_seconds(path: Path) -> float:
    """Give the length that a file's header claims, without decoding it; 0 where it claims none or cannot be read."""
    with suppress(Exception):
        info = soundfile.info(path)
        return float(info.frames / info.samplerate) if info.frames < UNKNOWN_FRAMES else 0.0
    with suppress(Exception), _open_with_av(path) as file:
        return max(0.0, float((file.duration or 0) / av.time_base))
    return 0.0


def _stream(path: Path, max_seconds: float) -> Iterator[torch.Tensor]:
    if REMOTE.match(str(path)):
        raise AudioError("not a local file", "only local files are read")
    try:
        if not path.is_file():
            raise AudioError("missing", "a folder" if path.is_dir() else "no such file")
        num_bytes = path.stat().st_size
        if num_bytes == 0:
            raise AudioError("empty", "0 bytes")
        with path.open("rb") as file:
            cut = find_cut(file, num_bytes)
            joined = not cut and has_several_parts(file, num_bytes)
    except OSError as error:
        raise AudioError("unreadable", error.strerror or str(error)) from None
    if cut:
        raise AudioError("truncated", cut)
    if joined:
        raise AudioError(
            "unreadable", "several recordings one after another in one file; save them as one, or each alone"
        )
    for waveform in _to_16_khz_mono(_decode(path, max_seconds)):
        peak = float(waveform.abs().max())
        if not peak < LOUDEST_PEAK:  # also when it is not a number
            raise AudioError("unreadable", f"floating-point samples up to {peak:g}; full scale is 1")
        yield waveform


def _mix(samples: np.ndarray) -> np.ndarray:
    """Mix `(N, channels)` to `(N,)`; where the channels cancel one another, the loudest stands for all.

    A block is judged by itself, so that a long recording need not be heard twice: up to a minute it is the whole file.
    """
    mixed: np.ndarray = samples.mean(axis=1, dtype=np.float32)
    num_channels = samples.shape[1]
    if num_channels > 1:
        with np.errstate(invalid="ignore", over="ignore"):
            powers = [float(samples[:, channel].var()) for channel in range(num_channels)]
            # In the mean of unrelated channels their powers add up, over the square of their number.
            if float(mixed.var()) < CANCELLED_SHARE * sum(powers) / num_channels**2:
                return samples[:, int(np.argmax(powers))]
    return mixed


def _to_16_khz_mono(blocks: Iterator[Block]) -> Iterator[torch.Tensor]:
    """Resample `(N, channels)` blocks as if they were one: each together with a second of both its neighbours."""
    kept, rate, before = torch.zeros(0), SAMPLE_RATE_HZ, 0
    for samples, rate in blocks:
        kept = torch.cat([kept, torch.from_numpy(_mix(samples))])
        if len(kept) > (BLOCK_SECONDS + 2) * rate:
            seconds = len(kept) // rate - 1
            yield _resample(kept[: (seconds + 1) * rate], rate)[before * SAMPLE_RATE_HZ : seconds * SAMPLE_RATE_HZ]
            kept, before = kept[(seconds - 1) * rate :], 1
    if len(kept) == 0:
        raise AudioError("empty", "no samples")
    yield _resample(kept, rate)[before * SAMPLE_RATE_HZ :]


def _resample(waveform: torch.Tensor, rate_hz: int) -> torch.Tensor:
    """Bring `(N,)` to 16 kHz."""
    if rate_hz == SAMPLE_RATE_HZ:
        return waveform
    divisor = math.gcd(rate_hz, SAMPLE_RATE_HZ)
    if (rate_hz // divisor) * (SAMPLE_RATE_HZ // divisor) < 2**24:
        resampled: torch.Tensor = _resampler(rate_hz)(waveform)
        return resampled
    # By FFT: torchaudio's kernel would take gigabytes where the rates have no common divisor (44,099 Hz).
    num_samples = -(-len(waveform) * SAMPLE_RATE_HZ // rate_hz)
    spectrum = torch.fft.rfft(waveform)
    resampled = torch.fft.irfft(spectrum[: num_samples // 2 + 1], n=num_samples)
    return resampled * (SAMPLE_RATE_HZ / rate_hz)


@lru_cache(maxsize=16)
def _resampler(rate_hz: int) -> torchaudio.transforms.Resample:
    return torchaudio.transforms.Resample(rate_hz, SAMPLE_RATE_HZ)


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


def _decode(path: Path, max_seconds: float) -> Iterator[Block]:
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
    """Give the duration that a file claims, 0 if it claims none, and whether it is that of the sound to the sample.

    MPEG-4 counts samples, Matroska milliseconds and the codec's delay; for others FFmpeg guesses by the bit rate.
    """
    if file.format.name.startswith("mov") and stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base), True
    if file.duration and file.format.name.startswith("matroska"):
        return file.duration / av.time_base, False
    return 0.0, False
