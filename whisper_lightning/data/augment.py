"""Small changes to a training utterance that leave its words as they are, the same whenever the run is repeated."""

from __future__ import annotations

import hashlib

import torch

MAX_GAIN_DB = 6.0
NOISE_SHARE = 0.5
"""Share of utterances that get noise."""
SNR_DB = (10.0, 40.0)
"""Power of the utterance over that of the noise."""


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
    digest = hashlib.sha256(repr((seed, epoch, key)).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    gain, chance, snr = torch.rand(3, generator=generator).tolist()
    waveform = waveform * 10 ** (MAX_GAIN_DB * (2 * gain - 1) / 20)
    if chance < NOISE_SHARE:
        snr_db = SNR_DB[0] + (SNR_DB[1] - SNR_DB[0]) * snr
        scale = waveform.square().mean().sqrt() * 10 ** (-snr_db / 20)
        waveform = waveform + scale * torch.randn(len(waveform), generator=generator)
    return waveform.clamp(-1, 1)
