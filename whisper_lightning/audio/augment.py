"""Small changes to a training utterance that leave its words as they are, the same whenever the run is repeated."""

from __future__ import annotations

import hashlib

import torch
from torchaudio.functional import fftconvolve

from whisper_lightning.audio.constants import SAMPLE_RATE_HZ
from whisper_lightning.audio.read import resample

SPEEDS_IN_TENTHS = (9, 10, 11)
"""Speed perturbation's (Ko et al. 2015, Interspeech): each is as likely as the others, and pitch goes with it."""
MAX_GAIN_DB = 6.0
NOISE_SHARE = 0.5
"""Share of utterances that get noise."""
SNR_DB = (10.0, 40.0)
"""Power of the utterance over that of the noise."""


def draw(*identity: object) -> int:
    """Return a number of 64 bits that depends on its arguments alone, and looks as if drawn."""
    return int.from_bytes(hashlib.sha256(repr(identity).encode()).digest()[:8], "little")


def augment(waveform: torch.Tensor, seed: int, epoch: int, key: str) -> torch.Tensor:
    """Change loudness and, for half of the utterances, add white noise.

    Draws depend on (seed, epoch, utterance) alone: not on the worker that makes them, nor on what came before.

    Args:
        waveform: `(N,)`.
        seed: The run's seed.
        epoch: Counts from 0.
        key: Name of the utterance.

    Returns:
        `(N,)`, a new tensor.
    """
    generator = torch.Generator().manual_seed(draw(seed, epoch, key) >> 1)
    gain, chance, snr = torch.rand(3, generator=generator).tolist()
    waveform = waveform * 10 ** (MAX_GAIN_DB * (2 * gain - 1) / 20)
    if chance < NOISE_SHARE:
        snr_db = SNR_DB[0] + (SNR_DB[1] - SNR_DB[0]) * snr
        scale = rms(waveform) * 10 ** (-snr_db / 20)
        waveform = waveform + scale * torch.randn(len(waveform), generator=generator)
    return waveform.clamp(-1, 1)


def rms(waveform: torch.Tensor) -> torch.Tensor:
    """Return the root mean square of `(N,)`."""
    return waveform.square().mean().sqrt()


def change_speed(waveform: torch.Tensor, tenths: int) -> torch.Tensor:
    """Play `(N,)` at so many tenths of its speed, as a tape; `(ceil(10 N / tenths),)`."""
    return resample(waveform, SAMPLE_RATE_HZ * tenths // 10)


def reverberate(waveform: torch.Tensor, response: torch.Tensor) -> torch.Tensor:
    """Let an utterance sound in a room; its direct sound and its loudness stay as they are.

    Args:
        waveform: `(N,)`.
        response: `(M,)`, the room's impulse response.

    Returns:
        `(N,)`.
    """
    direct = int(response.abs().argmax())
    heard: torch.Tensor = fftconvolve(waveform, response)[direct : direct + len(waveform)]
    return heard * (rms(waveform) / rms(heard).clamp(min=1e-9))


def mix(waveform: torch.Tensor, noise: torch.Tensor, snr_db: float) -> torch.Tensor:
    """Add a recorded noise `(N,)` to an utterance `(N,)`, so many dB below it; a silent one adds nothing."""
    return waveform + noise * (rms(waveform) / rms(noise).clamp(min=1e-9) * 10 ** (-snr_db / 20))


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
