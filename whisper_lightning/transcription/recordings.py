"""Recordings of any length to text with times: faster-whisper, over the model in CTranslate2's form."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby, islice
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from whisper_lightning.audio.constants import AUDIO_SUFFIXES, FRAMES_PER_SECOND, SAMPLE_RATE_HZ
from whisper_lightning.audio.decoders import AudioError, promised_seconds
from whisper_lightning.audio.read import stream_audio
from whisper_lightning.errors import UserError
from whisper_lightning.export import ct2
from whisper_lightning.terminal import say
from whisper_lightning.transcription.speech import Speech, Window, find_speech
from whisper_lightning.transcription.subtitles import Transcript, Word

if TYPE_CHECKING:
    from faster_whisper import WhisperModel
    from faster_whisper.transcribe import Segment, TranscriptionInfo, TranscriptionOptions
    from faster_whisper.transcribe import Word as FasterWord

AnyPath = TypeVar("AnyPath", bound=PurePath)
CPU_COMPUTE_TYPE = "int8"
"""What a processor computes in by default."""

GPU_LIBRARIES = (
    ". CTranslate2 needs CUDA 12's cuBLAS and cuDNN 9, also beside a newer CUDA: pip install nvidia-cublas-cu12 "
    "nvidia-cudnn-cu12, and name their lib folders in LD_LIBRARY_PATH (Windows: bin, in PATH)"
)
BEAM_SIZE = 3
"""As good as the usual 5 here, in less time."""
WINDOW_SECONDS, PIECE_SECONDS = 30.0, 10.0
"""Windows are as long as the model hears; what is heard again is heard in short pieces, of which none is left out."""
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
        source: As `load` takes it.
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

    faster-whisper's batched pipeline glues what is spoken together without any pause, lets the model tell no times,
    and takes every text as it comes. Here short pauses stay, and the model tells times, as it learned to. And a window
    whose text repeats itself, that the model itself doubts, or where speech was left out, is heard again in short
    pieces. A piece that is heard badly too is heard by the sequential pipeline, at higher temperatures.

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
    told: dict[str, Any] = {"language": recognizer.language, "beam_size": BEAM_SIZE}
    told |= {"word_timestamps": True, "vad_filter": True, **options}
    told["suppress_tokens"] = list(recognizer.suppress_tokens)
    if sequential or not told["vad_filter"]:
        segments, info = recognizer.model.transcribe(waveform, **told)
        return info.language, iter(segments)
    speech = find_speech(waveform, WINDOW_SECONDS)
    windows = speech.windows(0.0, speech.seconds, WINDOW_SECONDS)
    segments, info = _in_batches(recognizer, speech.waveform, windows, batch_size, told)
    again = partial(_hear_again, recognizer, speech.waveform, batch_size, told | {"language": info.language})
    judged = _judged(segments, windows, speech, info.transcription_options, batch_size, again)
    return info.language, map(speech.restored, judged)


def _in_batches(
    recognizer: Recognizer,
    waveform: NDArray[np.float32],
    windows: list[Window],
    batch_size: int,
    told: dict[str, Any],
) -> tuple[Iterable[Segment], TranscriptionInfo]:
    """Hear windows of a recording with the batched pipeline."""
    from faster_whisper import BatchedInferencePipeline

    clips = [{"start": start, "end": end} for start, end in windows]
    pipeline = BatchedInferencePipeline(recognizer.model)
    options = {"batch_size": batch_size, "without_timestamps": False, "clip_timestamps": clips} | told
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
    """Hear pieces at once; what is still heard badly, alone, at higher temperatures and with a threshold of silence."""
    if not pieces:
        return
    segments, info = _in_batches(recognizer, waveform, pieces, batch_size, told)
    for (start, end), heard in zip(pieces, _by_window(segments, pieces), strict=True):
        if any(_is_doubtful(segment, info.transcription_options) for segment in heard):
            excerpt = waveform[int(start * SAMPLE_RATE_HZ) : int(end * SAMPLE_RATE_HZ)]
            alone, _ = recognizer.model.transcribe(excerpt, **told | {"vad_filter": False})
            yield from (_moved(segment, start) for segment in alone)
        else:
            yield from heard


def _by_window(segments: Iterable[Segment], windows: Sequence[Window]) -> Iterator[list[Segment]]:
    """Give the segments of each window as they come; they carry its first frame."""
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
    segments: Iterable[Segment],
    windows: list[Window],
    speech: Speech,
    options: TranscriptionOptions,
    batch_size: int,
    again: Callable[[list[Window]], Iterable[Segment]],
) -> Iterator[Segment]:
    """Give the segments of the batched pipeline; what it heard badly, or left out at a window's end, is heard again."""
    found = zip(windows, _by_window(segments, windows), strict=True)
    while group := list(islice(found, batch_size)):
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
