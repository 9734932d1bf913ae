"""Transcripts as files: cues that people can read, in formats that other programs read."""

import json
import random
from itertools import pairwise
from pathlib import Path

import av
import pytest

from whisper_lightning.transcription.subtitles import (
    PAUSE_SECONDS,
    SHORTEST_CUE_SECONDS,
    CueLimits,
    Transcript,
    Word,
    cut_cues,
    write_transcript,
)

FORMATS = ["txt", "srt", "vtt", "tsv", "json"]
LIMITS = CueLimits()


def say(text: str, start: float = 0.0, seconds: float = 0.3) -> list[Word]:
    """Words of a sentence, one after the other, as faster-whisper gives them: with the blank before each."""
    return [
        Word(start + number * seconds, start + (number + 1) * seconds, f" {word}")
        for number, word in enumerate(text.split())
    ]


def cues(path: Path) -> list[tuple[float, float, str]]:
    """Read subtitles as FFmpeg does."""
    with av.open(str(path)) as file:
        stream = file.streams.subtitles[0]
        packets = [packet for packet in file.demux(stream) if packet.size]
        assert stream.time_base is not None
        unit = float(stream.time_base)
        return [
            (packet.pts * unit, (packet.pts + packet.duration) * unit, bytes(packet).decode("utf-8"))
            for packet in packets
            if packet.pts is not None and packet.duration is not None
        ]


@pytest.mark.parametrize("limits", [LIMITS, CueLimits(20, 1, 3.0), CueLimits(60, 3, 10.0)])
def test_cues_hold_what_may_be_shown_and_every_word_once(limits: CueLimits) -> None:
    chance, words, at = random.Random(0), list[Word](), 0.0
    for _ in range(2_000):
        at += chance.choice([0.0, 0.1, 1.5]) if chance.random() < 0.1 else 0.0
        length = chance.uniform(0.1, 0.7)
        letters = "".join(chance.choices("aeiouñlrst", k=chance.randint(1, 12)))
        words.append(Word(at, at + length, f" {letters}{chance.choice(['', '', '', ',', '.', '?'])}"))
        at += length
    found = cut_cues(words, limits)
    assert " ".join(" ".join(cue.lines) for cue in found) == "".join(word.text for word in words).strip()
    for cue in found:
        assert 1 <= len(cue.lines) <= limits.max_lines
        assert max(map(len, cue.lines)) <= limits.max_line_length
        assert cue.end - cue.start <= limits.max_seconds + 1e-6
    assert all(one.end <= other.start + 1e-6 for one, other in pairwise(found))


def test_a_cue_ends_at_a_pause_and_where_a_sentence_does() -> None:
    words = say("Buenos días. Me llamo Ana y vengo de muy lejos, de un pueblo que no conoce nadie. ¿Y tú, de dónde?")
    first, *rest = cut_cues(words, LIMITS)
    assert " ".join(first.lines).endswith("que no conoce nadie.")
    assert [" ".join(cue.lines) for cue in rest] == ["¿Y tú, de dónde?"]
    later = say("Sí.", start=words[-1].end + PAUSE_SECONDS + 0.01)
    assert [" ".join(cue.lines) for cue in cut_cues(words + later, LIMITS)][2:] == ["Sí."]


def test_lines_are_about_as_long_as_each_other() -> None:
    (cue,) = cut_cues(say("la casa de mi abuela está al lado del río grande"), LIMITS)
    assert cue.lines == ["la casa de mi abuela está", "al lado del río grande"]


def test_a_word_longer_than_a_line_is_cut() -> None:
    (cue,) = cut_cues([Word(0, 1, "ja" * 40)], LIMITS)
    assert [len(line) for line in cue.lines] == [42, 38]


def test_a_short_word_stays_long_enough_to_read() -> None:
    words = [Word(1.0, 1.1, " Sí."), Word(1.95, 2.2, " No."), Word(9.0, 9.2, " Ya.")]
    assert [cue[:2] for cue in cut_cues(words, LIMITS)] == [
        (1.0, 1.95),
        (1.95, 1.95 + SHORTEST_CUE_SECONDS),
        (9.0, 9.0 + SHORTEST_CUE_SECONDS),
    ]


@pytest.mark.parametrize(("gap", "closed"), [(0.3, True), (0.6, False)])
def test_a_gap_too_short_to_see_is_closed(gap: float, closed: bool) -> None:
    words = [Word(0.0, 4.0, " Uno."), Word(4.0 + gap, 8.0, " Dos.")]
    first, second = cut_cues(words, LIMITS)
    assert (first.end, second.end) == (4.0 + gap if closed else 4.0, 8.0)


def test_formats_are_read_by_others(tmp_path: Path) -> None:
    words = [
        Word(0.0, 2.5, " ¿Qué tal, señor Núñez?"),
        Word(59.9996, 61.25, " uno < dos & tres"),
        Word(3599.0, 3601.04, " ve --> allí"),
        Word(360_000.5, 360_002.0, " 42"),
    ]
    segments = [
        {"id": number, "start": word.start, "end": word.end, "text": word.text} for number, word in enumerate(words)
    ]
    stem = tmp_path / "new" / "folder" / "a.b"
    write_transcript(Transcript("a.b.wav", 360_002.0, "es", segments, words), stem, FORMATS, LIMITS)
    times = [(0.0, 2.5), (60.0, 61.25), (3599.0, 3601.04), (360_000.5, 360_002.0)]
    paths = {name: stem.with_name(f"a.b.{name}") for name in FORMATS}
    texts = {name: path.read_bytes().decode("utf-8") for name, path in paths.items()}
    for name in ("srt", "vtt"):
        assert [pytest.approx(cue[:2]) for cue in cues(paths[name])] == times
    assert [text for *_, text in cues(paths["srt"])] == [word.text.strip().replace("-->", "->") for word in words]
    assert [text for *_, text in cues(paths["vtt"])][1:3] == ["uno &lt; dos &amp; tres", "ve --&gt; allí"]
    assert texts["srt"].startswith("1\n00:00:00,000 --> 00:00:02,500\n¿Qué tal, señor Núñez?\n\n2\n")
    assert "\n\n00:01:00.000 --> 00:01:01.250\nuno" in texts["vtt"]
    assert "100:00:00.500 -->" in texts["vtt"]
    assert texts["tsv"].splitlines()[:3] == [
        "start\tend\ttext",
        "0\t2500\t¿Qué tal, señor Núñez?",
        "60000\t61250\tuno < dos & tres",
    ]
    content = json.loads(texts["json"])
    assert list(content) == ["text", "segments", "language"]
    assert content["segments"] == segments
    assert content["text"] == "".join(word.text for word in words)
    assert texts["txt"].splitlines() == [word.text.strip() for word in words]


def test_a_recording_without_a_word(tmp_path: Path) -> None:
    write_transcript(Transcript("a.wav", 3.0, "es", [], []), tmp_path / "a", FORMATS, LIMITS)
    assert (tmp_path / "a.srt").read_bytes() == (tmp_path / "a.txt").read_bytes() == b""
    assert (tmp_path / "a.vtt").read_bytes() == b"WEBVTT\n"
    assert (tmp_path / "a.tsv").read_bytes() == b"start\tend\ttext\n"
    assert json.loads((tmp_path / "a.json").read_bytes())["segments"] == []
