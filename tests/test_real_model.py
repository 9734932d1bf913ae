"""The published openai/whisper-base on real Spanish speech: every tool takes it; it hears and learns as elsewhere."""

import csv
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import GenerationConfig, WhisperForConditionalGeneration, WhisperProcessor

from tests.command import evaluate, export, transcribe
from tests.conftest import read_rows
from tests.test_model import loss_of, padded_labels, relative
from tests.test_subtitles import cues
from whisper_lightning.audio.read import load_audio
from whisper_lightning.batch import Batch
from whisper_lightning.cli import main as run_cli
from whisper_lightning.data.format import Utterance
from whisper_lightning.data.loader import collate
from whisper_lightning.export import ct2
from whisper_lightning.export.formats import FORMATS
from whisper_lightning.model.decode import decode
from whisper_lightning.model.load import load
from whisper_lightning.model.module import WhisperModule
from whisper_lightning.model.tail import Encoded
from whisper_lightning.scoring.edits import EditCounts, word_edits
from whisper_lightning.scoring.normalize import normalize
from whisper_lightning.transcription.recognizer import open_recognizer
from whisper_lightning.transcription.subtitles import Word

pytestmark = pytest.mark.real
RATE = 16_000
bench = importlib.import_module("benchmarks.bench_transcribe")


@pytest.fixture
def few(real_speech: Path, tmp_path: Path) -> list[str]:
    """The options for three clips of the test set."""
    with (tmp_path / "few.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["audio", "sentence"], extrasaction="ignore")
        writer.writeheader()
        for row in read_rows(real_speech / "test.csv")[:3]:
            writer.writerow({**row, "audio": str(real_speech / row["audio"])})
    return ["--data", str(tmp_path / "few.csv")]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the user's."""
    monkeypatch.setattr(ct2, "HF_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def module(real_model: Path) -> WhisperModule:
    return load(str(real_model))


@pytest.fixture(scope="module")
def utterances(real_speech: Path) -> list[Utterance]:
    rows = read_rows(real_speech / "test.csv")
    rows = rows[:: len(rows) // 20][:20]  # of every voice
    return [
        Utterance(str(i), load_audio(real_speech / row["audio"], 30.0), row["sentence"], i, row["audio"], {})
        for i, row in enumerate(rows)
    ]


def batch_of(module: WhisperModule, utterances: list[Utterance]) -> Batch:
    return collate(utterances, 480_000, module.encoder)


@pytest.fixture(scope="module")
def tuned(real_model: Path, real_speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that fine-tuned it for a few steps."""
    run = tmp_path_factory.mktemp("tuned") / "run"
    options = [
        f"--trainer.default_root_dir={run}",
        f"--model.checkpoint={real_model}",
        f"--data.train={real_speech / 'val.csv'}",
        f"--data.val={real_speech / 'val.csv'}",
        "--trainer.max_steps=4",
        "--trainer.val_check_interval=4",
        "--trainer.num_sanity_val_steps=0",
        "--trainer.limit_val_batches=1",
        "--trainer.limit_test_batches=1",
        "--model.learning_rate=2e-5",
        "--model.warmup_steps=0",
        "--data.batch_size=2",
        "--data.eval_batch_size=2",
        "--data.num_workers=0",
    ]
    assert run_cli(["fit", *options]) == 0
    return run


@pytest.mark.parametrize("which", ["real_model", "tuned"])
def test_all_clients_hear_it(
    which: str, real_model: Path, few: list[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    out, source = tmp_path / "out", request.getfixturevalue(which)
    assert export([str(source), str(out), "--formats", ",".join(FORMATS), *few, "--num_clips", "1"]) == 0
    assert {path.name for path in out.iterdir()} == {each.file for each in FORMATS.values()}
    saved, published = (GenerationConfig.from_pretrained(path).to_dict() for path in (out / "hf", real_model))
    for name in ("lang_to_id", "task_to_id", "is_multilingual", "no_timestamps_token_id", "decoder_start_token_id"):
        assert saved[name] == published[name], name
    assert (
        WhisperProcessor.from_pretrained(out / "hf").feature_extractor.to_dict().items()
        >= {
            "feature_size": 80,
            "chunk_length": 30,
        }.items()
    )


def test_it_is_evaluated(real_model: Path, few: list[str], tmp_path: Path) -> None:
    assert evaluate([str(real_model), *few, "--report", str(tmp_path / "report"), "--num_workers", "0"]) == 0
    results = json.loads((tmp_path / "report" / "results.json").read_text(encoding="utf-8"))
    assert results["data"]["num_utterances"] == 3
    assert results["models"][0]["scores"]["normalized"]["wer"][0] < 60


@pytest.mark.parametrize("kind", bench.KINDS)
def test_recordings_are_heard_better_than_faster_whisper_hears_them(
    real_model: Path, real_speech: Path, tmp_path: Path, kind: str
) -> None:
    """And nothing is shown over noise and music; `bench_transcribe.py` has longer ones, and the time it takes."""
    recording = bench.stitch(real_speech / "test.csv", tmp_path / "long.flac", kind, minutes=1.5)
    assert transcribe([str(real_model), str(recording.path), "--out", str(tmp_path), "--format=json,srt"]) == 0
    content = json.loads((tmp_path / "long.json").read_bytes())
    words = [Word(each["start"], each["end"], each["word"]) for part in content["segments"] for each in part["words"]]
    errors, lengths = bench.errors_by_clip(recording, words)
    theirs, _ = bench.with_theirs(open_recognizer(str(real_model)), recording.path, batched=True)
    assert sum(errors) <= sum(bench.errors_by_clip(recording, theirs)[0])
    assert sum(errors) < 0.25 * sum(lengths)
    assert bench.over_sounds(recording, words) == 0
    shown = cues(tmp_path / "long.srt")
    for which in (0, 1):
        truth = np.array([clip[which] for clip in recording.clips])
        assert np.median([np.abs(truth - cue[which]).min() for cue in shown]) < 0.4


def test_nothing_is_invented_where_nobody_speaks(real_model: Path, tmp_path: Path) -> None:
    chance, folder = np.random.default_rng(0), tmp_path / "in"
    folder.mkdir()
    clicks = np.zeros(10 * RATE)
    clicks[::RATE] = 0.9
    sounds = {"clicks": clicks, "music": bench.music(10 * RATE), "noise": chance.normal(0, 0.05, 10 * RATE)}
    for name, samples in {**sounds, "short": chance.normal(0, 0.2, 480), "silence": np.zeros(10 * RATE)}.items():
        soundfile.write(folder / f"{name}.wav", samples, RATE)
    assert transcribe([str(real_model), str(folder), "--out", str(tmp_path / "out"), "--format=txt"]) == 0
    texts = {path.stem: path.read_text(encoding="utf-8") for path in (tmp_path / "out").glob("*.txt")}
    assert texts == dict.fromkeys(["clicks", "music", "noise", "short", "silence"], "")


@pytest.mark.parametrize("num_beams", [1, 5])
def test_same_tokens_as_generate(
    module: WhisperModule, real_model: Path, utterances: list[Utterance], num_beams: int
) -> None:
    reference = WhisperForConditionalGeneration.from_pretrained(real_model, dtype=torch.float32).eval()
    utterances = utterances if num_beams == 1 else utterances[::3]
    features = module.log_mel(batch_of(module, utterances).waveforms)
    asked = {"language": "es", "task": "transcribe", "num_beams": num_beams}
    expected = reference.generate(features, max_new_tokens=40, **asked).tolist()
    with torch.no_grad():
        states = module.whisper.model.encoder(features).last_hidden_state
    ours = decode(module.whisper, Encoded(states, None), module.prompts, 40, num_beams)
    special = {*module.encoder.prompt, module.encoder.end}
    assert ours == [[token for token in row if token not in special] for row in expected]
    counts = EditCounts()
    for each, row in zip(utterances, ours, strict=True):
        counts = counts.plus(word_edits(normalize(each.sentence), normalize(module.text(row))))
    assert counts.percent < 60


def test_loss_and_gradients_equal_transformers(
    real_model: Path, utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64: where labels differ in length, float32 rounds otherwise, which this model makes 1e-3 of."""
    module = WhisperModule(checkpoint=str(real_model))
    reference = WhisperForConditionalGeneration.from_pretrained(real_model, dtype=torch.float32)
    batch = batch_of(module, utterances[:2])
    labels = padded_labels(module, batch)
    features = module.log_mel(batch.waveforms)
    with torch.no_grad():
        given = {"decoder_input_ids": batch.decoder_input_ids, "labels": labels}
        assert float(loss_of(module, batch)) == pytest.approx(
            float(reference(input_features=features, **given).loss), rel=1e-5
        )
    module.whisper.double()
    reference.double()
    monkeypatch.setattr(module, "log_mel", lambda _: features.double())
    expected = reference(input_features=features.double(), **given).loss
    expected.backward()
    ours = loss_of(module, batch)
    ours.backward()  # type: ignore[no-untyped-call]
    assert float(ours) == pytest.approx(float(expected), rel=1e-12)
    gradients = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    found = {name: p.grad for name, p in module.whisper.named_parameters() if p.grad is not None}
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert relative(found[name], gradient) < 1e-9, name
