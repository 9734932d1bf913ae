"""Transcribe recordings stitched from clips, as faster-whisper does alone and as `whisper-lightning transcribe` does.

Three recordings: clips with pauses between them, clips with nothing between, and clips with pauses, noise and music.
Both hear each in turn. Prints a Markdown table: normalized WER; its paired difference from faster-whisper's batched
pipeline with the 95 % interval over the clips; seconds; words over noise or music; how far a cue begins and ends from
where a clip does (medians). With --sequential faster-whisper's sequential mode follows.

    python -m benchmarks.bench_transcribe whisper-base speech/test.csv --minutes 10
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jiwer
import numpy as np
import soundfile
from numpy.typing import NDArray

from whisper_lightning.audio.constants import SAMPLE_RATE_HZ
from whisper_lightning.audio.read import load_audio
from whisper_lightning.data.manifest import read_manifest
from whisper_lightning.scoring.intervals import paired_difference
from whisper_lightning.scoring.normalize import normalize
from whisper_lightning.terminal import read_command_line
from whisper_lightning.transcription.recognizer import CPU_COMPUTE_TYPE, Recognizer, open_recognizer
from whisper_lightning.transcription.recordings import transcribe
from whisper_lightning.transcription.subtitles import CueLimits, Transcript, Word, cut_cues

KINDS = ("pauses", "nothing", "pauses, noise and music")
SOUND_SECONDS = 8.0


@dataclass(frozen=True)
class Recording:
    """Clips one after the other, with something between.

    Attributes:
        path: The file.
        clips: From when to when each is heard, in seconds.
        sentences: What is said in each.
        sounds: From when to when noise or music is heard.
    """

    path: Path
    clips: list[tuple[float, float]]
    sentences: list[str]
    sounds: list[tuple[float, float]]


@dataclass(frozen=True)
class Heard:
    """What one program made of a recording, in how many seconds."""

    words: list[Word]
    cues: list[tuple[float, float]]
    seconds: float


def music(num_samples: int) -> NDArray[np.float64]:
    """Play chords, two a second, that fade: `(N,)`."""
    seconds = np.arange(num_samples) / SAMPLE_RATE_HZ
    chord = [np.sin(2 * np.pi * hertz * part * seconds) / part for hertz in (220, 277, 330) for part in (1, 2, 3)]
    samples = np.sum(chord, axis=0) * np.exp(-2.5 * (seconds % 0.5))
    scaled: NDArray[np.float64] = 0.15 * samples / np.abs(samples).max()
    return scaled


def stitch(table: Path, path: Path, kind: str, minutes: float) -> Recording:
    """Write a recording of so many minutes from the clips of a CSV, in an order that is always the same."""
    chance = np.random.default_rng(0)
    rows, parts, length = list(read_manifest(table)), list[NDArray[Any]](), 0
    recording = Recording(path, [], [], [])
    for number, row in enumerate(rows[int(i)] for i in chance.permutation(len(rows))):
        if length > minutes * 60 * SAMPLE_RATE_HZ:
            break
        samples = load_audio(Path(row.path)).numpy()
        gap = np.zeros(0 if kind == "nothing" else int(chance.uniform(0.5, 3) * SAMPLE_RATE_HZ))
        if kind == KINDS[2] and number % 4 == 3:
            size = int(SOUND_SECONDS * SAMPLE_RATE_HZ)
            gap = music(size) if number % 8 == 3 else chance.normal(0, 0.02, size)
        clip, end = (length, length + len(samples)), length + len(samples) + len(gap)
        recording.clips.append((clip[0] / SAMPLE_RATE_HZ, clip[1] / SAMPLE_RATE_HZ))
        recording.sentences.append(row.sentence)
        if gap.any():
            recording.sounds.append((clip[1] / SAMPLE_RATE_HZ, end / SAMPLE_RATE_HZ))
        parts += [samples, gap]
        length = end
    soundfile.write(path, np.concatenate(parts), SAMPLE_RATE_HZ)
    return recording


def with_ours(recognizer: Recognizer, path: Path) -> tuple[list[Word], list[tuple[float, float]]]:
    """Hear as `whisper-lightning transcribe` does."""
    ((_, transcript),) = transcribe(recognizer, [path])
    assert isinstance(transcript, Transcript)
    return transcript.words, [cue[:2] for cue in cut_cues(transcript.words, CueLimits())]


def with_theirs(recognizer: Recognizer, path: Path, *, batched: bool) -> tuple[list[Word], list[tuple[float, float]]]:
    """Hear with faster-whisper alone; its segments are the cues."""
    from faster_whisper import BatchedInferencePipeline

    told: dict[str, Any] = {"language": recognizer.language, "word_timestamps": True, "vad_filter": True}
    if batched:
        segments, _ = BatchedInferencePipeline(recognizer.model).transcribe(str(path), **told)
    else:
        segments, _ = recognizer.model.transcribe(str(path), **told)
    found = list(segments)
    words = [Word(word.start, word.end, word.word) for segment in found for word in segment.words or []]
    return words, [(segment.start, segment.end) for segment in found]


def errors_by_clip(recording: Recording, words: Iterable[Word]) -> tuple[list[int], list[int]]:
    """Count the errors and the words of each clip; words that are not said count for the clip before them."""
    sentences = [normalize(sentence).split() for sentence in recording.sentences]
    owners = [clip for clip, sentence in enumerate(sentences) for _ in sentence]
    errors = [0] * len(sentences)
    reference = " ".join(word for sentence in sentences for word in sentence)
    heard = normalize("".join(word.text for word in words))
    for chunk in jiwer.process_words(reference, heard).alignments[0]:
        if chunk.type == "insert":
            errors[owners[max(0, chunk.ref_start_idx - 1)]] += chunk.hyp_end_idx - chunk.hyp_start_idx
        elif chunk.type != "equal":
            for position in range(chunk.ref_start_idx, chunk.ref_end_idx):
                errors[owners[position]] += 1
    return errors, [len(sentence) for sentence in sentences]


def over_sounds(recording: Recording, words: Iterable[Word]) -> int:
    """Count the words whose middle is over noise or music, half a second from its ends or more."""
    middles = [(word.start + word.end) / 2 for word in words]
    return sum(start + 0.5 < middle < end - 0.5 for start, end in recording.sounds for middle in middles)


def row(name: str, recording: Recording, heard: Heard, baseline: Heard) -> str:
    """Compare with faster-whisper's batched pipeline."""
    (errors, lengths), (theirs, _) = (errors_by_clip(recording, each.words) for each in (heard, baseline))
    cells = [f"{100 * sum(errors) / sum(lengths):.2f}", paired_difference(errors, theirs, lengths).write()]
    cells += [
        f"{heard.seconds:.0f} ({heard.seconds / baseline.seconds:.2f}×)",
        str(over_sounds(recording, heard.words)),
    ]
    for which in (0, 1):
        truth = np.array([clip[which] for clip in recording.clips])
        cells.append(f"{np.median([np.abs(truth - cue[which]).min() for cue in heard.cues]):.2f}")
    return f"| {name} | {' | '.join(cells)} |"


def main(args: list[str] | None = None) -> int:
    """Stitch, transcribe and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a published Whisper, or a run")
    parser.add_argument("csv", type=Path, help="clips and their sentences")
    parser.add_argument("--minutes", type=float, default=10.0, help="of each recording")
    parser.add_argument("--compute_type", default=CPU_COMPUTE_TYPE)
    parser.add_argument("--sequential", action="store_true", help="faster-whisper's sequential mode too")
    given = read_command_line(parser, args)
    recognizer = open_recognizer(given.model, compute_type=given.compute_type)
    print("| between the clips | WER, % | difference | seconds | words over sounds | cue begins | cue ends, s |")
    print("|---|---|---|---|---|---|---|")
    ways: dict[str, Callable[[Path], tuple[list[Word], list[tuple[float, float]]]]] = {
        "faster-whisper, batched": lambda path: with_theirs(recognizer, path, batched=True),
        "ours": lambda path: with_ours(recognizer, path),
    }
    if given.sequential:
        ways["faster-whisper, sequential"] = lambda path: with_theirs(recognizer, path, batched=False)
    with TemporaryDirectory() as scratch:
        for kind in KINDS:
            recording = stitch(given.csv, Path(scratch) / "stitched.flac", kind, given.minutes)
            heard: dict[str, Heard] = {}
            for name, way in ways.items():
                start = time.perf_counter()
                words, cues = way(recording.path)
                heard[name] = Heard(words, cues, time.perf_counter() - start)
                print(row(f"{kind}: {name}", recording, heard[name], heard["faster-whisper, batched"]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
