"""Stretches of long recordings: columns `start` and `end`, subtitles beside a recording, folders of recordings."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tests.conftest import MODEL, one_error, quick_arguments, read_rows
from whisper_lightning.audio import stretches
from whisper_lightning.audio.decoders import AudioError
from whisper_lightning.audio.read import load_audio, stream_audio
from whisper_lightning.audio.stretches import Cutter
from whisper_lightning.cli import main
from whisper_lightning.data.build import build_shards
from whisper_lightning.data.manifest import seconds
from whisper_lightning.data.source import read_source
from whisper_lightning.data.subtitles import find_recording, find_subtitles
from whisper_lightning.errors import UserError

SRT = """\ufeff1
00:00:00,500 --> 00:00:01,750
<i>Buenas tardes, les habla</i>

2
00:00:01,800 --> 00:00:03,000 X1:0 X2:100
{\\an8}la radio.

3
00:00:03,100 --> 00:00:04,000
[MÚSICA]

4
00:00:04,200 --> 00:00:05,000
- ¿Qué tal?
- Bien &amp; contento.

5
00:00:09,000 --> 00:00:08,000
al revés

6
00:01:10,000 --> 00:01:12,000
(risas)

7
00:01:20,000 --> 00:01:21,500
Diga <|endoftext|> algo.
"""
VTT = """WEBVTT - entrevista

NOTE la primera línea
que nadie dice

intro
00:00.500 --> 00:03.000 align:start
<v Ana López>Buenas <b>tardes</b></v>
<v Ana López>a todos,

00:03.100 --> 00:05.000
<v Luis>y a todas ♪
"""


@pytest.fixture
def recording(corpus: Path) -> Path:
    """A recording of more than two minutes, of several of the decoder's blocks."""
    clips = [load_audio(corpus / row["audio"]) for row in read_rows(corpus / "train.csv")]
    samples = torch.cat([*clips, *clips, *clips])[: 135 * 16_000].numpy()
    assert len(samples) == 135 * 16_000
    soundfile.write(corpus / "charla.flac", samples, 16_000)
    return corpus / "charla.flac"


def write_table(path: Path, rows: list[tuple[str, str, str]], audio: str = "charla.flac") -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["audio", "sentence", "start", "end"])
        writer.writerows([audio, *row] for row in rows)
    return path


def test_stretches_are_what_the_whole_recording_has_there(recording: Path) -> None:
    """Whatever their order, they overlap or not, within a block or over the borders of two."""
    table = [("uno", "0", "3.5"), ("dos", "59", "61.25"), ("tres", "60.5", "1:30.5"), ("cuatro", "0:00:2,25", "4")]
    table += [("cinco", "00:02:00,000", ""), ("seis", "", "2")]
    path = write_table(recording.parent / "cortes.csv", table)
    index = build_shards(path, recording.parent / "shards", num_workers=0)
    whole = torch.cat(list(stream_audio(recording)))
    cuts = [(0, 3.5), (59, 61.25), (60.5, 90.5), (2.25, 4), (120, len(whole) / 16_000), (0, 2)]
    for i, (start, end) in enumerate(cuts):
        utterance = index.read(i)
        expected = whole[round(start * 16_000) : round(end * 16_000)]
        assert utterance.sentence == table[i][0]
        assert utterance.extra["start"] == table[i][1]
        torch.testing.assert_close(utterance.waveform, expected, rtol=0, atol=1.0 / 2**15)
    assert index.rejected() == []


def test_a_recording_is_decoded_once(recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not once for each of its stretches: an hour has a thousand."""
    opened = []

    def counted(path: Path) -> Iterator[torch.Tensor]:
        opened.append(path)
        return stream_audio(path)

    monkeypatch.setattr(stretches, "stream_audio", counted)
    cutter = Cutter()
    for start in range(0, 130, 2):
        assert len(cutter.cut(recording, start, start + 2.5)) == 40_000
    assert len(opened) == 1
    assert len(cutter._kept) < 2 * 61 * 16_000


def test_stretches_that_cannot_be_used_are_named(recording: Path, tmp_path: Path) -> None:
    table = [("bien", "1", "2"), ("al revés", "5", "3"), ("palabra", "pronto", "3"), ("largo", "1", "31.5")]
    table += [("tras el fin", "200", "201"), ("justo", "133", "135.5"), ("demasiado", "133", "140"), ("todo", "1", "")]
    index = build_shards(write_table(recording.parent / "cortes.csv", table), tmp_path / "shards", num_workers=0)
    assert [index.read_text(i).sentence for i in range(len(index))] == ["bien", "justo"]
    rejected = {row.row: (row.reason, row.detail) for row in index.rejected()}
    assert [rejected[row][0] for row in (3, 4, 5, 6, 8, 9)] == [
        *("broken row", "broken row", "too long", "beyond the end", "beyond the end", "too long")
    ]
    assert "from '5' to '3' is no stretch of time; write seconds" in rejected[3][1]
    assert "take out the columns start and end" in rejected[6][1]


def test_a_failure_in_the_middle_of_a_recording_is_every_later_stretch_s(
    recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(path: Path) -> Iterator[torch.Tensor]:
        yield torch.rand(60 * 16_000) - 0.5
        raise AudioError("truncated", "ends too early")

    monkeypatch.setattr(stretches, "stream_audio", breaks)
    cutter = Cutter()
    assert len(cutter.cut(recording, 50, 59)) == 9 * 16_000
    for start in (58, 70, 90):
        with pytest.raises(AudioError, match="ends too early"):
            cutter.cut(recording, start, start + 3)
    assert len(cutter.cut(recording, 1, 2)) == 16_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [("75.5", 75.5), ("1:15,5", 75.5), ("00:01:15.500", 75.5), ("100:00:00", 360_000), ("7.", 7), ("0", 0)],
)
def test_times_as_people_write_them(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "-1", "1e3", "nan", "1:2:3:4", "1.5s", "١"])
def test_what_is_no_time(text: str) -> None:
    assert np.isnan(seconds(text))


def test_subtitles_are_rows(recording: Path) -> None:
    """A sentence over two cues is one row; what only describes sounds is none."""
    path = recording.with_suffix(".srt")
    path.write_text(SRT, encoding="utf-8", newline="\r\n")
    rows = list(read_source(path))
    assert [(row.row, row.start, row.end, row.sentence) for row in rows if not row.reason] == [
        (1, 0.5, 3.0, "Buenas tardes, les habla la radio."),
        (4, 4.2, 5.0, "¿Qué tal? Bien & contento."),
    ]
    assert [(row.row, row.reason) for row in rows if row.reason] == [
        *((3, "no speech"), (5, "broken row"), (6, "no speech"), (7, "special token"))
    ]
    assert {(row.audio, Path(row.path)) for row in rows} == {("charla.flac", recording)}


def test_subtitles_of_the_web_name_their_speakers(recording: Path) -> None:
    path = recording.with_name("charla.es.vtt")
    path.write_text(VTT, encoding="utf-8")
    ana, luis = read_source(path)
    assert (ana.sentence, ana.extra["speaker"], ana.start, ana.end) == ("Buenas tardes a todos,", "Ana López", 0.5, 3)
    assert (luis.sentence, luis.extra["speaker"]) == ("y a todas", "Luis")


def test_subtitles_belong_to_the_recording_of_their_name(tmp_path: Path) -> None:
    """Or of their name without a language; `charla.parte2.srt` is not of `charla.mp3`."""
    for name in ("charla.mp3", "charla.parte2.mp3", "charla.parte2.srt", "otra.mp3", "otra.es-MX.VTT", "sin.mp3"):
        (tmp_path / name).touch()
    names = ("charla", "charla.parte2", "otra", "sin")
    found = dict(zip(names, find_subtitles([tmp_path / f"{name}.mp3" for name in names]), strict=True))
    assert {name: path and path.name for name, path in found.items()} == {
        "charla": None,
        "charla.parte2": "charla.parte2.srt",
        "otra": "otra.es-MX.VTT",
        "sin": None,
    }
    for subtitles in filter(None, found.values()):
        assert find_subtitles([find_recording(subtitles)]) == [subtitles]
    (tmp_path / "charla.parte3.srt").touch()
    with pytest.raises(UserError, match=r"put charla\.parte3\.mp3 there"):
        find_recording(tmp_path / "charla.parte3.srt")


def test_a_folder_of_recordings(corpus: Path, recording: Path) -> None:
    """Those with subtitles are cut; the others are whole, and have no sentence."""
    recording.with_suffix(".srt").write_text(SRT, encoding="utf-8")
    rows = list(read_source(corpus, require_sentence=True))
    alone = [row for row in rows if row.audio.startswith("audio/")]
    assert len(alone) == len(list((corpus / "audio").iterdir())) == len(rows) - 6
    assert {row.sentence for row in alone} == {""}
    numbers = [row.row for row in rows]
    assert numbers == sorted(set(numbers))
    sentences = [row.sentence for row in rows if row.sentence and not row.reason]
    assert sentences == ["Buenas tardes, les habla la radio.", "¿Qué tal? Bien & contento."]
    with pytest.raises(UserError, match="no sentences; give a CSV"):
        list(read_source(corpus / "audio"))


def test_a_run_on_subtitles(recording: Path, tmp_path: Path) -> None:
    """`data.train` names them, and their shards are built anew when a line of them changes."""
    corpus = recording.parent
    cues = [f"{i}\n00:00:{2 * i:02},000 --> 00:00:{2 * i + 1:02},500\nfrase número {i}.\n" for i in range(1, 17)]
    path = recording.with_suffix(".srt")
    path.write_text("\n".join(cues), encoding="utf-8")
    options = [*quick_arguments(corpus, tmp_path / "run"), f"--data.train={path}", "--data.guard_windows=0"]
    assert main(options) == 0
    (built,) = (corpus / "charla.srt.shards").glob("*/index.json")
    path.write_text("\n".join(cues).replace("número 7", "siete"), encoding="utf-8")
    assert main([*options[:3], f"--trainer.default_root_dir={tmp_path / 'other'}", *options[4:]]) == 0
    builds = set((corpus / "charla.srt.shards").glob("*/index.json"))
    assert len(builds - {built}) == 1


def test_shards_of_a_recording_and_its_subtitles(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a folder they go there; without one, where a run looks for them."""
    path = recording.with_suffix(".srt")
    path.write_text(SRT, encoding="utf-8")
    assert main(["shards", str(recording), str(path), str(tmp_path / "apart"), "--num_workers=1"]) == 0
    first = capsys.readouterr().out
    assert "2 utterances" in first
    assert (tmp_path / "apart" / "index.json").is_file()
    assert main(["shards", str(recording), str(path), "--num_workers=1"]) == 0
    home = recording.parent / "charla.srt.shards"
    (built,) = home.glob("*/index.json")
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == first.splitlines()[:2]
    assert said[2] == f"shards, and reasons in rejected.csv: {built.parent}"
    assert main(["shards", str(path)]) == 0  # they are there
    assert list(home.glob("*/index.json")) == [built]
    other = recording.with_name("otra.flac")
    other.touch()
    capsys.readouterr()
    for paths, words in (
        ([other, path], ["charla.srt", "otra.flac", "one name"]),
        ([path, tmp_path / "a", tmp_path / "b"], ["one source at a time"]),
        ([recording.with_name("sola.srt")], ["sola.srt", "no such file"]),
    ):
        assert main(["shards", *map(str, paths)]) == 2
        error = one_error(capsys)
        assert all(word in error for word in words)


def test_predict_takes_a_folder(corpus: Path, tmp_path: Path) -> None:
    options = ["--config=quickstart.yaml", f"--trainer.default_root_dir={tmp_path}", "--model.max_tokens=4"]
    options += [f"--model.checkpoint={MODEL}", f"--data.val={corpus / 'test.csv'}"]
    assert main(["predict", *options, f"--data.predict={corpus / 'audio'}"]) == 0
    files = sorted(path.name for path in (corpus / "audio").iterdir())
    assert [row["audio"] for row in read_rows(tmp_path / "predictions.csv")] == files


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("sola.srt", SRT.encode(), "there is no recording beside these subtitles; put sola.mp3 there"),
        (
            "charla.srt",
            "año\n00:00:01,000 --> 00:00:02,000\nniño\n".encode("cp1252"),
            "save it as UTF-8, in any editor",
        ),
        ("charla.srt", b"hola\n", "there are no subtitles in it"),
    ],
)
def test_subtitles_that_cannot_be_read(
    recording: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, message: str
) -> None:
    path = recording.with_name(name)
    path.write_bytes(content)
    assert main(["shards", str(path), str(recording.with_name("out"))]) == 2
    assert message in one_error(capsys)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("nada.srt", "there is nothing at"),
        ("vacía", "not a folder of shards, since it has no index.json; nor is there"),
    ],
)
def test_a_source_that_is_none(corpus: Path, capsys: pytest.CaptureFixture[str], train: str, message: str) -> None:
    (corpus / "vacía").mkdir()
    assert main([*quick_arguments(corpus, corpus / "run"), f"--data.train={corpus / train}"]) == 2
    assert message in one_error(capsys)
