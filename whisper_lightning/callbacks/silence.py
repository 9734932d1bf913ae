"""What a model writes where nobody speaks; all of it is invented."""

from __future__ import annotations

from typing import cast

import torch
from lightning.pytorch import Trainer

from whisper_lightning.audio.constants import SAMPLE_RATE_HZ
from whisper_lightning.batch import Batch
from whisper_lightning.callbacks.heard import Heard
from whisper_lightning.model.module import WhisperModule

SECONDS = 10


def wordless() -> dict[str, torch.Tensor]:
    """Return sounds without a word by their names, `(N,)` each: silence and noises, the same each time."""
    generator = torch.Generator().manual_seed(0)
    white, other = torch.randn(2, SECONDS * SAMPLE_RATE_HZ, generator=generator)
    time = torch.arange(SECONDS * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    rumble = other.cumsum(0) - other.cumsum(0).mean()
    return {
        "silence": torch.zeros_like(white),
        "white noise, -60 dB": 1e-3 * white,
        "white noise, -30 dB": 0.03 * white,
        "rumble, -30 dB": 0.03 * rumble / rumble.std(),
        "hum of 50 Hz, -30 dB": 0.045 * torch.sin(2 * torch.pi * 50 * time),
    }


def hear_silence(trainer: Trainer) -> Heard:
    """Decode them as a validation decodes; every rank does, since a sharded model needs all of them."""
    module, sounds = cast("WhisperModule", trainer.lightning_module), wordless()
    names, prompt, end = list(sounds), module.encoder.prompt, module.encoder.end
    batch = Batch(
        keys=names,
        waveforms=torch.stack(list(sounds.values()))[:, : module.full_samples],
        decoder_input_ids=torch.tensor([prompt] * len(names)),
        label_positions=torch.arange(1, len(names) + 1) * len(prompt) - 1,
        label_tokens=torch.full((len(names),), end),
        sentences=[""] * len(names),
        audio=names,
        audio_seconds=float(SECONDS * len(names)),
    )
    batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
    heard = Heard()
    heard.add(batch, trainer.strategy.validation_step(batch, 0))
    return heard


def count_words(heard: Heard) -> float:
    """Return how many words were written."""
    return float(sum(len(row.hypothesis.split()) for row in heard.rows))
