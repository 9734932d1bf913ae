"""`tools/transcribe.py`: whatever is said gets into the files once, with its times; what is broken is named."""

import csv
import importlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path, PureWindowsPath

import av
import numpy as np
import pytest
import soundfile
import torch

from tests.conftest import MODEL, QUICKSTART, one_error, read_rows
from whisper_lightning import audio
from whisper_lightning.audio import HOP_LENGTH, SILENCE_PEAK, load_audio
from whisper_lightning.export.decoding import Decoding, decode
from whisper_lightning.metrics import EditCounts, word_edits
from whisper_lightning.model.module import WhisperModule
from whisper_lightning.model.trained import open_model
from whisper_lightning.transcribe import Segment, Skipped, Transcript, relative_names, transcribe, write_transcript
from whisper_lightning.windows import frame_levels

RATE = 16_000
sys.path.append(str(Path(__file__).parent.parent / "tools"))
main: Callable[[list[str]], int] = importlib.import_module("transcribe").main


@pytest.fixture(scope="module")
def module() -> WhisperModule:
    """A model that knows nothing and writes as much as it may; its context is 4 s."""
    torch.manual_seed(3)
    return WhisperModule(checkpoint=str(MODEL), random_weights=True).eval()


@pytest.fixture(scope="module")
def model(module: WhisperModule, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    module.save_pretrained(folder)
    return str(folder)


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    """Bursts of noise of 1.5 s with pauses of 0.7 s."""
    samples = np.random.default_rng(seed).normal(0, 0.1, int(seconds * RATE))
    samples[np.arange(len(samples)) / RATE % 2.2 > 1.5] = 0
    return samples.astype(np.float32)


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder).as_posix()) for path in folder.rglob("*") if path.is_file())


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


def test_formats_are_read_by_others(tmp_path: Path) -> None:
    segments = [
        Segment(0.0, 2.5, "¿Qué tal, señor Núñez?"),
        Segment(59.9996, 61.25, "uno < dos & tres"),
        Segment(3599.0, 3661.04, "ve --> allí"),
        Segment(360_000.5, 360_001.0, "42"),
    ]
    transcript = Transcript(Path("/audio/a.wav"), 360_002.0, "es", segments)
    write_transcript(transcript, tmp_path / "new" / "folder" / "a.wav", ["txt", "srt", "vtt", "json"])
    stem = tmp_path / "new" / "folder" / "a.wav"
    times = [(0.0, 2.5), (60.0, 61.25), (3599.0, 3661.04), (360_000.5, 360_001.0)]
    srt, vtt = (stem.with_name(f"a.wav.{name}") for name in ("srt", "vtt"))
    for path in (srt, vtt):
        assert [pytest.approx(cue[:2]) for cue in cues(path)] == times
    assert [text for *_, text in cues(srt)] == [segment.text.replace("-->", "->") for segment in segments]
    assert [text for *_, text in cues(vtt)][1:3] == ["uno &lt; dos &amp; tres", "ve --&gt; allí"]
    assert (
        srt.read_bytes().decode("utf-8").startswith("1\n00:00:00,000 --> 00:00:02,500\n¿Qué tal, señor Núñez?\n\n2\n")
    )
    assert "\n\n00:01:00.000 --> 00:01:01.250\nuno" in vtt.read_bytes().decode("utf-8")
    assert "100:00:00.500 -->" in vtt.read_text(encoding="utf-8")
    content = json.loads(stem.with_name("a.wav.json").read_text(encoding="utf-8"))
    assert content["segments"][2] == {"start": 3599.0, "end": 3661.04, "text": "ve --> allí"}
    assert (content["audio"], content["language"], content["duration"]) == ("a.wav", "es", 360_002.0)
    assert content["text"] == " ".join(segment.text for segment in segments)
    lines = stem.with_name("a.wav.txt").read_text(encoding="utf-8").splitlines()
    assert lines == [segment.text for segment in segments]


def test_a_recording_without_a_word(tmp_path: Path) -> None:
    write_transcript(Transcript(Path("a.wav"), 3.0, "es", []), tmp_path / "a.wav", ["txt", "srt", "vtt", "json"])
    assert (tmp_path / "a.wav.srt").read_bytes() == (tmp_path / "a.wav.txt").read_bytes() == b""
    assert (tmp_path / "a.wav.vtt").read_bytes() == b"WEBVTT\n"
    assert json.loads((tmp_path / "a.wav.json").read_bytes())["segments"] == []


def test_names_differ_where_files_do(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    places = ["mañana/a.wav", "mañana/a.flac", "mañana/deep/er/a.WAV", "tarde/a.wav", "tarde/a.wav.wav", "tarde/b.data"]
    for place in places:
        (tmp_path / "in" / place).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / "in" / place, speech(1), RATE, format="FLAC" if "flac" in place else "WAV")
    (tmp_path / "in" / "mañana" / "notes.txt").write_text("x", encoding="utf-8")
    (tmp_path / "in" / "mañana" / "._a.wav").write_bytes(b"of macOS")
    folder = tmp_path / "in"
    given = [folder / "mañana", folder / "tarde" / "a.wav", folder / "tarde", folder / "tarde" / "b.data"]
    out = tmp_path / "out"
    assert main([model, *map(str, given), "--out", str(out), "--format", "txt"]) == 0
    assert listing(out) == sorted(f"{place}.txt" for place in places)
    assert capsys.readouterr().out.startswith("6 recordings, 0.1 min, 6 segments")
    assert main([model, str(folder / "tarde" / "a.wav"), "--out", str(tmp_path / "one")]) == 0
    assert listing(tmp_path / "one") == ["a.wav.srt", "a.wav.txt"]


def test_names_on_several_drives() -> None:
    paths = [PureWindowsPath(path) for path in (r"C:\x\a.wav", r"D:\x\a.wav", r"\\server\share\x\a.wav")]
    names = [name.as_posix() for name in relative_names(paths)]
    assert names == ["C/x/a.wav", "D/x/a.wav", "servershare/x/a.wav"]
    assert [name.as_posix() for name in relative_names(paths[:1])] == ["a.wav"]


def test_broken_files_are_named_and_the_others_transcribed(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    soundfile.write(folder / "good.wav", speech(6), RATE)
    soundfile.write(folder / "silent.wav", np.zeros(10 * RATE), RATE)
    soundfile.write(folder / "cut.wav", speech(6), RATE)
    (folder / "cut.wav").write_bytes((folder / "cut.wav").read_bytes()[:50_000])
    (folder / "text.mp3").write_text("esto no es audio " * 50, encoding="utf-8")
    (folder / "none.ogg").touch()
    soundfile.write(folder / "nan.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    assert main([model, str(folder), "--out", str(tmp_path / "out"), "--format", "json"]) == 1
    out, error = capsys.readouterr()
    assert listing(tmp_path / "out") == ["good.wav.json", "silent.wav.json"]
    for name, reason in (
        ("cut.wav", "truncated"),
        ("text.mp3", "not audio"),
        ("none.ogg", "empty"),
        ("nan.wav", "unreadable"),
    ):
        assert f"skipped: {folder / name}: {reason}" in error
    assert "4 skipped" in error
    assert "Traceback" not in error
    assert "2 recordings" in out
    assert "1 of them without a word" in out
    good, silent = (json.loads((tmp_path / "out" / f"{name}.wav.json").read_bytes()) for name in ("good", "silent"))
    assert silent["segments"] == []
    assert len(good["segments"]) == 3
    assert all(segment["text"] for segment in good["segments"])


def test_a_file_that_breaks_after_it_was_listened_to(tmp_path: Path, module: WhisperModule) -> None:
    paths = [tmp_path / name for name in ("a.wav", "b.wav", "c.wav")]
    for path in paths:
        soundfile.write(path, speech(9), RATE)
    paths[2].write_bytes(b"nothing")
    results = transcribe(module, paths, batch_size=1)  # four windows are read before the first is decoded
    assert isinstance(first := next(results), Skipped)
    assert first.path == paths[2]
    soundfile.write(paths[0], speech(7), RATE)
    rest = list(results)
    assert [type(each) for each in rest] == [Skipped, Transcript]
    assert [each.path for each in rest] == paths[:2]
    assert isinstance(rest[0], Skipped)
    assert rest[0].error.reason == "truncated"
    assert isinstance(rest[1], Transcript)
    assert len(rest[1].segments) == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent.wav"], ["absent.wav", "no such file"]),
        (["https://example.org/a.wav"], ["no such file"]),
        (["empty"], ["empty", "no audio", ".wav"]),
        (["a.wav", "--format", "srt,doc"], ["'doc'", "txt,srt,vtt,json"]),
        (["a.wav", "--batch_size", "0"], ["--batch_size", "0"]),
        (["a.wav", "--language", "klingon"], ["klingon"]),
        (["a.wav", "--out", "a.wav"], ["a.wav", "--out"]),
    ],
)
def test_mistakes(
    arguments: list[str],
    words: list[str],
    tmp_path: Path,
    model: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    soundfile.write(tmp_path / "a.wav", speech(1), RATE)
    assert main([model, *arguments]) == 2
    error = one_error(capsys)
    assert all(word in error for word in words)


def test_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(tmp_path / "a.wav", speech(1), RATE)
    assert importlib.import_module("tools.transcribe").main([str(tmp_path / "model"), str(tmp_path / "a.wav")]) == 2
    assert "model.checkpoint: cannot load" in one_error(capsys)


def segments_of(module: WhisperModule, paths: list[Path], batch_size: int = 16) -> dict[str, list[Segment]]:
    results = list(transcribe(module, paths, batch_size))
    assert all(isinstance(each, Transcript) for each in results)
    return {each.path.name: each.segments for each in results if isinstance(each, Transcript)}


def test_blocks_and_batches_change_nothing(
    quickstart_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows that lie across the blocks that are read, several recordings in a batch, a batch in several."""
    trained = open_model(str(quickstart_run / "runs" / "quickstart"))
    clips = [load_audio(QUICKSTART / row["audio"]).numpy() for row in read_rows(QUICKSTART / "test.csv")[:16]]
    paths = [tmp_path / name for name in ("a.wav", "b.wav", "c.flac")]
    for path, chosen in zip(paths, (clips[:1], clips[1:6], clips[6:]), strict=True):
        parts = [part for clip in chosen for part in (clip, np.zeros(RATE, np.float32))]
        soundfile.write(path, np.concatenate(parts), RATE)
    whole = segments_of(trained, paths)
    assert [len(whole[path.name]) for path in paths] == [1, 5, 10]
    assert len({segment.text for segments in whole.values() for segment in segments}) > 10
    monkeypatch.setattr(audio, "BLOCK_SECONDS", 1)
    assert segments_of(trained, paths, batch_size=3) == whole


def test_texts_as_long_as_may_be_are_counted(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(tmp_path / "a.wav", speech(8), RATE)
    assert main([model, str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert "4 segments are as long as the decoder may write" in capsys.readouterr().out


def scored(run: Path) -> dict[str, tuple[str, str]]:
    """Reference and hypothesis of each clip, as the run's own test decoded them."""
    with (run / "transcripts" / "test.csv").open(encoding="utf-8", newline="") as file:
        return {Path(row["audio"]).name: (row["reference"], row["hypothesis"]) for row in csv.DictReader(file)}


def test_clips_have_the_text_of_the_test(quickstart_run: Path, tmp_path: Path) -> None:
    run = quickstart_run / "runs" / "quickstart"
    expected = {name: hypothesis for name, (_, hypothesis) in scored(run).items()}
    (tmp_path / "clips").mkdir()
    for name in expected:
        shutil.copy(QUICKSTART / "audio" / name, tmp_path / "clips")
    assert main([str(run), str(tmp_path / "clips"), "--out", str(tmp_path / "out"), "--format", "txt,json"]) == 0
    texts = {name: (tmp_path / "out" / f"{name}.txt").read_text(encoding="utf-8").strip() for name in expected}
    # In other company the silence behind a clip is sampled elsewhere.
    assert sum(texts[name] != hypothesis for name, hypothesis in expected.items()) <= 2
    for name in expected:
        (segment,) = json.loads((tmp_path / "out" / f"{name}.json").read_bytes())["segments"] or [None]
        assert segment is None or segment["start"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_ten_minutes(quickstart_run: Path, tmp_path: Path, noise: float) -> None:
    """Stitched clips: boundaries fall in the stitched silences, nothing is lost or doubled, the WER is the clips'."""
    run = quickstart_run / "runs" / "quickstart"
    expected = scored(run)
    names = [Path(row["audio"]).name for row in read_rows(QUICKSTART / "test.csv")]
    rng = np.random.default_rng(0)
    order: list[str] = []
    parts, spans, length = [np.zeros(RATE, np.float32)], [], RATE
    while length < 600 * RATE:
        order.append(names[len(order) % len(names)])
        clip = load_audio(QUICKSTART / "audio" / order[-1]).numpy()
        silence = rng.normal(0, noise, int(rng.uniform(0.5, 1.3) * RATE))
        # A clip may begin and end about as quietly as the silences around it.
        noise_db = 20 * np.log10(max(noise, SILENCE_PEAK))
        audible = np.flatnonzero(frame_levels(torch.from_numpy(clip)) > noise_db + 6) * HOP_LENGTH
        spans.append(((length + audible[0]) / RATE, (length + audible[-1]) / RATE))
        parts += [clip, silence.astype(np.float32)]
        length += len(clip) + len(silence)
    soundfile.write(tmp_path / "long.flac", np.concatenate(parts), RATE)
    assert main([str(run), str(tmp_path / "long.flac"), "--out", str(tmp_path), "--format", "txt,srt,vtt,json"]) == 0
    srt = cues(tmp_path / "long.flac.srt")
    assert not [at for cue in srt for at in cue[:2] if any(start < at < end for start, end in spans)]
    said = [[number for number, (a, b) in enumerate(spans) if start < b and a < end] for start, end, _ in srt]
    # Each clip is in a segment of its own; one without a text has none.
    assert said == [[number] for number in range(len(spans)) if [number] in said]
    assert all(expected[order[number]][1] == "" for number in range(len(spans)) if [number] not in said)
    reference = " ".join(expected[name][0] for name in order)
    clip_by_clip = EditCounts()
    for name in order:
        clip_by_clip = clip_by_clip.plus(word_edits(*expected[name]))
    text = " ".join((tmp_path / "long.flac.txt").read_text(encoding="utf-8").split())
    stitched = word_edits(reference, text)
    print(f"WER {stitched.percent:.2f} % stitched, {clip_by_clip.percent:.2f} % clip by clip")  # noqa: T201 (with -s)
    # Each segment is what the model hears in those samples alone. What the other silence around the words costs is the
    # model's, which has never heard it: 0.5 points at most for the one of step 600, 1.8 and 2.5 for that of step 700.
    samples = torch.from_numpy(soundfile.read(tmp_path / "long.flac", dtype="float32")[0])
    segments = json.loads((tmp_path / "long.flac.json").read_bytes())["segments"]
    alone = [samples[round(each["start"] * RATE) : round(each["end"] * RATE)] for each in segments]
    trained = open_model(str(run))
    assert decode(trained, alone, Decoding.of(trained)) == [each["text"] for each in segments]
    assert stitched.percent <= clip_by_clip.percent + 3
    assert " ".join(text for *_, text in srt) == text
    assert json.loads((tmp_path / "long.flac.json").read_bytes())["text"] == text
    assert [cue[:2] for cue in cues(tmp_path / "long.flac.vtt")] == [cue[:2] for cue in srt]
