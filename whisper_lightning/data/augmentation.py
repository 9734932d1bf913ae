"""What is done to the sound of a training utterance, anew in each epoch and the same whenever the run is repeated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from whisper_lightning.audio.augment import (
    NOISE_SHARE,
    SNR_DB,
    SPEEDS_IN_TENTHS,
    augment,
    change_speed,
    draw,
    mix,
    reverberate,
)
from whisper_lightning.data.format import Utterance
from whisper_lightning.data.shards import ShardIndex

REVERB_SHARE = 0.5
"""Share of utterances that sound in a room."""


@dataclass(frozen=True, eq=False)
class Recordings:
    """Noises, or rooms: the usable ones of an index."""

    index: ShardIndex
    members: NDArray[np.int32]

    def read(self, number: int) -> torch.Tensor:
        """Read one, `(N,)`: any number names one."""
        return self.index.read(int(self.members[number % len(self.members)])).waveform


@dataclass(frozen=True, eq=False)
class Augmentation:
    """Changes the sound of utterances and leaves their words; picklable.

    Every draw depends on (what, seed, epoch, utterance) alone: an option more changes no draw of the others.

    Attributes:
        seed: The run's seed.
        max_samples: The model's context, beyond which no utterance is slowed.
        loudness: Change the loudness, and add white noise.
        speed: Change the speed.
        noise: Recordings of which one is added to half of the utterances.
        reverb: Impulse responses of rooms, in one of which half of the utterances sound.
    """

    seed: int
    max_samples: int
    loudness: bool = False
    speed: bool = False
    noise: Recordings | None = None
    reverb: Recordings | None = None

    def __call__(self, utterance: Utterance, epoch: int) -> Utterance:
        """Change an utterance for an epoch."""
        waveform, key = utterance.waveform, utterance.key
        if self.speed:
            tenths = SPEEDS_IN_TENTHS[draw("speed", self.seed, epoch, key) % len(SPEEDS_IN_TENTHS)]
            if tenths > 10 or int(self.longest(np.array([len(waveform)]))[0]) > len(waveform):
                waveform = change_speed(waveform, tenths)
        if self.reverb is not None and self._draw("reverb", epoch, key) < REVERB_SHARE:
            waveform = reverberate(waveform, self.reverb.read(draw("room", self.seed, epoch, key)))
        if self.noise is not None and self._draw("noise", epoch, key) < NOISE_SHARE:
            recorded = self.noise.read(draw("recording", self.seed, epoch, key))
            begin = draw("begin", self.seed, epoch, key) % max(1, len(recorded) - len(waveform) + 1)
            noise = recorded[begin:].repeat(-(-len(waveform) // len(recorded[begin:])))[: len(waveform)]
            waveform = mix(waveform, noise, SNR_DB[0] + (SNR_DB[1] - SNR_DB[0]) * self._draw("snr", epoch, key))
        if self.loudness:
            waveform = augment(waveform, self.seed, epoch, key)
        return utterance._replace(waveform=waveform.clamp(-1, 1))

    def longest(self, num_samples: NDArray[np.integer]) -> NDArray[np.int32]:
        """Return the greatest length that utterances of such lengths have in any epoch, `(U,)`."""
        if not self.speed:
            return num_samples.astype(np.int32)
        slow = -(-10 * num_samples.astype(np.int64) // min(SPEEDS_IN_TENTHS))
        return np.where(slow <= self.max_samples, slow, num_samples).astype(np.int32)

    def _draw(self, what: str, epoch: int, key: str) -> float:
        return draw(what, self.seed, epoch, key) / 2**64
