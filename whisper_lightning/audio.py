"""Audio files to 16 kHz mono waveforms, and waveforms to the log-mel spectrograms that Whisper was trained on."""

from __future__ import annotations

import struct
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Literal

import av
import numpy as np
import soundfile
import torch
import torchaudio
from torch.nn import functional as F

SAMPLE_RATE_HZ = 16_000
N_FFT = 400
"""Samples per analysis window: 25 ms."""
HOP_LENGTH = 160
"""Samples from frame to frame: 10 ms."""
FRAMES_PER_SECOND = SAMPLE_RATE_HZ // HOP_LENGTH
SAMPLES_PER_POSITION = 2 * HOP_LENGTH
"""The encoder's second convolution has stride 2: one position per 20 ms."""
MAX_SECONDS = 30.0
"""The longest context of any published Whisper."""
SILENCE_PEAK = 1e-4
"""An utterance whose loudest sample is below this (-80 dBFS) is silent."""
CODEC_DELAY_SECONDS = 0.15
"""How much less than the container's duration a complete lossy file may decode to."""

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
    """Read any audio file as 16 kHz mono.

    soundfile reads wav, flac, ogg, opus, mp3 and aiff; PyAV what it cannot (m4a, aac, webm). Both decode a cut file
    to fewer samples without an error, so lengths are checked against what the file's header promises.

    Args:
        path: A local file.
        max_seconds: Longest audio that is accepted; no more than that is decoded.

    Returns:
        `(N,)` float32.

    Raises:
        AudioError: With the reason why the file is rejected.
    """
    try:
        if not path.is_file():
            raise AudioError("missing", "no such file")
        if path.stat().st_size == 0:
            raise AudioError("empty", "0 bytes")
        with path.open("rb") as file:
            _check_container(file, path.stat().st_size)
    except OSError as error:
        raise AudioError("unreadable", error.strerror or str(error)) from None
    try:
        samples, rate = _decode_with_soundfile(path, max_seconds)
    except soundfile.LibsndfileError:
        samples, rate = _decode_with_av(path, max_seconds)
    if len(samples) == 0:
        raise AudioError("empty", "no samples")
    waveform = torch.from_numpy(samples.mean(axis=1, dtype=np.float32))
    if rate != SAMPLE_RATE_HZ:
        waveform = _resampler(rate)(waveform)
    if not torch.isfinite(waveform).all():
        raise AudioError("unreadable", "samples that are not finite")
    if waveform.abs().max() < SILENCE_PEAK:
        raise AudioError("silent", f"no sample above {SILENCE_PEAK:g} of full scale")
    return waveform


@lru_cache(maxsize=16)
def _resampler(rate_hz: int) -> torchaudio.transforms.Resample:
    return torchaudio.transforms.Resample(rate_hz, SAMPLE_RATE_HZ)


def _check_length(seconds: float, max_seconds: float) -> None:
    if seconds > max_seconds:
        raise AudioError("too long", f"{seconds:.1f} s; at most {max_seconds:g} s")


def _decode_with_soundfile(path: Path, max_seconds: float) -> tuple[np.ndarray, int]:
    """Decode to `(N, channels)` float32."""
    with soundfile.SoundFile(path) as file:
        rate = file.samplerate
        limit = int(max_seconds * rate)
        promised = file.frames
        # A file of unknown length claims an absurd one; it is decoded up to the limit.
        if limit < promised < 2**40:
            _check_length(promised / rate, max_seconds)
        try:
            samples = file.read(limit + 1, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise AudioError("truncated", str(error)) from None
    _check_length(len(samples) / rate, max_seconds)
    if len(samples) < promised < 2**40:
        raise AudioError("truncated", f"{len(samples)} of {promised} samples")
    return samples, rate


def _decode_with_av(path: Path, max_seconds: float) -> tuple[np.ndarray, int]:
    """Decode to `(N, channels)` float32."""
    chunks: list[np.ndarray] = []
    try:
        with av.open(str(path.resolve()), metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise AudioError("not audio", "no audio stream")
            stream = container.streams.audio[0]
            promised = float(stream.duration * stream.time_base) if stream.duration else 0.0
            _check_length(promised - CODEC_DELAY_SECONDS, max_seconds)
            rate = int(stream.rate)
            to_float = av.AudioResampler(format="fltp")
            count = 0
            for frame in container.decode(stream):
                for converted in to_float.resample(frame):
                    chunks.append(converted.to_ndarray().T)
                    count += len(chunks[-1])
                if count > (max_seconds + CODEC_DELAY_SECONDS) * rate:
                    break
    except av.FFmpegError as error:
        if chunks:
            raise AudioError("truncated", str(error)) from None
        raise AudioError("not audio", "neither libsndfile nor FFmpeg knows the format") from None
    seconds = count / rate
    # AAC pads up to a whole frame at the end: a clip of just 30 s may decode to a little more.
    _check_length(seconds - CODEC_DELAY_SECONDS, max_seconds)
    if seconds < promised - CODEC_DELAY_SECONDS:
        raise AudioError("truncated", f"{seconds:.2f} of {promised:.2f} s")
    if not chunks:
        return np.zeros((0, 1), np.float32), rate
    return np.concatenate(chunks)[: int(max_seconds * rate)], rate


def _check_container(file: BinaryIO, num_bytes: int) -> None:
    """Find what libsndfile mends silently: sound data shorter than the header says.

    Raises:
        AudioError: The file is truncated.
    """
    head = file.read(12)
    if head[:4] in (b"RIFF", b"FORM"):
        _check_chunks(file, num_bytes, "<I" if head[:4] == b"RIFF" else ">I")
    elif head[:4] == b"OggS":
        _check_last_page(file, num_bytes)


def _check_chunks(file: BinaryIO, num_bytes: int, size_format: str) -> None:
    """Walk the chunks of a wav (little-endian) or aiff (big-endian) file to its sound data."""
    while len(header := file.read(8)) == 8:
        (size,) = struct.unpack(size_format, header[4:])
        rest = num_bytes - file.tell()
        if header[:4] in (b"data", b"SSND"):
            # Programs that write to a pipe leave 0 or the largest number in place of the length.
            if size not in (0, 0xFFFFFFFF) and size > rest:
                raise AudioError("truncated", f"{rest} of {size} bytes of sound")
            return
        file.seek(size + size % 2, 1)
    if file.tell() >= num_bytes:
        raise AudioError("truncated", "the file ends before its sound data")


def _check_last_page(file: BinaryIO, num_bytes: int) -> None:
    """Check that the last Ogg page is whole and marked as the end of the stream (RFC 3533)."""
    file.seek(max(0, num_bytes - 2 * 65_307))
    tail = file.read()
    start = tail.rfind(b"OggS")
    page = tail[start:]
    if start < 0 or len(page) < 27 or len(page) < 27 + page[26]:
        raise AudioError("truncated", "the last Ogg page is cut")
    if len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]]) or not page[5] & 4:
        raise AudioError("truncated", "the end of the Ogg stream is missing")


@lru_cache(maxsize=4)
def mel_filters(num_mel_bins: int) -> torch.Tensor:
    """Give the Slaney filters `(F, N_FFT / 2 + 1)` of `WhisperFeatureExtractor`."""
    from transformers.audio_utils import mel_filter_bank  # here, because shard workers never need it and it is slow

    filters = mel_filter_bank(
        num_frequency_bins=1 + N_FFT // 2,
        num_mel_filters=num_mel_bins,
        min_frequency=0.0,
        max_frequency=SAMPLE_RATE_HZ / 2,
        sampling_rate=SAMPLE_RATE_HZ,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(filters.T.astype(np.float32))


def log_mel(waveforms: torch.Tensor, filters: torch.Tensor, num_frames: int, max_frames: int = 3000) -> torch.Tensor:
    """Compute the first `num_frames` frames of what `WhisperFeatureExtractor` gives for `max_frames`.

    Whisper pads with silence, and silence is the floor of an utterance's spectrum; so frames beyond the utterance
    change nothing in the others, and need not be computed. Always in float32, on the waveforms' device.

    Args:
        waveforms: `(B, N)`, right-padded with zeros, N at most `num_frames * HOP_LENGTH`.
        filters: `(F, N_FFT / 2 + 1)` from `mel_filters`.
        num_frames: Frames wanted, T.
        max_frames: Frames of the model's full context.

    Returns:
        `(B, F, T)`.
    """
    num_samples = num_frames * HOP_LENGTH
    assert waveforms.shape[1] <= num_samples <= max_frames * HOP_LENGTH
    # Short of the full context, the last windows reach into the silence that follows, not into a mirror image.
    silence = 0 if num_frames == max_frames else N_FFT
    with torch.autocast(waveforms.device.type, enabled=False):
        padded = F.pad(waveforms.float(), (0, num_samples + silence - waveforms.shape[1]))
        window = torch.hann_window(N_FFT, device=waveforms.device)
        spectrum = torch.stft(padded, N_FFT, HOP_LENGTH, window=window, return_complex=True)[..., :num_frames]
        mel = filters @ spectrum.abs().square()  # (B, F, T)
        log = mel.clamp(min=1e-10).log10()
        log = torch.maximum(log, log.amax(dim=(1, 2), keepdim=True) - 8.0)
        return (log + 4.0) / 4.0


def mask_log_mel(
    features: torch.Tensor,
    num_time_masks: int = 2,
    max_time_share: float = 0.1,
    num_frequency_masks: int = 2,
    max_frequency_bins: int = 20,
) -> torch.Tensor:
    """Mask stretches of time and bands of frequency (SpecAugment, Park et al. 2019, arXiv:1904.08779).

    Masked cells get the utterance's own floor, which is what silence looks like. Draws come from torch's CPU
    generator, so that seeding it fixes them on every device.

    Args:
        features: `(B, F, T)` log-mel.
        num_time_masks: Stretches per utterance.
        max_time_share: Longest stretch as a share of T.
        num_frequency_masks: Bands per utterance.
        max_frequency_bins: Widest band in mel bins.

    Returns:
        `(B, F, T)`, a new tensor.
    """
    batch_size, num_bins, num_frames = features.shape
    time = _bands(batch_size, num_time_masks, num_frames, int(max_time_share * num_frames))
    frequency = _bands(batch_size, num_frequency_masks, num_bins, max_frequency_bins)
    mask = (time[:, None, :] | frequency[:, :, None]).to(features.device, non_blocking=True)
    return torch.where(mask, features.amin(dim=(1, 2), keepdim=True), features)


def _bands(batch_size: int, num_bands: int, size: int, widest: int) -> torch.Tensor:
    """Draw `(B, size)` masks: `num_bands` bands each, of 0 to `widest` cells."""
    width = torch.rand(batch_size, num_bands, 1) * (min(widest, size) + 1)
    start = torch.rand(batch_size, num_bands, 1) * (size - width.floor() + 1)
    cell = torch.arange(size)
    return ((cell >= start.floor()) & (cell < start.floor() + width.floor())).any(dim=1)
