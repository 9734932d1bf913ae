"""Recordings of any length to text with times: faster-whisper, over the model in CTranslate2's form."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from whisper_lightning.audio.constants import SAMPLE_RATE_HZ
from whisper_lightning.audio.decoders import AudioError, promised_seconds
from whisper_lightning.audio.read import stream_audio
from whisper_lightning.errors import UserError
from whisper_lightning.transcription.hearing import hear
from whisper_lightning.transcription.recognizer import Recognizer
from whisper_lightning.transcription.subtitles import Transcript, Word

if TYPE_CHECKING:
    from faster_whisper.transcribe import Segment

AnyPath = TypeVar("AnyPath", bound=PurePath)


def stems(paths: Sequence[AnyPath]) -> list[PurePath]:
    """Return each absolute path a different relative name for its transcript.

    It is its own, from the deepest folder that is above all, without the ending where that leaves them different.
    """
    root = next((root for root in paths[0].parents if all(path.is_relative_to(root) for path in paths)), None)
    if root is None:  # several drives of Windows
        names = [PurePath(re.sub(r"\W", "", path.drive), *path.parts[1:]) for path in paths]
    else:
        names = [PurePath(path.relative_to(root)) for path in paths]
    short = [name.with_suffix("") for name in names]
    counts = Counter(str(name).casefold() for name in short)
    mixed = [each if counts[str(each).casefold()] == 1 else name for each, name in zip(short, names, strict=True)]
    return mixed if len({str(name).casefold() for name in mixed}) == len(names) else names


def transcribe(
    recognizer: Recognizer, paths: Sequence[Path], *, sequential: bool = False, batch_size: int = 0, **options: Any
) -> Generator[tuple[Path, Transcript | AudioError]]:
    """Transcribe recordings of any length, each as soon as it is complete.

    Args:
        recognizer: From `open_recognizer`.
        paths: Audio files.
        sequential: Hear one window after the other, each knowing what was said before.
        batch_size: Windows that are heard at once; 0 for the default.
        options: Of faster-whisper's `transcribe`, by their names there.

    Yields:
        For each path its transcript, or why there is none.

    Raises:
        UserError: The device has not the memory for such a batch.
    """
    lengths = [promised_seconds(path) for path in paths]
    with _progress(sum(lengths)) as show:
        for number, path in enumerate(paths):
            before = sum(lengths[:number])
            try:
                blocks = [block.numpy() for block in stream_audio(path)]
            except AudioError as error:
                yield path, error
            else:
                waveform = np.concatenate([np.zeros(0, np.float32), *blocks])
                segments = []
                try:
                    language, pieces = hear(recognizer, waveform, sequential, batch_size, options)
                    for segment in pieces:
                        segments.append(segment)
                        show(before + min(segment.end, lengths[number]))
                except RuntimeError as error:
                    if "out of memory" not in str(error):
                        raise
                    raise UserError("no memory for so many windows at once; lower --batch_size") from None
                yield path, _transcript(path, waveform, language, segments)
            show(before + lengths[number])


@contextmanager
def _progress(total: float) -> Iterator[Callable[[float], None]]:
    """Show a bar, which goes on each second as fast as it has done so far: windows are heard many at once.

    Args:
        total: Seconds of audio.

    Yields:
        Takes how many seconds are done.
    """
    bar_format = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of audio [{elapsed}<{remaining}]"
    begun, stopped, known = time.monotonic(), threading.Event(), (0.0, 1.0)  # seconds of audio; after how many seconds

    def done(seconds: float) -> None:
        nonlocal known
        known = max(known, (seconds, time.monotonic() - begun))

    def draw(at_most: float) -> None:
        seconds, after = known
        bar.n = max(seconds, min(seconds * (time.monotonic() - begun) / after, at_most))
        bar.refresh()

    def tick() -> None:
        while not stopped.wait(1.0):
            draw(0.99 * bar.total)

    with tqdm(total=max(1.0, total), desc="transcribing", bar_format=bar_format, smoothing=0) as bar:
        clock = threading.Thread(target=tick, daemon=True)
        clock.start()
        try:
            yield done
        finally:
            stopped.set()
            clock.join()
            draw(0.0)


def _transcript(path: Path, waveform: NDArray[np.float32], language: str, segments: list[Segment]) -> Transcript:
    words = [Word(word.start, word.end, word.word) for segment in segments for word in segment.words or []]
    written = [asdict(segment) | {"id": number} for number, segment in enumerate(segments)]
    return Transcript(path.name, len(waveform) / SAMPLE_RATE_HZ, language, written, words)
