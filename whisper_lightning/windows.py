"""Where a recording is cut: in its pauses, into windows that the model's context holds.

A fine-tuned Whisper has learnt utterances and is scored on them; so each pause ends a window, and windows are
utterances too. What counts as a pause, and what as silence, is relative to the recording. Silence is not decoded, and
therefore defined cautiously: it is about as quiet as the quietest of the recording, for a second and more.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from whisper_lightning.audio import HOP_LENGTH, SAMPLE_RATE_HZ, SILENCE_PEAK

FRAMES_PER_SECOND = SAMPLE_RATE_HZ // HOP_LENGTH
FLOOR_DB = 20 * np.log10(SILENCE_PEAK)
"""Levels are counted from here; what is below is no sound at all."""
MARGIN_SECONDS = 0.2
"""What stays between a sound and a cut at least. So a pause lasts 0.4 s."""
SILENCE_SECONDS = 0.5
"""Silence that is farther than this from every sound separates, whatever the level of a pause."""
LEAD_SECONDS = 0.05
"""Silence that stays before a window's first sound. Utterances begin at once, and small models expect it: the
quickstart's, with up to half a second of silence before the words, errs several times as often; after them, no more."""
PAUSE_SHARE = 0.15
"""A pause is quieter than this share of the way, in decibels, from the recording's floor to its loudest sound."""
DEPTH_DB = 12.0
"""A pause is quieter than the loudest sound by this at least: even noise and music have softer moments."""
NOISE_DB = 3.0
"""How far background noise may rise above the floor."""
QUIET_DB = 3.0
"""What is this near to the quietest of a pause is as quiet."""
SAFE_DB = 25.0
"""Nothing that is less than this below the loudest sound is left undecoded."""
SHORTEST_SHARE = 0.1
"""Where there is no pause, no window becomes shorter than this share of the longest."""
DIP_FRAMES = 11
"""Where there is no pause, a cut goes to the least loud tenth of a second."""


class Window(NamedTuple):
    """A stretch of a recording that is decoded at once: samples `start` to `stop`."""

    start: int
    stop: int


def frame_levels(waveform: torch.Tensor) -> NDArray[np.float32]:
    """Give the level of each 10 ms of `(N,)` in dB of full scale, at least `FLOOR_DB`; a last part counts as one.

    By the variance, because a constant offset is no sound.
    """
    whole = len(waveform) // HOP_LENGTH * HOP_LENGTH
    power = waveform[:whole].view(-1, HOP_LENGTH).var(dim=1, correction=0)
    if whole < len(waveform):
        power = torch.cat([power, waveform[whole:].var(correction=0)[None]])
    levels: NDArray[np.float32] = (10 * power.clamp(min=10 ** (FLOOR_DB / 10)).log10()).numpy()
    return levels


def find_windows(levels: NDArray[np.float32], num_samples: int, max_seconds: float) -> list[Window]:
    """Cut a recording in its pauses.

    Windows are in order and do not overlap; what no window has is silence. What fits into one window is left whole,
    silence at its ends included, as a test decodes it.

    Args:
        levels: From `frame_levels`, of the whole recording.
        num_samples: Length of the recording.
        max_seconds: Longest window.
    """
    assert len(levels) == -(-num_samples // HOP_LENGTH)
    if levels.max() <= FLOOR_DB:
        return []
    if num_samples <= max_seconds * SAMPLE_RATE_HZ:
        return [Window(0, num_samples)]
    around = _loudest_around(levels, MARGIN_SECONDS)
    floor, loudest = float(np.percentile(around, 1)), float(around.max())
    silence = min(floor + NOISE_DB, loudest - SAFE_DB)
    pause = min(floor + max(2 * NOISE_DB, PAUSE_SHARE * (loudest - floor)), loudest - DEPTH_DB)
    max_frames = int(max_seconds * FRAMES_PER_SECOND)
    close = _loudest_around(levels, LEAD_SECONDS)
    power = np.convolve(10 ** (levels.astype(np.float64) / 10), np.ones(DIP_FRAMES), mode="same")
    windows = []
    for between_silences in _runs(_loudest_around(levels, SILENCE_SECONDS) >= silence):
        for start, stop in _split(*between_silences, _quietest_places(around, *between_silences, pause)):
            first = int(np.flatnonzero(close[start:stop] >= silence)[0])
            last = int(np.flatnonzero(around[start:stop] >= silence)[-1])
            start, stop = start + first, start + last + 1
            windows += _split(start, stop, _least_loud_places(power, start, stop, max_frames))
    return [Window(start * HOP_LENGTH, min(stop * HOP_LENGTH, num_samples)) for start, stop in windows]


def _loudest_around(levels: NDArray[np.float32], seconds: float) -> NDArray[np.float32]:
    """Give the highest level up to so many seconds before and after each frame: low where nothing sounds near it."""
    reach = round(seconds * FRAMES_PER_SECOND)
    around: NDArray[np.float32] = F.max_pool1d(torch.from_numpy(levels)[None], 2 * reach + 1, 1, reach)[0].numpy()
    return around


def _runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Give beginning and end of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]])))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def _split(start: int, stop: int, places: list[int]) -> list[tuple[int, int]]:
    ends = [start, *places, stop]
    return list(pairwise(ends))


def _quietest_places(around: NDArray[np.float32], start: int, stop: int, pause: float) -> list[int]:
    """Give the middle of the quiet part of each pause between two sounds."""
    places = []
    for first, last in _runs(around[start:stop] < pause):
        if first > 0 and last < stop - start:  # at an end, it is next to silence
            levels = around[start + first : start + last]
            quiet = np.flatnonzero(levels <= levels.min() + QUIET_DB)
            places.append(start + first + int(quiet[len(quiet) // 2]))
    return places


def _least_loud_places(power: NDArray[np.float64], start: int, stop: int, max_frames: int) -> list[int]:
    """Give as many places as leave no part longer than `max_frames`: each in the later half of what is possible."""
    places = []
    while stop - start > max_frames:
        first = start + max_frames // 2
        last = min(start + max_frames, stop - int(SHORTEST_SHARE * max_frames))
        start = first + int(power[first : last + 1].argmin())
        places.append(start)
    return places
