"""Waveforms to the log-mel spectrograms that Whisper was trained on, and masks on them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch.nn import functional as F
from transformers.audio_utils import mel_filter_bank

from whisper_lightning.audio.constants import HOP_LENGTH, SAMPLE_RATE_HZ

N_FFT = 400
"""Samples per analysis window: 25 ms."""


@lru_cache(maxsize=4)
def mel_filters(num_mel_bins: int) -> torch.Tensor:
    """Return the Slaney filters `(F, N_FFT / 2 + 1)` of `WhisperFeatureExtractor`."""
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
