"""Subtitles (SubRip, WebVTT) and the recording beside them, to the rows that a table of stretches would have."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from whisper_lightning.audio.constants import AUDIO_SUFFIXES, MAX_SECONDS
from whisper_lightning.data.manifest import END, START, Row, clean_sentence, seconds, special_token
from whisper_lightning.data.table import read_lines
from whisper_lightning.errors import UserError

SUBTITLE_SUFFIXES = (".srt", ".vtt")
LONGEST_GAP_SECONDS = 0.5
"""Between two cues of one sentence."""
_TIMES = re.compile(r"\s*([0-9:.,]+)\s*-->\s*([0-9:.,]+)(?:\s.*)?")
_VOICE = re.compile(r"<v(?:\.[^\s>]*)?\s+([^>]*)>")
_MARKUP = re.compile(r"<[^>|]*>|\{\\[^}]*\}")
_SOUNDS = re.compile(r"\[[^\]]*\]|[♪♫]+[^♪♫]*[♪♫]+|[♪♫]")
_ASIDE = re.compile(r"\([^)]*\)")
_LANGUAGE = re.compile(r"(.+)\.[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]{2,4})?")
_SENTENCE_END = re.compile(r"[.!?…:;]['\"»”’)]*$")


class Cue(NamedTuple):
    """What is shown from one time to another.

    Attributes:
        number: Which one it is, from 1.
        start: In seconds.
        end: In seconds.
        text: What is said; "" where only sounds are described.
        speaker: Who says it; "" where the file does not tell.
        written: The text as it stands in the file.
    """

    number: int
    start: float
    end: float
    text: str
    speaker: str
    written: str


def find_subtitles(recordings: Sequence[Path]) -> list[Path | None]:
    """Return the subtitles beside each recording: `talk.srt`, or `talk.es.srt`, beside `talk.mp3`."""
    found: dict[tuple[Path, str], Path] = {}
    for folder in {audio.parent for audio in recordings}:
        paths = [path for path in folder.iterdir() if path.suffix.lower() in SUBTITLE_SUFFIXES]
        for path in sorted(paths, key=lambda path: (len(path.name), path.name)):  # its own name first
            for stem in _stems(path):
                found.setdefault((folder, stem), path)
    return [found.get((audio.parent, audio.stem)) for audio in recordings]


def find_recording(subtitles: Path) -> Path:
    """Return the recording beside subtitles.

    Raises:
        UserError: There is none.
    """
    for stem in _stems(subtitles):
        for path in sorted(subtitles.parent.iterdir()) if subtitles.parent.is_dir() else ():
            if path.stem == stem and path.suffix.lower() in AUDIO_SUFFIXES:
                return path
    raise UserError(
        f"{subtitles}: there is no recording beside these subtitles; put {subtitles.stem}.mp3 there (or "
        f"{', '.join(AUDIO_SUFFIXES)})"
    )


def _stems(subtitles: Path) -> list[str]:
    """Return the names that a recording of subtitles may have: theirs, without the code of a language too."""
    found = _LANGUAGE.fullmatch(subtitles.stem)
    return [subtitles.stem, *([found[1]] if found else [])]


def read_subtitles(path: Path, audio: Path, written: str, first_row: int = 1) -> Iterator[Row]:
    """Read the rows of a recording with subtitles.

    Cues are joined up to the end of a sentence, where no gap is between them and the stretch stays within what a
    Whisper takes: a subtitle is cut where the line is full. Described sounds (`[música]`, `♪`) are no text.

    Args:
        path: The subtitles.
        audio: The recording.
        written: Its name as reports show it.
        first_row: Number of the first row; the others count on by cues.

    Raises:
        UserError: The file cannot be read.
    """
    for cues in _sentences(read_cues(path)):
        text = clean_sentence(" ".join(cue.text for cue in cues))
        start, end = cues[0].start, cues[-1].end
        extra = {START: f"{start:.3f}", END: f"{end:.3f}"} | ({"speaker": cues[0].speaker} if cues[0].speaker else {})
        row = Row(first_row + cues[0].number - 1, written, str(audio), text, extra, start, end)
        shown = f"{cues[0].written[:60]!r} in {path.name}"
        if not start < end:
            row = row._replace(reason="broken row", problem=f"from {start:g} to {end:g} s is no stretch: {shown}")
        elif not text:
            row = row._replace(reason="no speech", problem=f"only sounds are described: {shown}")
        elif token := special_token(text):
            row = row._replace(reason="special token", problem=f"the text holds {token}, a token of Whisper's: {shown}")
        yield row


def read_cues(path: Path) -> Iterator[Cue]:
    """Read the cues of SubRip or WebVTT, which differ in nothing that matters here.

    Raises:
        UserError: The file cannot be read, or has no cues.
    """
    number, times, lines = 0, (math.nan, math.nan), list[str]()
    for line in [*read_lines(path), ""]:
        found = _TIMES.fullmatch(line)
        if found or not line.strip():
            if lines:
                yield _cue(number, times, lines if not found or len(lines) == 1 else lines[:-1])
            lines = []
        if found:
            number, times = number + 1, (seconds(found[1]), seconds(found[2]))
            lines = [""]
        elif lines and line.strip():
            lines.append(line)
    if number == 0:
        raise UserError(f"{path}: there are no subtitles in it: no line such as 00:00:01,000 --> 00:00:02,500")


def _cue(number: int, times: tuple[float, float], lines: Sequence[str]) -> Cue:
    written = " ".join(line.strip() for line in lines[1:])
    voice = _VOICE.search(written)
    plain = _SOUNDS.sub(" ", html.unescape(_MARKUP.sub("", written)))
    if _ASIDE.sub("", plain).strip(" -–—.") == "":
        plain = ""
    said = [re.sub(r"^\s*[-–—]+\s*", "", part) for part in re.split(r"\s(?=[-–—]\s)", plain)]
    text = " ".join(" ".join(said).split())
    return Cue(number, *times, text, voice[1].strip() if voice else "", written)


def _sentences(cues: Iterator[Cue]) -> Iterator[list[Cue]]:
    """Join cues that one sentence goes on through."""
    joined: list[Cue] = []
    for cue in cues:
        goes_on = (
            joined
            and joined[-1].text
            and cue.text
            and not _SENTENCE_END.search(joined[-1].text)
            and cue.speaker == joined[-1].speaker
            and -LONGEST_GAP_SECONDS <= cue.start - joined[-1].end <= LONGEST_GAP_SECONDS
            and joined[-1].end < cue.end <= joined[0].start + MAX_SECONDS
        )
        if joined and not goes_on:
            yield joined
            joined = []
        joined.append(cue)
    if joined:
        yield joined
