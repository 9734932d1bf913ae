"""Cutting: what sounds is in exactly one window, windows fit the context, cuts fall in pauses."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from whisper_lightning.windows import Window, find_windows, frame_levels

RATE = 16_000
Span = tuple[int, int]


def babble(rng: np.random.Generator, seconds: float, loudness: float = 0.1) -> np.ndarray:
    """Noise that is louder and softer four times a second, as syllables are; it begins and ends at once."""
    time = np.arange(int(seconds * RATE)) / RATE
    return rng.normal(0, loudness, len(time)) * (0.55 + 0.45 * np.cos(2 * np.pi * 4 * time))


def recording(
    seed: int, total_seconds: float, sounds: tuple[float, float], pauses: tuple[float, float], noise: float
) -> tuple[np.ndarray, list[Span]]:
    """Alternate pauses and sounds of random lengths over noise; give the samples and where the sounds are."""
    rng = np.random.default_rng(seed)
    parts, spans, length = [], [], 0
    while length < total_seconds * RATE:
        pause = np.zeros(int(rng.uniform(*pauses) * RATE))
        sound = babble(rng, rng.uniform(*sounds), 10 ** rng.uniform(-1.7, -0.7))
        parts += [pause, sound]
        spans.append((length + len(pause), length + len(pause) + len(sound)))
        length = spans[-1][1]
    parts.append(np.zeros(int(pauses[1] * RATE)))
    samples = np.concatenate(parts)
    return samples + rng.normal(0, noise, len(samples)) * (noise > 0), spans


def windows_of(samples: np.ndarray, max_seconds: float = 30.0) -> list[Window]:
    """Cut, and check what holds for every recording."""
    levels = frame_levels(torch.from_numpy(samples.astype(np.float32)))
    windows = find_windows(levels, len(samples), max_seconds)
    assert all(0 <= window.start < window.stop <= len(samples) for window in windows)
    assert all(window.stop - window.start <= max_seconds * RATE for window in windows)
    assert all(before.stop <= after.start for before, after in pairwise(windows))
    return windows


def covered(windows: list[Window], num_samples: int) -> np.ndarray:
    count = np.zeros(num_samples, np.int32)
    for start, stop in windows:
        count[start:stop] += 1
    return count


@pytest.mark.parametrize("noise", [0.0, 1e-4, 1e-3, 5e-3])
@pytest.mark.parametrize(
    ("sounds", "pauses", "max_seconds"),
    [((0.3, 3.5), (0.5, 1.5), 4.0), ((0.3, 12.0), (0.5, 6.0), 30.0), ((0.1, 45.0), (0.1, 3.0), 30.0)],
)
@pytest.mark.parametrize("seed", range(2))
def test_sounds_are_in_exactly_one_window(
    seed: int, sounds: tuple[float, float], pauses: tuple[float, float], max_seconds: float, noise: float
) -> None:
    samples, spans = recording(seed, 200, sounds, pauses, noise)
    windows = windows_of(samples, max_seconds)
    count = covered(windows, len(samples))
    assert all((count[start:stop] == 1).all() for start, stop in spans)
    if sounds[1] < max_seconds and pauses[0] >= 0.5:  # then no window has to be cut in a sound
        assert not [at for window in windows for at in window if any(start < at < stop for start, stop in spans)]
        assert len(windows) >= len(spans)


def test_long_silence_is_in_no_window() -> None:
    rng = np.random.default_rng(0)
    speech, silence = babble(rng, 10), rng.normal(0, 1e-3, 60 * RATE)
    windows = windows_of(np.concatenate([silence, speech, silence, speech, silence]))
    assert [round(window.start / RATE, 2) for window in windows] == [59.95, 129.95]
    assert [round(window.stop / RATE, 2) for window in windows] == [70.2, 140.2]


def test_a_stretch_without_a_pause_is_cut_where_it_is_least_loud() -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(0, 0.1, 100 * RATE)
    dips = [25.0, 47.0, 70.0]
    for second in dips:
        samples[int(second * RATE) : int((second + 0.15) * RATE)] *= 0.3
    windows = windows_of(samples)
    assert (covered(windows, len(samples)) == 1).all()
    cuts = [window.stop / RATE for window in windows[:-1]]
    assert len(cuts) == 3
    assert all(dip <= cut <= dip + 0.15 for dip, cut in zip(dips, cuts, strict=True))


@pytest.mark.parametrize("seconds", [30.01, 31, 59, 61])
def test_no_rest_becomes_a_scrap(seconds: float) -> None:
    windows = windows_of(np.random.default_rng(0).normal(0, 0.1, int(seconds * RATE)))
    assert min(window.stop - window.start for window in windows) >= 2.9 * RATE


def test_what_fits_is_left_whole() -> None:
    samples = np.concatenate([np.zeros(4 * RATE), babble(np.random.default_rng(0), 3), np.zeros(23 * RATE)])
    assert windows_of(samples) == [(0, 30 * RATE)]
    assert len(windows_of(np.append(samples, 0.0))) == 1
    assert windows_of(samples[:777]) == []


@pytest.mark.parametrize("seconds", [3.0, 100.0])
@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_nothing_but_silence_gives_no_window(seconds: float, offset: float) -> None:
    assert windows_of(np.full(int(seconds * RATE), offset)) == []


def test_a_bang_and_a_quiet_speaker_do_not_hide_one_another() -> None:
    """Silence is what is near the recording's floor, not what is far below its loudest sound."""
    rng = np.random.default_rng(0)
    samples = np.concatenate(
        [babble(rng, 8, 0.1), np.zeros(RATE), babble(rng, 8, 0.005), np.zeros(RATE), babble(rng, 8, 0.1)] * 3
    )
    samples += rng.normal(0, 1e-4, len(samples))
    samples[5 * RATE : 5 * RATE + 300] = 0.99
    count = covered(windows_of(samples), len(samples))
    for first in range(0, len(samples), 26 * RATE):
        for start in (0, 9, 18):
            assert (count[first + start * RATE : first + (start + 8) * RATE] == 1).all()


def test_blocks_have_the_levels_of_the_whole() -> None:
    waveform = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, 5 * RATE + 77)).float()
    apart = np.concatenate([frame_levels(waveform[: 2 * RATE]), frame_levels(waveform[2 * RATE :])])
    assert np.array_equal(apart, frame_levels(waveform))
    assert len(apart) == 501
