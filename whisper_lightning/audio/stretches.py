"""Stretches of long recordings, cut while these are decoded: once for all stretches that follow one another."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch

from whisper_lightning.audio.constants import MAX_SECONDS, SAMPLE_RATE_HZ
from whisper_lightning.audio.decoders import AudioError
from whisper_lightning.audio.read import check_sound, stream_audio

OVERHANG_SECONDS = 1.0
"""How far a stretch may reach beyond the end of its recording: the last subtitle often does."""


class Cutter:
    """Cuts stretches out of recordings, and keeps of these no more than a minute or two.

    A stretch that begins no earlier than the one before it, in the same recording, is cut as the decoder goes on; any
    other one makes it begin anew.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._blocks: Iterator[torch.Tensor] = iter(())
        self._kept = torch.empty(0)
        self._begin = 0
        self._failure: AudioError | None = None

    def cut(self, path: Path, start: float, end: float) -> torch.Tensor:
        """Cut a stretch out of a local audio file.

        Args:
            path: The recording.
            start: Where it begins, in seconds.
            end: Where it ends, at most `MAX_SECONDS` later; `math.inf` for the end of the recording.

        Returns:
            `(N,)` float32 at 16 kHz.

        Raises:
            AudioError: With the reason why it is rejected.
        """
        if math.isfinite(end) and end - start > MAX_SECONDS:
            raise AudioError("too long", f"{end - start:.1f} s; the limit is {MAX_SECONDS:g} s")
        first, last = (round(min(seconds, start + MAX_SECONDS + 1) * SAMPLE_RATE_HZ) for seconds in (start, end))
        if path != self._path or first < self._begin:
            self._path, self._blocks, self._failure = path, stream_audio(path), None
            self._kept, self._begin = torch.empty(0), 0
        self._read(first, last)
        have = self._begin + len(self._kept)
        beyond = (last - have) / SAMPLE_RATE_HZ if math.isfinite(end) else 0.0
        if have <= first or beyond > OVERHANG_SECONDS:
            raise AudioError(
                "beyond the end",
                f"{start:g} to {end:g} s of a recording of {have / SAMPLE_RATE_HZ:.1f} s; if each file is cut already, "
                "take out the columns start and end",
            )
        waveform = self._kept[first - self._begin : last - self._begin].clone()
        if len(waveform) > MAX_SECONDS * SAMPLE_RATE_HZ:
            raise AudioError("too long", f"more than {MAX_SECONDS:g} s from {start:g} s to the end of the recording")
        check_sound(waveform)
        return waveform

    def _read(self, first: int, last: int) -> None:
        """Decode up to sample `last`, and let go of what is before `first`."""
        while True:
            surplus = min(max(0, first - self._begin), len(self._kept))
            self._kept, self._begin = self._kept[surplus:], self._begin + surplus
            if self._begin + len(self._kept) >= last:
                return
            if self._failure is not None:
                raise self._failure
            try:
                block = next(self._blocks, None)
            except AudioError as error:
                self._failure = error
                raise
            if block is None:
                return
            self._kept = torch.cat([self._kept, block])
