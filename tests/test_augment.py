"""Augmentation: the same for (seed, epoch, utterance) alone, and mild."""

import torch

from whisper_lightning.audio.augment import augment

WAVEFORM = 0.2 * torch.sin(torch.arange(16_000) * 0.05)


def test_draws_depend_on_seed_epoch_and_utterance_alone() -> None:
    torch.manual_seed(1)
    first = augment(WAVEFORM, 42, 0, "00000007")
    torch.manual_seed(2)
    assert torch.equal(first, augment(WAVEFORM, 42, 0, "00000007"))
    for other in ((43, 0, "00000007"), (42, 1, "00000007"), (42, 0, "00000008")):
        assert not torch.equal(first, augment(WAVEFORM, *other))


def test_the_speech_stays_louder_than_the_noise() -> None:
    noisy = 0
    for epoch in range(200):
        changed = augment(WAVEFORM, 42, epoch, "a")
        gain = float((changed * WAVEFORM).sum() / WAVEFORM.square().sum())
        noise = changed - gain * WAVEFORM
        snr_db = 10 * torch.log10(WAVEFORM.square().mean() * gain**2 / noise.square().mean().clamp(min=1e-12))
        assert 0.49 < gain < 2.01
        assert snr_db > 9
        assert float(changed.abs().max()) <= 1
        noisy += float(snr_db) < 60
    assert 70 < noisy < 130
