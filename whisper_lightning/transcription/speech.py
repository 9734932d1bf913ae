"""The speech of a recording, put together, and where it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from whisper_lightning.audio.constants import SAMPLE_RATE_HZ

if TYPE_CHECKING:
    from faster_whisper.transcribe import Segment, Word

Window = tuple[float, float]
"""Part of the speech that is heard at once: from when to when, in seconds."""
SHORTEST_SILENCE_MS, PAUSE_SECONDS = 160, 0.3
"""Speech is cut at silences; so much of each is kept, and of what else is between, noise or music."""
SHORTEST_SECONDS = 0.1


class Speech(NamedTuple):
    """What the detector of voices takes for speech, put together with a short pause between.

    Attributes:
        waveform: `(N,)`, the speech alone. All times but those of `restored` are times in it, in seconds.
        spans: `(M, 2)`: from when to when each span of speech is.
        shifts: `(M,)`: how much later it is in the recording.
    """

    waveform: NDArray[np.float32]
    spans: NDArray[np.float64]
    shifts: NDArray[np.float64]

    @classmethod
    def of(cls, waveform: NDArray[np.float32], found: list[tuple[int, int]]) -> Speech:
        """Put together what is from each first to each last of these samples of a recording."""
        samples = np.array(found, np.int64).reshape(-1, 2)
        starts, nexts = samples[:, 0], np.append(samples[1:, 0], len(waveform))
        ends = np.minimum(samples[:, 1] + int(PAUSE_SECONDS * SAMPLE_RATE_HZ), nexts[: len(samples)])
        parts = [waveform[start:end] for start, end in zip(starts, ends, strict=True)]
        shifts = starts - np.cumsum(ends - starts) + (ends - starts)
        joined = np.concatenate([waveform[:0], *parts])
        return cls(joined, (samples - shifts[:, None]) / SAMPLE_RATE_HZ, shifts / SAMPLE_RATE_HZ)

    @property
    def seconds(self) -> float:
        """Its length with its pauses."""
        return len(self.waveform) / SAMPLE_RATE_HZ

    def between(self, start: float, end: float) -> float:
        """Return how much speech there is from `start` to `end`."""
        inside = np.clip(self.spans, start, end)
        return float((inside[:, 1] - inside[:, 0]).sum())

    def windows(self, start: float, end: float, longest: float) -> list[Window]:
        """Cut what is from `start` to `end` between spans into windows of at most `longest` seconds."""
        windows: list[Window] = []
        for first, last in np.clip(self.spans, start, end).tolist():
            if last - first < SHORTEST_SECONDS:
                continue
            if windows and last - windows[-1][0] <= longest:
                first = windows.pop()[0]
            windows.append((first, last))
        return windows

    def restored(self, segment: Segment) -> Segment:
        """Return a segment its times in the recording; each word stays in one span, and none is shown over silence."""
        words = segment.words or []
        for each in words or [segment]:
            span = self._span(each)
            times = np.clip([each.start, each.end], *self.spans[span]) + self.shifts[span]
            each.start, each.end = times.round(3).tolist()
        if words:
            segment.start, segment.end = words[0].start, words[-1].end
        return segment

    def split(self, segment: Segment) -> Iterator[Segment]:
        """Yield what is in one span after the other of a segment with words, with its times in the recording."""
        for _, group in groupby(segment.words or [], self._span):
            words = list(group)
            text = "".join(word.word for word in words)
            yield self.restored(replace(segment, text=text, words=words))

    def _span(self, heard: Segment | Word) -> int:
        """Return the number of the span that something that was heard has most of its time in."""
        common = np.minimum(heard.end, self.spans[:, 1]) - np.maximum(heard.start, self.spans[:, 0])
        return int(common.argmax())


def find_speech(waveform: NDArray[np.float32], longest: float) -> Speech:
    """Find the speech of `(N,)` samples with faster-whisper's detector; no span is longer than `longest` seconds."""
    from faster_whisper.vad import VadOptions, get_speech_timestamps

    options = VadOptions(max_speech_duration_s=longest, min_silence_duration_ms=SHORTEST_SILENCE_MS)
    return Speech.of(waveform, [(each["start"], each["end"]) for each in get_speech_timestamps(waveform, options)])
