"""Augmentation: the same for (seed, epoch, utterance) alone, and mild."""

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tests.conftest import copy_corpus
from whisper_lightning.audio.augment import augment, change_speed, mix, reverberate, rms
from whisper_lightning.data.augmentation import Augmentation, Recordings
from whisper_lightning.data.format import Utterance
from whisper_lightning.data.generations import open_csv

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


def power_at(waveform: torch.Tensor, hz: float) -> float:
    spectrum = torch.fft.rfft(waveform * torch.hann_window(len(waveform))).abs().square()
    at = round(hz * len(waveform) / 16_000)
    return float(spectrum[at - 8 : at + 9].sum() / spectrum.sum())


@pytest.mark.parametrize("tenths", [9, 10, 11])
def test_another_speed_is_another_length_and_pitch(tenths: int) -> None:
    tone = torch.sin(2 * torch.pi * 1_000 / 16_000 * torch.arange(15_999))
    changed = change_speed(tone, tenths)
    assert len(changed) == -(-10 * 15_999 // tenths)
    assert power_at(changed, 100 * tenths) > 0.99
    assert float(rms(changed)) == pytest.approx(float(rms(tone)), rel=0.01)


def test_a_room_repeats_what_is_said_and_moves_nothing() -> None:
    """Against convolution by hand: the direct sound where it was, an echo 50 ms later, as loud as before."""
    response = torch.zeros(2_000)
    response[100], response[900], response[40] = -1.0, 0.5, 0.01
    waveform = torch.zeros(4_000)
    waveform[1_000] = 0.3
    heard = reverberate(waveform, response)
    expected = torch.zeros(4_000)
    expected[1_000], expected[1_800], expected[940] = -1.0, 0.5, 0.01
    torch.testing.assert_close(heard, expected * rms(waveform) / rms(expected), rtol=0, atol=1e-6)
    assert not reverberate(torch.zeros(100), response).any()


def test_noise_is_so_many_decibels_below() -> None:
    noise = torch.randn(16_000, generator=torch.Generator().manual_seed(1)) * 7
    added = mix(WAVEFORM, noise, 20.0) - WAVEFORM
    assert float(20 * torch.log10(rms(WAVEFORM) / rms(added))) == pytest.approx(20, abs=0.01)
    assert torch.equal(mix(WAVEFORM, torch.zeros(16_000), 20.0), WAVEFORM)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Recordings:
    """A folder of two noises, one shorter than an utterance, and one that cannot be used."""
    folder = tmp_path_factory.mktemp("sounds") / "ruidos"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for name, count in (("corto", 4_000), ("largo", 40_000)):
        soundfile.write(folder / f"{name}.wav", 0.1 * rng.standard_normal(count), 16_000)
    (folder / "roto.wav").write_bytes(b"RIFF")
    index = open_csv(folder, require_sentence=False, num_workers=0)
    assert [row.value for row in index.rejected()] == ["roto.wav"]
    return Recordings(index, np.arange(len(index), dtype=np.int32))


def utterance(key: str) -> Utterance:
    return Utterance(key, WAVEFORM, "hola", 1, "a.wav", {})


def test_an_option_more_changes_no_draw_of_the_others(sounds: Recordings) -> None:
    """Half have noise, half a room, a third each speed, whatever else there is; the same in another process."""
    noise, reverb, speed = (
        Augmentation(42, 480_000, noise=sounds),
        Augmentation(42, 480_000, reverb=sounds),
        Augmentation(42, 480_000, speed=True),
    )
    everything = Augmentation(42, 480_000, loudness=True, speed=True, noise=sounds, reverb=sounds)
    lengths, changed = Counter[int](), Counter[str]()
    for number in range(240):
        each = utterance(f"{number:08d}")
        heard = {"noise": noise(each, 3), "reverb": reverb(each, 3), "speed": speed(each, 3)}
        lengths[len(heard["speed"].waveform)] += 1
        assert len(everything(each, 3).waveform) == len(heard["speed"].waveform)
        changed.update(name for name, other in heard.items() if not torch.equal(other.waveform, WAVEFORM))
    assert set(lengths) == {17_778, 16_000, 14_546}
    assert min(lengths.values()) > 55
    assert all(95 < changed[name] < 145 for name in ("noise", "reverb")), changed
    again = pickle.loads(pickle.dumps(everything))  # noqa: S301  (our own)
    for epoch in (0, 1):
        assert torch.equal(again(utterance("7"), epoch).waveform, everything(utterance("7"), epoch).waveform)
    assert not torch.equal(everything(utterance("7"), 0).waveform, everything(utterance("7"), 1).waveform)


def test_no_utterance_is_slowed_beyond_the_context() -> None:
    """And the plan knows the greatest length that each may have."""
    speed = Augmentation(42, 17_000, speed=True)
    found = {len(speed(utterance(f"{number}"), 0).waveform) for number in range(60)}
    assert found == {16_000, 14_546}
    assert speed.longest(np.array([16_000, 15_300, 15_301, 9])).tolist() == [16_000, 17_000, 15_301, 10]
    assert Augmentation(42, 17_000, loudness=True).longest(np.array([16_000])).tolist() == [16_000]


def test_loudness_alone_is_what_it_was(tmp_path: Path) -> None:
    """Runs of earlier versions go on with the same sound."""
    index = open_csv(copy_corpus(tmp_path / "corpus", 3, 1) / "train.csv", num_workers=0)
    for i in range(3):
        read = index.read(i)
        expected = augment(read.waveform, 7, 2, read.key)
        assert torch.equal(Augmentation(7, 480_000, loudness=True)(read, 2).waveform, expected)
