"""Transcripts as files: subtitles that people can read, plain text, tables, and JSON in openai-whisper's layout."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from whisper_lightning.errors import UserError

PAUSE_SECONDS = 0.8
"""A silence so long ends a cue: what follows is not shown before it is said."""
SHORTEST_CUE_SECONDS = 1.0
"""A cue shorter than this goes on after its last word, as far as the next one lets it: nobody can read it else."""
CLOSED_GAP_SECONDS = 0.5
"""A shorter gap between two cues is closed, as subtitlers do: a screen that is empty for a moment flickers."""
SENTENCE_ENDS, CLAUSE_ENDS = (".", "?", "!", "…"), (",", ";", ":")


class Word(NamedTuple):
    """A word with the blank and the punctuation that belong to it, and when it is said, in seconds."""

    start: float
    end: float
    text: str


class Cue(NamedTuple):
    """Some lines that are shown together, and from when to when, in seconds."""

    start: float
    end: float
    lines: list[str]


@dataclass(frozen=True)
class CueLimits:
    """How much may be shown at once.

    Attributes:
        max_line_length: Characters in a line.
        max_lines: Lines.
        max_seconds: Seconds.
    """

    max_line_length: int = 42
    max_lines: int = 2
    max_seconds: float = 7.0


@dataclass(frozen=True)
class Transcript:
    """What was said in a recording.

    Attributes:
        name: The recording's file name.
        seconds: Its length.
        language: Code of the language that was told or found.
        segments: In openai-whisper's layout: id, seek, start, end, text, tokens, temperature, avg_logprob,
            compression_ratio, no_speech_prob, words.
        words: Of all segments.
    """

    name: str
    seconds: float
    language: str
    segments: list[dict[str, Any]]
    words: list[Word]


def cut_cues(words: Sequence[Word], limits: CueLimits) -> list[Cue]:
    """Cut words into cues: at pauses, else where a sentence or a clause ends, else where the cue is full.

    Args:
        words: In order.
        limits: What a cue may hold; a word that is longer than a line is cut, one that is longer in time is not.
    """
    cues: list[Cue] = []
    for run in _between_pauses(words):
        first = 0
        while first < len(run):
            stop = _end_of_cue(run, first, limits)
            lines = _lines(run[first:stop], limits)
            cues += [Cue(run[first].start, run[stop - 1].end, lines)] if lines else []
            first = stop
    for number, cue in enumerate(cues):
        after = cues[number + 1].start if number + 1 < len(cues) else math.inf
        end = max(cue.end, min(cue.start + SHORTEST_CUE_SECONDS, after))
        closed = after - end < CLOSED_GAP_SECONDS and after - cue.start <= limits.max_seconds
        cues[number] = cue._replace(end=after if closed else end)
    return cues


def _between_pauses(words: Sequence[Word]) -> list[list[Word]]:
    runs: list[list[Word]] = []
    for word in words:
        if not runs or word.start - runs[-1][-1].end >= PAUSE_SECONDS:
            runs.append([])
        runs[-1].append(word)
    return runs


def _end_of_cue(run: list[Word], first: int, limits: CueLimits) -> int:
    """Return the number of the word that begins the next cue."""
    most = first + 1
    while most < len(run) and _fits(run[first : most + 1], limits):
        most += 1
    if most == len(run):
        return most
    for ends in (SENTENCE_ENDS, CLAUSE_ENDS):
        for stop in range(most, first + (most - first) // 2, -1):
            if run[stop - 1].text.rstrip("\"'»”) ").endswith(ends):
                return stop
    return most


def _fits(words: list[Word], limits: CueLimits) -> bool:
    lines = _wrap(_text(words), limits.max_line_length)
    return words[-1].end - words[0].start <= limits.max_seconds and len(lines) <= limits.max_lines


def _lines(words: list[Word], limits: CueLimits) -> list[str]:
    """Break a cue's text into as few lines as it needs, about as long each."""
    text = _text(words)
    needed = _wrap(text, limits.max_line_length)
    for width in range(max(1, len(text) // max(1, len(needed))), limits.max_line_length):
        lines = _wrap(text, width, break_long_words=False)
        if len(lines) == len(needed) and all(len(line) <= limits.max_line_length for line in lines):
            return lines
    return needed


def _wrap(text: str, width: int, *, break_long_words: bool = True) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=break_long_words, break_on_hyphens=False)


def _text(words: Sequence[Word]) -> str:
    return " ".join("".join(word.text for word in words).split())


def write_transcript(transcript: Transcript, stem: Path, formats: Sequence[str], limits: CueLimits) -> None:
    """Write a transcript in some of `FORMATS`, each into a file whose ending is the format's name.

    Raises:
        UserError: It cannot be written.
    """
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        for name in formats:
            path = stem.with_name(f"{stem.name}.{name}")
            path.write_text(FORMATS[name](transcript, limits), encoding="utf-8", newline="\n")
    except OSError as error:
        raise UserError(
            f"{stem}: cannot write the transcript ({error.strerror or error}); choose another --out"
        ) from None


def _txt(transcript: Transcript, limits: CueLimits) -> str:
    del limits
    return "".join(f"{' '.join(segment['text'].split())}\n" for segment in transcript.segments)


def _srt(transcript: Transcript, limits: CueLimits) -> str:
    cues = (
        # Arrows are what readers look for.
        f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n{_shown(cue).replace('-->', '->')}\n"
        for number, cue in enumerate(cut_cues(transcript.words, limits), 1)
    )
    return "\n".join(cues)


def _vtt(transcript: Transcript, limits: CueLimits) -> str:
    """WebVTT (W3C): in a cue's text, `&`, `<` and `>` are escaped."""
    cues = (
        f"\n{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n{escape(_shown(cue), quote=False)}\n"
        for cue in cut_cues(transcript.words, limits)
    )
    return "".join(["WEBVTT\n", *cues])


def _tsv(transcript: Transcript, limits: CueLimits) -> str:
    """Milliseconds and text, as openai-whisper writes its segments."""
    rows = (
        f"{round(1000 * cue.start)}\t{round(1000 * cue.end)}\t{' '.join(cue.lines)}\n"
        for cue in cut_cues(transcript.words, limits)
    )
    return "".join(["start\tend\ttext\n", *rows])


def _json(transcript: Transcript, limits: CueLimits) -> str:
    del limits
    content = {
        "text": "".join(segment["text"] for segment in transcript.segments),
        "segments": transcript.segments,
        "language": transcript.language,
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _shown(cue: Cue) -> str:
    return "\n".join(cue.lines)


def _clock(seconds: float, mark: str) -> str:
    """Return hours:minutes:seconds, then milliseconds after a mark."""
    milliseconds = round(1000 * seconds)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    whole, milliseconds = divmod(milliseconds, 1000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{whole:02}{mark}{milliseconds:03}"


FORMATS: dict[str, Callable[[Transcript, CueLimits], str]] = {
    "txt": _txt,
    "srt": _srt,
    "vtt": _vtt,
    "tsv": _tsv,
    "json": _json,
}
"""What can be written: a format's name, which is its file's ending, and what writes it."""
