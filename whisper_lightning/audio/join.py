"""Utterances one after the other, with a pause between them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from whisper_lightning.audio.constants import SAMPLES_PER_POSITION

QUIET_SHARE = 0.05
"""Share of an utterance that counts as its pauses. Its very quietest place may be zeros that an encoder put there."""


def join(
    waveforms: Sequence[torch.Tensor], pauses: Sequence[int], generator: torch.Generator
) -> tuple[torch.Tensor, list[int]]:
    """Put utterances one after the other; each begins at a whole encoder position.

    A pause is white noise as loud as the quiet places of the quieter neighbour. Zeros would tell the model where the
    clips were put together: no recording goes digitally silent between two sentences, unless its clips do.

    Args:
        waveforms: `(N,)` each, at least one.
        pauses: Encoder positions between each two of them.
        generator: Draws the noise.

    Returns:
        `(N,)`, which ends where the last one does, and the position at which each begins.
    """
    begins, position = [0], 0
    for waveform, pause in zip(waveforms, pauses, strict=False):
        position += -(-len(waveform) // SAMPLES_PER_POSITION) + pause
        begins.append(position)
    assert len(begins) == len(waveforms)
    joined = torch.empty(begins[-1] * SAMPLES_PER_POSITION + len(waveforms[-1]))
    levels = [quiet_level(waveform) for waveform in waveforms]
    end = 0
    for i, (waveform, begin) in enumerate(zip(waveforms, begins, strict=True)):
        start = begin * SAMPLES_PER_POSITION
        level = min(levels[max(0, i - 1)], levels[i])
        joined[end:start] = level * torch.randn(start - end, generator=generator)
        end = start + len(waveform)
        joined[start:end] = waveform
    return joined, begins


def quiet_level(waveform: torch.Tensor) -> float:
    """Return the root mean square below which the quietest `QUIET_SHARE` of the 20 ms stretches of `(N,)` are."""
    size = min(SAMPLES_PER_POSITION, len(waveform))
    power = waveform[: len(waveform) // size * size].reshape(-1, size).square().mean(dim=1)
    return float(power.sort().values[int(QUIET_SHARE * len(power))].sqrt())
