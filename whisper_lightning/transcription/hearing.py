"""One recording to segments: windows of its speech in batches, and again what was heard badly.

faster-whisper's batched pipeline glues what is spoken together without any pause, lets the model tell no times, and
takes every text as it comes. Here short pauses stay, and a model that can tell times does. And a window whose
text repeats itself, that the model itself doubts, or where speech was left out, is heard again in short pieces, which
share windows with those of others. What is heard badly too is heard by the sequential pipeline, at higher temperatures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from whisper_lightning.audio.constants import FRAMES_PER_SECOND, SAMPLE_RATE_HZ
from whisper_lightning.transcription.recognizer import Recognizer
from whisper_lightning.transcription.speech import Speech, Window, find_speech

if TYPE_CHECKING:
    from faster_whisper.transcribe import Segment, TranscriptionInfo, TranscriptionOptions
    from faster_whisper.transcribe import Word as FasterWord

BEAM_SIZE = 3
"""As good as the usual 5 here, in less time."""
WINDOW_SECONDS, PIECE_SECONDS = 30.0, 10.0
"""Windows are as long as the model hears; what is heard again is cut into short pieces, of which none is left out."""
BATCH_SIZE = 8
"""Windows that are heard at once by default."""
REST_SECONDS = 2.0
"""So much speech that no word is for has not been heard."""


Heard = tuple[Window, "list[Segment]"]
"""A window and what was heard in it."""


def hear(
    recognizer: Recognizer, waveform: NDArray[np.float32], sequential: bool, batch_size: int, options: dict[str, Any]
) -> tuple[str, Iterator[Segment]]:
    """Return the language of a recording, and its segments as they come.

    Args:
        recognizer: From `open_recognizer`.
        waveform: `(N,)` at 16 kHz.
        sequential: Hear one window after the other, each knowing what was said before.
        batch_size: Windows that are heard at once; 0 for the default.
        options: Of faster-whisper's `transcribe`, by their names there.
    """
    told: dict[str, Any] = {"language": recognizer.language, "beam_size": BEAM_SIZE}
    told |= {"word_timestamps": True, "vad_filter": True, **options}
    told["suppress_tokens"] = list(recognizer.suppress_tokens)
    batch_size = batch_size or BATCH_SIZE
    if sequential or not told["vad_filter"]:
        segments, info = recognizer.model.transcribe(waveform, **told)
        return info.language, iter(segments)
    speech = find_speech(waveform, WINDOW_SECONDS)
    windows = speech.windows(0.0, speech.seconds, WINDOW_SECONDS)
    batches = _batches(windows, batch_size)
    segments, info = _at_once(recognizer, speech.waveform, told, batches[0])
    told["language"] = info.language
    listen = partial(_at_once, recognizer, speech.waveform, told)
    again = partial(_hear_again, recognizer, speech.waveform, batch_size, told)
    judged = _judged(_in_turn(segments, batches, listen), speech, info.transcription_options, again)
    return info.language, map(speech.restored, judged)


def _at_once(
    recognizer: Recognizer, waveform: NDArray[np.float32], told: dict[str, Any], windows: list[Window]
) -> tuple[Iterable[Segment], TranscriptionInfo]:
    """Hear windows of a recording as one batch of the batched pipeline."""
    from faster_whisper import BatchedInferencePipeline

    clips = [{"start": start, "end": end} for start, end in windows]
    pipeline = BatchedInferencePipeline(recognizer.model)
    options = {
        "batch_size": max(1, len(windows)),
        "without_timestamps": not recognizer.tells_times,
        "clip_timestamps": clips,
    } | told
    if not windows:  # no clips would mean all of it
        waveform = waveform[:0]
    segments, info = pipeline.transcribe(waveform, **options)
    return segments, info


def _hear_again(
    recognizer: Recognizer,
    waveform: NDArray[np.float32],
    batch_size: int,
    told: dict[str, Any],
    pieces: list[Window],
) -> Iterator[Segment]:
    """Hear pieces, as many in a window as it holds: each window is encoded at the same cost, however full.

    Where that too is heard badly, each piece is heard alone, at higher temperatures and with a threshold of silence.
    """
    if not pieces:
        return
    joined = Speech.of(waveform, [(int(start * SAMPLE_RATE_HZ), int(end * SAMPLE_RATE_HZ)) for start, end in pieces])
    batches = _batches(joined.windows(0.0, joined.seconds, WINDOW_SECONDS), batch_size)
    listen = partial(_at_once, recognizer, joined.waveform, told)
    segments, info = listen(batches[0])
    for (first, last), heard in chain.from_iterable(_in_turn(segments, batches, listen)):
        if any(_is_doubtful(segment, info.transcription_options) for segment in heard):
            for (start, end), (begins, ends) in zip(pieces, joined.spans.tolist(), strict=True):
                if first <= begins and ends <= last:
                    excerpt = waveform[int(start * SAMPLE_RATE_HZ) : int(end * SAMPLE_RATE_HZ)]
                    alone, _ = recognizer.model.transcribe(excerpt, **told | {"vad_filter": False})
                    yield from (_moved(segment, start) for segment in alone)
        else:
            yield from chain.from_iterable(map(joined.split, heard))


def _batches(windows: list[Window], batch_size: int) -> list[list[Window]]:
    """Make batches, at least one; the first is the one that is not full, to tell soon how long the rest will take."""
    first = len(windows) % batch_size or batch_size
    return [windows[:first], *(windows[start : start + batch_size] for start in range(first, len(windows), batch_size))]


def _in_turn(
    segments: Iterable[Segment],
    batches: list[list[Window]],
    listen: Callable[[list[Window]], tuple[Iterable[Segment], TranscriptionInfo]],
) -> Iterator[list[Heard]]:
    """Return what is heard in each window, batch by batch as they are asked for; the first batch has been begun."""
    for number, batch in enumerate(batches):
        if number:
            segments, _ = listen(batch)
        yield list(zip(batch, _by_window(segments, batch), strict=True))


def _by_window(segments: Iterable[Segment], windows: Sequence[Window]) -> Iterator[list[Segment]]:
    """Return the segments of each window as they come; they carry its first frame."""
    groups = groupby(segments, key=lambda segment: segment.seek)
    seek, group = next(groups, (-1, iter(())))
    for start, _ in windows:
        found: list[Segment] = []
        # As the pipeline computes it: half a sample before a frame is another frame.
        if seek == int(int(start * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ * FRAMES_PER_SECOND):
            found = list(group)
            seek, group = next(groups, (-1, iter(())))
        yield found


def _judged(
    batches: Iterable[list[Heard]],
    speech: Speech,
    options: TranscriptionOptions,
    again: Callable[[list[Window]], Iterable[Segment]],
) -> Iterator[Segment]:
    """Return the batched pipeline's segments; what it heard badly, or left out at a window's end, is heard again."""
    for group in batches:
        kept: list[Segment] = []
        pieces: list[Window] = []
        for (start, end), window in group:
            words = [word for segment in window for word in segment.words or []]
            doubtful = any(_is_doubtful(segment, options) for segment in window)
            if doubtful or not words or _skips(words, speech, start):
                window, words = [], []
            kept += window
            heard = words[-1].end if words else start
            if not words or speech.between(heard, end) >= REST_SECONDS:
                pieces += speech.windows(heard, end, PIECE_SECONDS)
        yield from sorted([*kept, *again(pieces)], key=lambda segment: segment.start)


def _is_doubtful(segment: Segment, options: TranscriptionOptions) -> bool:
    """Judge as the sequential pipeline does."""
    repeats, doubts = options.compression_ratio_threshold, options.log_prob_threshold
    too_repetitive = repeats is not None and segment.compression_ratio > repeats
    return too_repetitive or (doubts is not None and segment.avg_logprob < doubts)


def _skips(words: list[FasterWord], speech: Speech, start: float) -> bool:
    """Say whether there is much speech before or between a window's words that none of them is for."""
    ends = [start, *(word.end for word in words)]
    return any(speech.between(end, word.start) >= REST_SECONDS for word, end in zip(words, ends, strict=False))


def _moved(segment: Segment, seconds: float) -> Segment:
    for each in (segment, *(segment.words or [])):
        each.start, each.end = round(each.start + seconds, 3), round(each.end + seconds, 3)
    return segment
