"""Recordings of any length to text with times: faster-whisper, over the model in CTranslate2's form."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from whisper_lightning.audio import (
    AUDIO_SUFFIXES,
    FRAMES_PER_SECOND,
    SAMPLE_RATE_HZ,
    AudioError,
    promised_seconds,
    stream_audio,
)
from whisper_lightning.errors import UserError
from whisper_lightning.export import ct2
from whisper_lightning.subtitles import Transcript, Word
from whisper_lightning.terminal import say

if TYPE_CHECKING:
    from faster_whisper import WhisperModel
    from faster_whisper.transcribe import Segment, TranscriptionOptions
    from faster_whisper.transcribe import Word as FasterWord

AnyPath = TypeVar("AnyPath", bound=PurePath)
CPU_COMPUTE_TYPE = "int8"
"""What a processor computes in by default."""

GPU_LIBRARIES = (
    ". CTranslate2 needs CUDA 12's cuBLAS and cuDNN 9, also beside a newer CUDA: pip install nvidia-cublas-cu12 "
    "nvidia-cudnn-cu12, and name their lib folders in LD_LIBRARY_PATH (Windows: bin, in PATH)"
)
PIECE_SECONDS, SHORTEST_PIECE_SECONDS = 10.0, 0.1
"""What is heard again is heard in short pieces, which no Whisper leaves a part of out."""
SHORT_PAUSE_SECONDS = 1.0
"""A longer one, which may be music, is not heard."""
REST_SECONDS = 2.0
"""So much speech that no word is for has not been heard."""


@dataclass(frozen=True)
class Recognizer:
    """A model that faster-whisper has opened.

    Attributes:
        model: faster-whisper's.
        language: Code of the language that is spoken; None finds it by ear.
        suppress_tokens: Tokens that are never written.
    """

    model: WhisperModel
    language: str | None
    suppress_tokens: list[int]


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


def stems(paths: Sequence[AnyPath]) -> list[PurePath]:
    """Give each absolute path a different relative name for its transcript.

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


def open_recognizer(source: str, *, language: str | None = None, compute_type: str = "default") -> Recognizer:
    """Open a model for recordings, on a GPU where there is one that CTranslate2 can use.

    Args:
        source: As `open_model` takes it.
        language: Code of the language; None for the model's own, `auto` to find it by ear.
        compute_type: As CTranslate2 names it; `default` is int8 on a processor, the weights' own on a GPU.

    Raises:
        UserError: There is no such model, language or type, or faster-whisper would misread the model.
    """
    import ctranslate2

    ctranslate2.set_random_seed(0)  # higher temperatures draw
    form = ct2.converted(source)
    if ctranslate2.get_cuda_device_count():
        model = _on_the_gpu(form.folder, compute_type) or _on_the_processor(form.folder, CPU_COMPUTE_TYPE)
    else:
        model = _on_the_processor(form.folder, compute_type)
    if language not in (None, "auto", *model.supported_languages):
        raise UserError(f"--language: there is no {language!r}; a code such as es, or auto")
    return Recognizer(model, None if language == "auto" else language or form.language, form.suppress_tokens)


def _on_the_gpu(folder: Path, compute_type: str) -> WhisperModel | None:
    """Open on a GPU; say so and give None where CTranslate2's libraries are missing."""
    from faster_whisper import WhisperModel

    try:
        model = WhisperModel(str(folder), device="cuda", compute_type=compute_type, local_files_only=True)
        model.encode(np.zeros((model.feature_extractor.mel_filters.shape[0], 3000), np.float32))  # asks for them
    except ValueError:
        raise _no_compute_type(compute_type, "cuda") from None
    except RuntimeError as error:
        remedy = GPU_LIBRARIES if "cannot be loaded" in str(error) else ""
        say(f"the GPU is not used ({error}); this goes on in int8 on the processor{remedy}", error=True)
        return None
    return model


def _on_the_processor(folder: Path, compute_type: str) -> WhisperModel:
    from faster_whisper import WhisperModel

    kind = CPU_COMPUTE_TYPE if compute_type == "default" else compute_type
    try:
        return WhisperModel(str(folder), device="cpu", compute_type=kind, local_files_only=True)
    except ValueError:
        raise _no_compute_type(compute_type, "cpu") from None


def _no_compute_type(given: str, device: str) -> UserError:
    import ctranslate2

    known = " ".join(sorted(ctranslate2.get_supported_compute_types(device)))
    return UserError(f"--compute_type: there is no {given!r} on this machine's {device}; choose from default {known}")


def transcribe(
    recognizer: Recognizer, paths: Sequence[Path], *, sequential: bool = False, batch_size: int = 8, **options: Any
) -> Generator[tuple[Path, Transcript | AudioError]]:
    """Transcribe recordings of any length, each as soon as it is complete.

    faster-whisper's batched pipeline takes every text as it comes. So a window whose text repeats itself, that the
    model itself doubts, or where speech was left out, is heard again in short pieces by the sequential one, with its
    higher temperatures and threshold of silence.

    Args:
        recognizer: From `open_recognizer`.
        paths: Audio files.
        sequential: Hear one window after the other, each knowing what was said before.
        batch_size: Windows that are heard at once.
        options: Of faster-whisper's `transcribe`, by their names there.

    Yields:
        For each path its transcript, or why there is none.

    Raises:
        UserError: The device has not the memory for such a batch.
    """
    lengths = [promised_seconds(path) for path in paths]
    bar_format = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of audio [{elapsed}<{remaining}]"
    with tqdm(total=max(1.0, sum(lengths)), desc="transcribing", bar_format=bar_format) as bar:
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
                    language, pieces = _hear(recognizer, waveform, sequential, batch_size, options)
                    for segment in pieces:
                        segments.append(segment)
                        bar.update(max(0.0, before + min(segment.end, lengths[number]) - bar.n))
                except RuntimeError as error:
                    if "out of memory" not in str(error):
                        raise
                    raise UserError(f"no memory for {batch_size} windows at once; lower --batch_size") from None
                yield path, _transcript(path, waveform, language, segments)
            bar.update(before + lengths[number] - bar.n)


def _transcript(path: Path, waveform: NDArray[np.float32], language: str, segments: list[Segment]) -> Transcript:
    words = [Word(word.start, word.end, word.word) for segment in segments for word in segment.words or []]
    written = [asdict(segment) | {"id": number} for number, segment in enumerate(segments)]
    return Transcript(path.name, len(waveform) / SAMPLE_RATE_HZ, language, written, words)


def _hear(
    recognizer: Recognizer, waveform: NDArray[np.float32], sequential: bool, batch_size: int, options: dict[str, Any]
) -> tuple[str, Iterator[Segment]]:
    """Give the language, and the segments as they come."""
    from faster_whisper import BatchedInferencePipeline

    told = {"language": recognizer.language, "word_timestamps": True, "vad_filter": True, **options}
    told["suppress_tokens"] = list(recognizer.suppress_tokens)
    if sequential or not told["vad_filter"]:
        segments, info = recognizer.model.transcribe(waveform, **told)
        return info.language, iter(segments)
    pipeline = BatchedInferencePipeline(recognizer.model)
    segments, info = pipeline.transcribe(waveform, batch_size=batch_size, **told)
    again = partial(recognizer.model.transcribe, **told | {"language": info.language, "vad_filter": False})
    speech = _Speech.of(waveform, info.transcription_options.clip_timestamps, info.vad_options.max_speech_duration_s)
    return info.language, _judged(segments, waveform, speech, info.transcription_options, again)


class _Speech(NamedTuple):
    """What the detector of voices took for speech, in seconds, and the windows that the batched pipeline makes of it.

    It cuts out what is between, and joins the rest to windows as long as the model hears.

    Attributes:
        spans: `(N, 2)`: from when to when in the recording.
        ends: `(N,)`: where each ends in what is joined.
        windows: Of each the beginning and the end in what is joined.
    """

    spans: NDArray[np.float64]
    ends: NDArray[np.float64]
    windows: list[tuple[float, float]]

    @classmethod
    def of(cls, waveform: NDArray[np.float32], samples: list[dict[str, int]], max_seconds: float) -> _Speech:
        """Read the spans of the pipeline, in samples, and cut windows of at most `max_seconds` as it does."""
        from faster_whisper.vad import collect_chunks

        spans = np.array([[each["start"], each["end"]] for each in samples], float).reshape(-1, 2) / SAMPLE_RATE_HZ
        _, chunks = collect_chunks(waveform, samples, max_duration=max_seconds)
        windows = [(chunk["offset"], chunk["offset"] + chunk["duration"]) for chunk in chunks if chunk["duration"]]
        return cls(spans, (spans[:, 1] - spans[:, 0]).cumsum(), windows)

    def joined(self, seconds: float) -> float:
        """Give where a time of the recording is in what is joined."""
        inside = np.clip(seconds, self.spans[:, 0], self.spans[:, 1]) - self.spans[:, 0]
        return float(inside.sum())

    def pieces(self, start: float, end: float) -> list[tuple[float, float]]:
        """Cut what is joined from `start` to `end` into pieces of the recording, between spans where one is long."""
        pieces: list[tuple[float, float]] = []
        for (first, last), until in zip(self.spans.tolist(), self.ends.tolist(), strict=True):
            inner = max(first, last - (until - start)), min(last, last - (until - end))
            if inner[1] - inner[0] < SHORTEST_PIECE_SECONDS:
                continue
            near = pieces and inner[0] - pieces[-1][1] <= SHORT_PAUSE_SECONDS
            if near and inner[1] - pieces[-1][0] <= PIECE_SECONDS:
                inner = pieces.pop()[0], inner[1]
            pieces.append(inner)
        return pieces

    def bound(self, segment: Segment) -> Segment:
        """Keep each word in the span that it has most in common with: none is shown over silence."""
        for word in segment.words or []:
            common = np.minimum(word.end, self.spans[:, 1]) - np.maximum(word.start, self.spans[:, 0])
            first, last = self.spans[int(common.argmax())]
            word.start, word.end = (round(float(np.clip(at, first, last)), 3) for at in (word.start, word.end))
        return segment


def _judged(
    segments: Iterable[Segment],
    waveform: NDArray[np.float32],
    speech: _Speech,
    options: TranscriptionOptions,
    again: Callable[[NDArray[np.float32]], tuple[Iterable[Segment], Any]],
) -> Iterator[Segment]:
    """Give the segments of the batched pipeline; what it heard badly, or left out at a window's end, is heard again."""
    groups = groupby(segments, key=lambda segment: segment.seek)
    seek, group = next(groups, (-1, iter(())))
    for start, end in speech.windows:
        window: list[Segment] = []
        if seek == int(start * FRAMES_PER_SECOND):
            window = list(group)
            seek, group = next(groups, (-1, iter(())))
        words = [word for segment in window for word in segment.words or []]
        if any(_is_doubtful(segment, options) for segment in window) or not words or _skips(words, speech, start):
            window, words = [], []
        yield from (speech.bound(segment) for segment in window)
        heard = speech.joined(words[-1].end) if words else start
        if end - heard >= REST_SECONDS or not words:
            for first, last in speech.pieces(heard, end):
                for segment in again(waveform[int(first * SAMPLE_RATE_HZ) : int(last * SAMPLE_RATE_HZ)])[0]:
                    yield speech.bound(_moved(segment, first))


def _is_doubtful(segment: Segment, options: TranscriptionOptions) -> bool:
    """Judge as the sequential pipeline does."""
    repeats, doubts = options.compression_ratio_threshold, options.log_prob_threshold
    too_repetitive = repeats is not None and segment.compression_ratio > repeats
    return too_repetitive or (doubts is not None and segment.avg_logprob < doubts)


def _skips(words: list[FasterWord], speech: _Speech, start: float) -> bool:
    """Say whether there is much speech before or between a window's words that none of them is for."""
    ends = [start, *(speech.joined(word.end) for word in words)]
    return any(speech.joined(word.start) - end >= REST_SECONDS for word, end in zip(words, ends, strict=False))


def _moved(segment: Segment, seconds: float) -> Segment:
    for each in (segment, *(segment.words or [])):
        each.start, each.end = round(each.start + seconds, 3), round(each.end + seconds, 3)
    return segment
