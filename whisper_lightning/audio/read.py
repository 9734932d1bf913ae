"""Audio files to 16 kHz mono waveforms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torchaudio
from numpy.typing import NDArray

from whisper_lightning.addresses import REMOTE
from whisper_lightning.audio.constants import AUDIO_SUFFIXES, FRAMES_PER_SECOND, HOP_LENGTH, MAX_SECONDS, SAMPLE_RATE_HZ
from whisper_lightning.audio.containers import find_cut, has_several_parts
from whisper_lightning.audio.decoders import BLOCK_SECONDS, AudioError, Block, decode_blocks
from whisper_lightning.errors import Interrupted, UserError

SILENCE_PEAK = 1e-4
"""An utterance whose loudest sample is below this (-80 dBFS) is silent."""
SHORTEST_SOUND_FRAMES = 5
"""No word is shorter than 50 ms; a click is, also after resampling."""
CANCELLED_SHARE = 0.5
"""Channels cancel where their mix has less than this share of the power that it has for unrelated channels."""
LOUDEST_PEAK = 4.0
"""Lossy formats overshoot full scale a little; beyond this, samples are in another unit."""

Clip = str | Path | torch.Tensor | NDArray[np.float32]
"""An audio file, or `(N,)` samples at 16 kHz."""


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
    check_sound(waveform)
    return waveform


def check_sound(waveform: torch.Tensor) -> None:
    """Look for a sound in `(N,)` that lasts.

    Raises:
        AudioError: There is none.
    """
    if not _sounds(waveform):
        seconds = SHORTEST_SOUND_FRAMES / FRAMES_PER_SECOND
        raise AudioError("silent", f"nothing above {SILENCE_PEAK:g} of full scale lasts {seconds:g} s")


def find_audio(places: Sequence[Path]) -> list[Path]:
    """List files as they are, whatever their ending, and what folders hold at any depth with an ending of audio.

    Raises:
        UserError: Nothing is there, or a folder holds no audio.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            files = sorted(path for path in place.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
            # macOS puts a ._clip.wav beside each clip.wav on foreign disks, which is no audio.
            files = [path for path in files if path.is_file() and not path.name.startswith(".")]
            if not files:
                raise UserError(f"{place}: no audio in this folder (endings: {' '.join(AUDIO_SUFFIXES)})")
            found += files
        elif place.is_file():
            found.append(place)
        else:
            raise UserError(f"{place}: no such file or folder")
    # The folder is resolved and the name is not: a link keeps the name that the user sees.
    return list(dict.fromkeys(path.parent.resolve() / path.name for path in found))


def to_waveform(clip: Clip, max_seconds: float = MAX_SECONDS) -> torch.Tensor:
    """Read a file, or take a waveform as it is.

    Raises:
        AudioError: The file cannot be used.
        ValueError: It is no waveform, or longer than `max_seconds`.
    """
    if isinstance(clip, str | Path):
        return load_audio(Path(clip), max_seconds)
    waveform = torch.as_tensor(clip, dtype=torch.float32)
    if waveform.dim() != 1 or not 0 < len(waveform) <= max_seconds * SAMPLE_RATE_HZ:
        shape = tuple(waveform.shape)
        raise ValueError(f"samples of shape {shape}; a waveform is (N,) at 16 kHz, of at most {max_seconds:g} s")
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
    for waveform in _to_16_khz_mono(decode_blocks(path, max_seconds)):
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
            yield resample(kept[: (seconds + 1) * rate], rate)[before * SAMPLE_RATE_HZ : seconds * SAMPLE_RATE_HZ]
            kept, before = kept[(seconds - 1) * rate :], 1
    if len(kept) == 0:
        raise AudioError("empty", "no samples")
    yield resample(kept, rate)[before * SAMPLE_RATE_HZ :]


def resample(waveform: torch.Tensor, rate_hz: int) -> torch.Tensor:
    """Bring `(N,)` of a sampling rate to 16 kHz."""
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
