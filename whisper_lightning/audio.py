"""Audio files to 16 kHz mono waveforms, and waveforms to the log-mel spectrograms that Whisper was trained on."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Literal

import av
import numpy as np
import soundfile
import torch
import torchaudio
from torch.nn import functional as F

from whisper_lightning.containers import find_cut

SAMPLE_RATE_HZ = 16_000
N_FFT = 400
"""Samples per analysis window: 25 ms."""
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
    waveform = torch.cat(list(stream_audio(path, max_seconds)))[: int(max_seconds * SAMPLE_RATE_HZ)]
    if float(waveform.abs().max()) < SILENCE_PEAK:
        raise AudioError("silent", f"no sample above {SILENCE_PEAK:g} of full scale")
    return waveform


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
    if REMOTE.match(str(path)):
        raise AudioError("not a local file", "only local files are read")
    try:
        if not path.is_file():
            raise AudioError("missing", "a folder" if path.is_dir() else "no such file")
        if path.stat().st_size == 0:
            raise AudioError("empty", "0 bytes")
        with path.open("rb") as file:
            cut = find_cut(file, path.stat().st_size)
    except OSError as error:
        raise AudioError("unreadable", error.strerror or str(error)) from None
    if cut:
        raise AudioError("truncated", cut)
    for waveform in _to_16_khz_mono(_decode(path, max_seconds)):
        peak = float(waveform.abs().max())
        if not peak < LOUDEST_PEAK:  # also when it is not a number
            raise AudioError("unreadable", f"floating-point samples up to {peak:g}; full scale is 1")
        yield waveform


def _to_16_khz_mono(blocks: Iterator[Block]) -> Iterator[torch.Tensor]:
    """Resample `(N, channels)` blocks as if they were one: each together with a second of both its neighbours."""
    kept, rate, before = torch.zeros(0), SAMPLE_RATE_HZ, 0
    for samples, rate in blocks:
        kept = torch.cat([kept, torch.from_numpy(samples.mean(axis=1, dtype=np.float32))])
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
        raise AudioError("too long", f"{seconds:.1f} s; at most {max_seconds:g} s")


def _decode(path: Path, max_seconds: float) -> Iterator[Block]:
    blocks = _decode_with_soundfile(path, max_seconds)
    try:
        first = next(blocks, None)
    except soundfile.LibsndfileError:
        first = None
    if first is None:
        yield from _decode_with_av(path, max_seconds)
    else:
        yield first
        yield from blocks


def _decode_with_soundfile(path: Path, max_seconds: float) -> Iterator[Block]:
    """Decode to blocks; to none, what is FFmpeg's to read."""
    with soundfile.SoundFile(path) as file:
        rate, count = file.samplerate, 0
        promised = file.frames if file.format != "MP3" or _counts_frames(path) else UNKNOWN_FRAMES
        tolerated = MP3_GRANULE_SAMPLES if file.format == "MP3" else 0
        if file.format == "FLAC" and promised >= UNKNOWN_FRAMES:  # written to a pipe; libsndfile gives up at its end
            return
        if promised < UNKNOWN_FRAMES:
            _check_length(promised / rate, max_seconds)
        wanted = int(min(max_seconds, BLOCK_SECONDS) * rate) + 1
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
        tag = file.read(10)  # ID3v2: its size has 7 bits per byte
        size = 10 + sum(byte << (21 - 7 * i) for i, byte in enumerate(tag[6:])) if tag[:3] == b"ID3" else 0
        file.seek(size)
        first_frame = file.read(1500)
    return any(name in first_frame for name in (b"Xing", b"Info", b"VBRI"))


def _decode_with_av(path: Path, max_seconds: float) -> Iterator[Block]:
    chunks: list[np.ndarray] = []
    count, given, rate, promised = 0, 0, 1, 0.0
    # Packed, because PyAV 18 crashes on planes of 8 channels and more.
    to_float = av.AudioResampler(format="flt")
    try:
        with av.open(str(path.resolve()), metadata_errors="ignore", options={"format_whitelist": AV_FORMATS}) as file:
            if not file.streams.audio:
                raise AudioError("not audio", "no audio stream")
            # Other containers have no duration; FFmpeg guesses one from the bit rate.
            if file.duration and file.format.name.startswith(("mov", "matroska")):
                promised = file.duration / av.time_base
                _check_length(promised - CODEC_DELAY_SECONDS, max_seconds)
            for frame in file.decode(file.streams.audio[0]):
                rate = frame.sample_rate
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
    seconds = count / rate
    # AAC pads up to a whole frame at the end: a clip of just 30 s may decode to a little more.
    _check_length(seconds - CODEC_DELAY_SECONDS, max_seconds)
    if seconds < promised - CODEC_DELAY_SECONDS:
        raise AudioError("truncated", f"{seconds:.2f} of {promised:.2f} s")
    if chunks:
        yield np.concatenate(chunks), rate


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
        spectrum = torch.stft(padded, N_FFT, HOP_LENGTH, window=window, return_complex=True)[..., :max_frames]
        mel = filters @ spectrum.abs().square()  # (B, F, T + 3), or T at full context
        log = mel.clamp(min=1e-10).log10()
        # The utterance's end sounds in the frames after T too; the loudest frame may be one of them.
        log = torch.maximum(log, log.amax(dim=(1, 2), keepdim=True) - 8.0)[..., :num_frames]
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
    # Joined on the device: two short copies do not make the host wait, one of the whole mask might.
    time, frequency = (mask.to(features.device, non_blocking=True) for mask in (time, frequency))
    mask = time[:, None, :] | frequency[:, :, None]
    return torch.where(mask, features.amin(dim=(1, 2), keepdim=True), features)


def _bands(batch_size: int, num_bands: int, size: int, widest: int) -> torch.Tensor:
    """Draw `(B, size)` masks: `num_bands` bands each, of 0 to `widest` cells."""
    width = torch.rand(batch_size, num_bands, 1) * (min(widest, size) + 1)
    start = torch.rand(batch_size, num_bands, 1) * (size - width.floor() + 1)
    cell = torch.arange(size)
    return ((cell >= start.floor()) & (cell < start.floor() + width.floor())).any(dim=1)
