"""`transcribe`: faster-whisper hears the model; what is broken is named, and nothing is lost or invented."""

import io
import json
import re
import shutil
import sys
import time
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace
from typing import Any

import ctranslate2
import faster_whisper
import numpy as np
import pytest
import soundfile
from faster_whisper.transcribe import Segment, Word

from tests import command
from tests.conftest import MODEL, QUICKSTART, one_error, read_rows
from tests.multilingual import write_model
from whisper_lightning.model.load import load
from whisper_lightning.model.load import tells_times as model_tells_times
from whisper_lightning.transcription.hearing import _at_once, _by_window, _hear_again, _in_turn, _judged
from whisper_lightning.transcription.recognizer import open_recognizer
from whisper_lightning.transcription.recordings import _progress, stems
from whisper_lightning.transcription.speech import Speech, Window

RATE = 16_000
CLIP = QUICKSTART / read_rows(QUICKSTART / "test.csv")[0]["audio"]


def main(arguments: list[str]) -> int:
    """Run the tool with the least search: a model that knows nothing writes as much as it may, at each temperature."""
    return command.transcribe([*arguments, "--beam_size", "1", "--temperature", "0"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of the published vocabulary that knows nothing."""
    return str(write_model(tmp_path_factory.mktemp("models") / "untrained"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache."""
    monkeypatch.setattr("whisper_lightning.export.ct2.HF_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder).as_posix()) for path in folder.rglob("*") if path.is_file())


def test_names_differ_where_files_do(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    places = ["mañana/a.wav", "mañana/deep/er/a.WAV", "tarde/a.wav", "tarde/a.flac", "tarde/b.data"]
    for place in places:
        (tmp_path / "in" / place).parent.mkdir(parents=True, exist_ok=True)
        silence = np.zeros(RATE)
        soundfile.write(tmp_path / "in" / place, silence, RATE, format="FLAC" if "flac" in place else "WAV")
    (tmp_path / "in" / "mañana" / "notes.txt").write_text("x", encoding="utf-8")
    (tmp_path / "in" / "mañana" / "._a.wav").write_bytes(b"of macOS")
    folder = tmp_path / "in"
    given = [folder / "mañana", folder / "tarde" / "a.wav", folder / "tarde", folder / "tarde" / "b.data"]
    out = tmp_path / "out"
    assert main([model, *map(str, given), "--out", str(out), "--format", "txt"]) == 0
    # A player looks for clip.srt beside clip.ogg; of two recordings with one stem each keeps its whole name.
    assert listing(out) == [
        "mañana/a.txt",
        "mañana/deep/er/a.txt",
        "tarde/a.flac.txt",
        "tarde/a.wav.txt",
        "tarde/b.txt",
    ]
    printed = capsys.readouterr().out
    assert "5 recordings, 0.1 min" in printed
    assert "5 of them without a word" in printed


def test_stems() -> None:
    paths = [PureWindowsPath(path) for path in (r"C:\x\a.wav", r"D:\x\a.wav", r"\\server\share\x\a.wav")]
    assert [name.as_posix() for name in stems(paths)] == ["C/x/a", "D/x/a", "servershare/x/a"]
    assert [name.as_posix() for name in stems(paths[:1])] == ["a"]
    folder = Path("/in")
    for names, expected in (
        (["a.wav", "a.wav.wav"], ["a", "a.wav"]),
        (["a.wav", "A.flac"], ["a.wav", "A.flac"]),  # the same on Windows
        (["a.wav", "a.flac", "a.wav.ogg"], ["a.wav", "a.flac", "a.wav.ogg"]),
    ):
        assert [name.as_posix() for name in stems([folder / name for name in names])] == expected


@pytest.mark.slow
def test_a_form_is_made_once_and_again_for_other_weights(
    model: str, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)

    def converted() -> bool:
        assert main([model, str(tmp_path / "silent.wav"), "--out", str(tmp_path / "out")]) == 0
        return "converting" in capsys.readouterr().out

    assert [converted(), converted()] == [True, False]
    weights = Path(model) / "model.safetensors"
    weights.write_bytes(weights.read_bytes())
    assert [converted(), converted()] == [True, False]
    (folder,) = (cache / "whisper_lightning").iterdir()
    assert sorted(path.name for path in folder.iterdir())[:3] == ["config.json", "made_from.json", "model.bin"]
    (folder / "made_from.json").write_text("{", encoding="utf-8")
    assert converted()


def test_a_cache_that_cannot_be_written_is_one_line(
    model: str, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache.write_text("a file", encoding="utf-8")
    assert main([model, str(CLIP)]) == 2
    assert "HF_HOME" in one_error(capsys)


@pytest.mark.slow
def test_a_run_keeps_its_form(model: str, cache: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(model, run / "best")
    (run / "config.yaml").write_text("{}", encoding="utf-8")
    assert main([str(run), str(CLIP), "--out", str(tmp_path / "out"), "--format", "json"]) == 0
    assert (run / "ct2" / "model.bin").is_file()
    assert not cache.exists()
    assert listing(tmp_path / "out") == [f"{CLIP.stem}.json"]


@pytest.mark.slow
def test_broken_files_are_named_and_the_others_transcribed(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(CLIP, folder / f"good{CLIP.suffix}")
    soundfile.write(folder / "silent.wav", np.zeros(10 * RATE), RATE)
    soundfile.write(folder / "short.wav", np.full(480, 0.5), RATE)
    soundfile.write(folder / "cut.wav", np.full(6 * RATE, 0.1), RATE)
    (folder / "cut.wav").write_bytes((folder / "cut.wav").read_bytes()[:50_000])
    (folder / "text.mp3").write_text("esto no es audio " * 50, encoding="utf-8")
    (folder / "none.ogg").touch()
    soundfile.write(folder / "nan.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    assert main([model, str(folder), "--out", str(tmp_path / "out"), "--format", "json"]) == 1
    out, error = capsys.readouterr()
    assert listing(tmp_path / "out") == ["good.json", "short.json", "silent.json"]
    reasons = {"cut.wav": "truncated", "text.mp3": "not audio", "none.ogg": "empty", "nan.wav": "unreadable"}
    assert all(f"skipped: {folder / name}: {reason}" in error for name, reason in reasons.items())
    assert "4 skipped" in error
    assert "Traceback" not in error
    assert "3 recordings" in out
    for name in ("short", "silent"):
        content = json.loads((tmp_path / "out" / f"{name}.json").read_bytes())
        assert content == {"text": "", "segments": [], "language": "es"}


def test_standard_input(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(CLIP.read_bytes())))
    assert main([model, "-", "--out", str(tmp_path / "out"), "--format", "txt"]) == 0
    assert listing(tmp_path / "out") == ["stdin.txt"]


LIBRARY = "Library libcublas.so.12 is not found or cannot be loaded"


@pytest.mark.parametrize(("problem", "remedy"), [(LIBRARY, True), ("CUDA driver version is insufficient", False)])
def test_a_gpu_that_cannot_be_used_is_one_line(
    problem: str,
    remedy: bool,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No machine of ours has CTranslate2's libraries missing: its words stand for it."""
    real = faster_whisper.WhisperModel

    def opened(folder: str, device: str, **options: Any) -> faster_whisper.WhisperModel:
        if device == "cuda":
            raise RuntimeError(problem)
        return real(folder, device=device, **options)

    monkeypatch.setattr(ctranslate2, "get_cuda_device_count", lambda: 1)
    monkeypatch.setattr(faster_whisper, "WhisperModel", opened)
    soundfile.write(tmp_path / "a.wav", np.zeros(RATE), RATE)
    # float16 is the GPU's: a processor has none.
    assert main([model, str(tmp_path / "a.wav"), "--out", str(tmp_path / "out"), "--compute_type", "float16"]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "GPU" in line]
    assert problem in line
    assert ("pip install nvidia-cublas-cu12" in line) == remedy


def test_speech_is_found_again_in_the_recording() -> None:
    """Four spans: of the pauses between, 0.3 s is kept, or what there is."""
    spans = [(int(a * RATE), int(b * RATE)) for a, b in ((1, 4), (6, 8), (8.1, 20), (25, 50))]
    speech = Speech.of(np.arange(60 * RATE, dtype=np.float32), spans)
    assert speech.seconds == pytest.approx(3.3 + 2.1 + 12.2 + 25.3)
    assert speech.spans.ravel().tolist() == pytest.approx([0, 3, 3.3, 5.3, 5.4, 17.3, 17.6, 42.6])
    assert speech.waveform[int(5.4 * RATE)] == int(8.1 * RATE)
    assert speech.between(2.0, 4.3) == pytest.approx(2.0)
    assert np.allclose(speech.windows(0.0, speech.seconds, 30.0), [(0.0, 17.3), (17.6, 42.6)])
    assert np.allclose(speech.windows(1.0, 20.0, 10.0), [(1.0, 5.3), (5.4, 17.3), (17.6, 20.0)])
    words = [Word(2.5, 3.2, " a", 1.0), Word(3.1, 5.0, " b", 1.0), Word(20.0, 21.0, " c", 1.0)]
    restored = speech.restored(Segment(1, 0, 2.5, 21.0, " a b c", [], 0.0, 1.0, 0.0, words, 0.0))
    times = [(word.start, word.end) for word in restored.words or []]
    assert times == [(3.5, 4.0), (6.0, 7.7), (27.4, 28.4)]
    assert (restored.start, restored.end) == (3.5, 28.4), "from its first to its last word"
    words = [Word(2.5, 3.2, " a", 1.0), Word(3.1, 5.0, " b", 1.0), Word(5.0, 5.3, " c", 1.0)]
    parts = list(speech.split(Segment(1, 0, 2.5, 5.3, " a b c", [], 0.0, 1.0, 0.0, words, 0.0)))
    assert [(part.text, part.start, part.end) for part in parts] == [(" a", 3.5, 4.0), (" b c", 6.0, 8.0)]
    assert Speech.of(np.zeros(RATE, np.float32), []).windows(0.0, 0.0, 30.0) == []


@pytest.mark.parametrize(
    ("words", "compression_ratio", "avg_logprob", "heard_again"),
    [
        ([(1.0, 3.0), (3.5, 5.5), (6.0, 8.0)], 1.0, -0.3, []),
        ([(1.0, 3.0), (3.5, 5.5), (6.0, 8.0)], 2.5, -0.3, [8.0]),  # it repeats itself
        ([(1.0, 3.0), (3.5, 5.5), (6.0, 8.0)], 1.0, -1.1, [8.0]),  # the model doubts it
        ([(1.0, 3.0), (6.0, 8.0)], 1.0, -0.3, [8.0]),  # three seconds of speech between without a word
        ([(4.0, 6.0), (6.0, 8.0)], 1.0, -0.3, [8.0]),  # before
        ([(1.0, 3.0), (3.5, 5.0)], 1.0, -0.3, [3.0]),  # behind: that alone
        ([], 1.0, -0.3, [8.0]),
    ],
)
def test_what_was_heard_badly_or_left_out_is_heard_again(
    words: list[tuple[float, float]], compression_ratio: float, avg_logprob: float, heard_again: list[float]
) -> None:
    speech = Speech.of(np.zeros(12 * RATE, np.float32), [(RATE, 9 * RATE)])
    said = [Word(start, end, " a", 1.0) for start, end in words]
    judged = {"compression_ratio": compression_ratio, "avg_logprob": avg_logprob}
    segment: Any = SimpleNamespace(seek=0, start=1.0, words=said, **judged)
    options: Any = SimpleNamespace(compression_ratio_threshold=2.4, log_prob_threshold=-1.0)
    lengths: list[float] = []

    def again(pieces: list[tuple[float, float]]) -> list[Any]:
        lengths.extend(end - start for start, end in pieces)
        return []

    kept = list(_judged([[((0.0, 8.0), [segment])]], speech, options, again))
    assert lengths == heard_again
    assert len(kept) == (heard_again != [8.0])


@pytest.mark.parametrize("threshold", [None, 0.0])
def test_pieces_share_a_window_unless_it_is_heard_badly(
    model: str, threshold: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model doubts all that it writes; without a threshold nothing is heard badly."""
    recognizer = open_recognizer(model)
    windows = list[int]()
    encode = recognizer.model.encode

    def counting(features: Any) -> Any:
        windows.append(1 if features.ndim == 2 else len(features))
        return encode(features)

    monkeypatch.setattr(recognizer.model, "encode", counting)
    told = {"language": "es", "beam_size": 1, "max_new_tokens": 9, "word_timestamps": True, "temperature": 0.0}
    told |= {"log_prob_threshold": threshold, "compression_ratio_threshold": None, "no_speech_threshold": None}
    pieces = [(1.0, 3.0), (5.0, 8.0), (20.0, 24.0)]
    noise = np.random.default_rng(0).normal(0, 0.1, 30 * RATE).astype(np.float32)
    segments = list(_hear_again(recognizer, noise, 8, told, pieces))
    assert windows == [1] * (1 if threshold is None else 1 + len(pieces))
    assert segments
    for segment in segments if threshold is None else []:
        assert segment.words
        assert segment.text == "".join(word.word for word in segment.words)
        assert any(start <= segment.start <= segment.end <= end + 0.01 for start, end in pieces)


def test_the_bar_goes_on_between_batches(capsys: pytest.CaptureFixture[str]) -> None:
    with _progress(100.0) as done:
        time.sleep(0.2)
        done(10.0)
        done(5.0)  # words of an earlier window
        time.sleep(1.0)
    shown = [int(seconds) for seconds in re.findall(r"(\d+)/100 s of audio", capsys.readouterr().err)]
    assert shown[0] == 0
    assert 20 < shown[1] < 99, "at 50 s of audio a second, known only to be 10"
    assert shown[-1] == 10, "known"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent.wav"], ["absent.wav", "no such file"]),
        (["https://example.org/a.wav"], ["no such file"]),
        (["empty"], ["empty", "no audio", ".wav"]),
        (["a.wav", "--format", "srt,doc"], ["'doc'", "txt,srt,vtt,tsv,json"]),
        (["a.wav", "--batch_size", "-1"], ["--batch_size", "-1"]),
        (["a.wav", "--max_lines", "0"], ["--max_lines", "0"]),
        (["a.wav", "--language", "klingon"], ["klingon", "es", "auto"]),
        (["a.wav", "--compute_type", "int9"], ["--compute_type", "int9", "int8"]),
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
    soundfile.write(tmp_path / "a.wav", np.zeros(RATE), RATE)
    assert main([model, *arguments]) == 2
    error = one_error(capsys)
    assert all(word in error for word in words)


def test_segments_are_told_by_window_wherever_it_begins(model: str) -> None:
    """The pipeline's rounding puts 8.11 and 8.19 s into other frames than 811 and 819; else the rest would be lost."""
    windows = [(0.0, 0.2), (8.11, 8.15), (8.19, 8.4), (16.13, 16.3), (17.0, 17.2)]
    recognizer = open_recognizer(model)
    told = {"language": "es", "beam_size": 1, "max_new_tokens": 3, "word_timestamps": False}
    segments, _ = _at_once(recognizer, np.zeros(18 * RATE, np.float32), told, windows)
    found = list(_by_window(segments, windows))
    assert all(found)
    assert [window[0].start for window in found] == pytest.approx([start for start, _ in windows], abs=0.02)


@pytest.mark.slow
def test_a_model_that_was_tuned_on_sentences_alone_is_not_asked_for_times(model: str, tmp_path: Path) -> None:
    """It names its language, as no published one does; one that was trained with times says so."""
    load(model).save_pretrained(tmp_path / "tuned")
    (tmp_path / "run").mkdir()
    timed = load(model)
    timed.whisper.generation_config.tells_times = True
    timed.save_pretrained(tmp_path / "run" / "best")
    for source, tells_times in ((model, True), (str(tmp_path / "tuned"), False), (str(tmp_path / "run"), True)):
        recognizer = open_recognizer(source)
        again = open_recognizer(source)  # from what was kept
        assert recognizer.tells_times == again.tells_times == tells_times
        told = {"language": "es", "beam_size": 1, "max_new_tokens": 3}
        _, info = _at_once(recognizer, np.zeros(RATE, np.float32), told, [(0.0, 1.0)])
        assert info.transcription_options.without_timestamps == (not tells_times)
    for name in ("tuned", "run"):  # a checkpoint of a run is as the run's best model, and of none tells nothing
        (tmp_path / name / "checkpoints").mkdir()
        (tmp_path / name / "checkpoints" / "last.ckpt").touch()
        assert model_tells_times(str(tmp_path / name / "checkpoints" / "last.ckpt")) == (name == "run")


def test_no_window_is_heard_before_it_is_asked_for(model: str) -> None:
    """Else the progress bar would tell less than is done."""
    recognizer = open_recognizer(model)
    heard: list[list[Window]] = []

    def listen(windows: list[Window]) -> Any:
        heard.append(windows)
        told = {"language": "es", "beam_size": 1, "max_new_tokens": 3, "word_timestamps": False}
        return _at_once(recognizer, np.zeros(5 * RATE, np.float32), told, windows)

    windows = [(float(second), second + 0.5) for second in range(5)]
    segments, _ = listen(windows[:2])
    batches = _in_turn(segments, [windows[:2], windows[2:4], windows[4:]], listen)
    found = []
    for number in range(1, 4):
        found += next(batches)
        assert len(heard) == number
    assert [window for window, _ in found] == windows
    assert all(segments for _, segments in found)


def test_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "model"), str(CLIP)]) == 2
    assert "model.checkpoint: cannot load" in one_error(capsys)


def test_another_vocabulary_is_refused(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert MODEL.name
    assert main([str(published), str(CLIP)]) == 2
    error = one_error(capsys)
    assert "a vocabulary of" in error
    assert "predict" in error
