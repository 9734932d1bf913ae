"""Recordings of any length to text with time stamps."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path, PurePath
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from whisper_lightning.audio import AUDIO_SUFFIXES, HOP_LENGTH, SAMPLE_RATE_HZ, AudioError, stream_audio
from whisper_lightning.errors import UserError
from whisper_lightning.model.decode import greedy_decode
from whisper_lightning.model.module import WhisperModule
from whisper_lightning.windows import Window, find_windows, frame_levels

BATCHES_TOGETHER = 4
"""Windows of so many batches are read, then sorted by length: those that end together are decoded together."""

AnyPath = TypeVar("AnyPath", bound=PurePath)


class Segment(NamedTuple):
    """What was said from when to when.

    Attributes:
        start_seconds: From the recording's beginning.
        end_seconds: Likewise.
        text: The transcript, on one line.
        at_limit: Whether it is as long as the decoder may write: its end may be missing, or it went round in circles.
    """

    start_seconds: float
    end_seconds: float
    text: str
    at_limit: bool = False


@dataclass
class Transcript:
    """A recording and its segments, in order; those without text are left out.

    Attributes:
        path: The recording.
        seconds: Its length.
        language: Code of the language that the decoder was told.
    """

    path: Path
    seconds: float
    language: str
    segments: list[Segment]


class Skipped(NamedTuple):
    """A file that cannot be used, and why."""

    path: Path
    error: AudioError


@dataclass
class _Recording:
    path: Path
    num_samples: int
    windows: list[Window]
    segments: dict[int, Segment] = field(default_factory=dict)


class _Piece(NamedTuple):
    recording: _Recording
    number: int
    waveform: torch.Tensor


def find_audio(places: Sequence[Path]) -> list[Path]:
    """List files as they are, whatever their ending, and what folders hold at any depth with an ending of audio.

    Raises:
        UserError: Nothing is there, or a folder holds no audio.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            files = sorted(path for path in place.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
            # macOS puts a ._clip.wav beside each clip.wav on foreign disks, which is no audio.
            files = [path for path in files if path.is_file() and not path.name.startswith(".")]
            if not files:
                raise UserError(f"{place}: no audio in this folder (endings: {' '.join(AUDIO_SUFFIXES)})")
            found += files
        elif place.is_file():
            found.append(place)
        else:
            raise UserError(f"{place}: no such file or folder")
    # The folder is resolved and the name is not: a link keeps the name that the user sees.
    return list(dict.fromkeys(path.parent.resolve() / path.name for path in found))


def relative_names(paths: Sequence[AnyPath]) -> list[PurePath]:
    """Give each absolute path a different relative name: its own, from the deepest folder that is above all."""
    root = next((root for root in paths[0].parents if all(path.is_relative_to(root) for path in paths)), None)
    if root is None:  # several drives of Windows
        return [PurePath(re.sub(r"\W", "", path.drive), *path.parts[1:]) for path in paths]
    return [path.relative_to(root) for path in paths]


def transcribe(module: WhisperModule, paths: Sequence[Path], batch_size: int = 16) -> Iterator[Transcript | Skipped]:
    """Transcribe recordings of any length, each as soon as it is complete.

    Each is read twice: to find its pauses and faults, then to decode it window by window. So a recording of hours takes
    the memory of a short one; windows wait for one another in numbers that `batch_size` sets, not lengths.

    Args:
        module: From `open_model`, on the device that shall decode.
        paths: Audio files.
        batch_size: Windows that are decoded at once.

    Yields:
        For each path its transcript, or why there is none.

    Raises:
        UserError: The device has not the memory for such a batch.
    """
    max_seconds = module.full_frames * HOP_LENGTH / SAMPLE_RATE_HZ
    recordings: list[_Recording] = []
    for path in tqdm(paths, desc="listening", unit="file", leave=False):
        try:
            recordings.append(_listen(path, max_seconds))
        except AudioError as error:
            yield Skipped(path, error)
    total = sum(window.stop - window.start for each in recordings for window in each.windows)
    bar_format = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of audio [{elapsed}<{remaining}]"
    with tqdm(total=total, desc="transcribing", unit_scale=1 / SAMPLE_RATE_HZ, bar_format=bar_format) as bar:
        waiting: list[_Piece] = []
        for recording in recordings:
            if not recording.windows:
                yield _finish(module, recording)
                continue
            try:
                for piece in _cut_out(recording):
                    waiting.append(piece)
                    if len(waiting) == BATCHES_TOGETHER * batch_size:
                        yield from _decode(module, waiting, batch_size, bar)
                        waiting = []
            except AudioError as error:
                waiting = [piece for piece in waiting if piece.recording is not recording]
                yield Skipped(recording.path, error)
        yield from _decode(module, waiting, batch_size, bar)


def _listen(path: Path, max_seconds: float) -> _Recording:
    """Read a recording once, to the end, and find its windows."""
    levels, num_samples = [], 0
    for block in stream_audio(path):
        levels.append(frame_levels(block))
        num_samples += len(block)
    return _Recording(path, num_samples, find_windows(np.concatenate(levels), num_samples, max_seconds))


def _cut_out(recording: _Recording) -> Iterator[_Piece]:
    """Read a recording again, and give the waveform of each window."""
    blocks = stream_audio(recording.path)
    kept, position = torch.zeros(0), 0
    for number, (start, stop) in enumerate(recording.windows):
        while position + len(kept) < stop:
            block = next(blocks, None)
            if block is None:
                raise AudioError("truncated", "the file became shorter while it was transcribed")
            passed = min(start - position, len(kept))
            kept, position = torch.cat([kept[passed:], block]), position + passed
        yield _Piece(recording, number, kept[start - position : stop - position].clone())


def _decode(module: WhisperModule, pieces: list[_Piece], batch_size: int, bar: tqdm) -> Iterator[Transcript]:
    pieces = sorted(pieces, key=lambda piece: len(piece.waveform))
    for first in range(0, len(pieces), batch_size):
        batch = pieces[first : first + batch_size]
        for piece, (text, at_limit) in zip(batch, _texts(module, [each.waveform for each in batch]), strict=True):
            recording = piece.recording
            start, stop = recording.windows[piece.number]
            segment = Segment(start / SAMPLE_RATE_HZ, stop / SAMPLE_RATE_HZ, text, at_limit)
            recording.segments[piece.number] = segment
            if len(recording.segments) == len(recording.windows):
                yield _finish(module, recording)
            bar.update(stop - start)


def _texts(module: WhisperModule, waveforms: list[torch.Tensor]) -> list[tuple[str, bool]]:
    """Decode windows as a test does; give each text, and whether it is as long as may be."""
    prompt = module.encoder.prompt
    limit = min(module.max_tokens, module.whisper.config.max_target_positions - len(prompt))
    try:
        with torch.no_grad():
            encoded = module.encode(pad_sequence(waveforms, batch_first=True).to(module.device))
            rows = greedy_decode(module.whisper, encoded, prompt, limit)
    except torch.OutOfMemoryError:
        raise UserError(f"no memory for {len(waveforms)} windows at once; give a smaller --batch_size") from None
    return [(" ".join(module.text(row).split()), len(row) == limit) for row in rows]


def _finish(module: WhisperModule, recording: _Recording) -> Transcript:
    segments = [segment for _, segment in sorted(recording.segments.items()) if segment.text]
    return Transcript(recording.path, recording.num_samples / SAMPLE_RATE_HZ, module.encoder.language, segments)


def write_transcript(transcript: Transcript, stem: Path, formats: Sequence[str]) -> None:
    """Write a transcript in some of `FORMATS`, each into a file whose ending is the format's name.

    Raises:
        UserError: It cannot be written.
    """
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        for name in formats:
            path = stem.with_name(f"{stem.name}.{name}")
            path.write_text(FORMATS[name](transcript), encoding="utf-8", newline="\n")
    except OSError as error:
        raise UserError(
            f"{stem}: cannot write the transcript ({error.strerror or error}); choose another --out"
        ) from None


def _txt(transcript: Transcript) -> str:
    return "".join(f"{segment.text}\n" for segment in transcript.segments)


def _srt(transcript: Transcript) -> str:
    cues = (
        # Arrows are what readers look for.
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text.replace('-->', '->')}\n"
        for number, (start, end, text, _) in enumerate(transcript.segments, 1)
    )
    return "\n".join(cues)


def _vtt(transcript: Transcript) -> str:
    """WebVTT (W3C): in a cue's text, `&`, `<` and `>` are escaped."""
    cues = (
        f"\n{_clock(start, '.')} --> {_clock(end, '.')}\n{escape(text, quote=False)}\n"
        for start, end, text, _ in transcript.segments
    )
    return "".join(["WEBVTT\n", *cues])


def _json(transcript: Transcript) -> str:
    content = {
        "audio": transcript.path.name,
        "language": transcript.language,
        "duration": round(transcript.seconds, 3),
        "text": " ".join(segment.text for segment in transcript.segments),
        "segments": [
            {"start": round(start, 3), "end": round(end, 3), "text": text}
            for start, end, text, _ in transcript.segments
        ],
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _clock(seconds: float, mark: str) -> str:
    """Give hours:minutes:seconds, then milliseconds after a mark."""
    milliseconds = round(1000 * seconds)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    whole, milliseconds = divmod(milliseconds, 1000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{whole:02}{mark}{milliseconds:03}"


FORMATS: dict[str, Callable[[Transcript], str]] = {"txt": _txt, "srt": _srt, "vtt": _vtt, "json": _json}
