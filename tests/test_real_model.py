"""The published openai/whisper-base on real Spanish speech: every tool takes it; it hears and learns as elsewhere."""

import csv
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from faster_whisper import BatchedInferencePipeline
from faster_whisper import WhisperModel as FasterWhisper
from transformers import GenerationConfig, WhisperForConditionalGeneration, WhisperProcessor

from tests.conftest import read_rows
from tests.test_model import loss_of, padded_labels, relative
from tests.test_subtitles import cues
from whisper_lightning.audio import load_audio
from whisper_lightning.data.loader import Batch, collate
from whisper_lightning.data.shards import Utterance
from whisper_lightning.export import ct2
from whisper_lightning.export.check import FORMATS
from whisper_lightning.metrics import EditCounts, word_edits
from whisper_lightning.model.decode import decode
from whisper_lightning.model.module import WhisperModule
from whisper_lightning.model.tail import Encoded
from whisper_lightning.model.trained import open_model
from whisper_lightning.text import normalize

pytestmark = pytest.mark.real
RATE = 16_000
export = importlib.import_module("tools.export").main
evaluate = importlib.import_module("tools.evaluate").main
transcribe = importlib.import_module("tools.transcribe").main


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
    return open_model(str(real_model))


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


def test_all_clients_hear_it(real_model: Path, few: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert export([str(real_model), str(out), "--formats", ",".join(FORMATS), *few, "--num_clips", "1"]) == 0
    assert {path.name for path in out.iterdir()} == set(FORMATS.values())
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


def music(num_samples: int) -> np.ndarray:
    """Chords, two a second, that fade."""
    seconds = np.arange(num_samples) / RATE
    chord = [np.sin(2 * np.pi * hertz * part * seconds) / part for hertz in (220, 277, 330) for part in (1, 2, 3)]
    samples = np.sum(chord, axis=0) * np.exp(-2.5 * (seconds % 0.5))
    scaled: np.ndarray = 0.15 * samples / np.abs(samples).max()
    return scaled


def stitch(speech: Path, path: Path) -> tuple[list[tuple[float, float]], list[tuple[float, float]], str]:
    """Write about two minutes of clips with silence, noise and music between; give where each is, and the text."""
    chance, length = np.random.default_rng(0), 0
    rows, parts, voices, others = read_rows(speech / "test.csv"), list[np.ndarray](), [], []
    chosen = [rows[int(i)] for i in chance.permutation(len(rows))[:24]]
    for number, row in enumerate(chosen):
        clip = load_audio(speech / row["audio"]).numpy()
        gaps = {3: music(8 * RATE), 7: chance.normal(0, 0.02, 8 * RATE)}
        gap = gaps.get(number % 8, np.zeros(int(chance.uniform(0.5, 2.5) * RATE)))
        voices.append((length / RATE, (length + len(clip)) / RATE))
        length += len(clip) + len(gap)
        if number % 8 in gaps:
            others.append((voices[-1][1], length / RATE))
        parts += [clip, gap]
    soundfile.write(path, np.concatenate(parts), RATE)
    return voices, others, " ".join(row["sentence"] for row in chosen)


def test_recordings_are_heard_as_well_as_faster_whisper_hears_them(
    real_model: Path, real_speech: Path, tmp_path: Path
) -> None:
    """Better, as it takes the batched pipeline's texts as they come; and nothing is shown over noise and music."""
    voices, others, text = stitch(real_speech, tmp_path / "long.flac")
    assert transcribe([str(real_model), str(tmp_path / "long.flac"), "--out", str(tmp_path), "--format=json,srt"]) == 0
    content = json.loads((tmp_path / "long.json").read_bytes())
    ours = word_edits(normalize(text), normalize(content["text"])).percent
    client = FasterWhisper(str(ct2.converted(str(real_model)).folder), device="cpu", compute_type="int8")
    segments, _ = BatchedInferencePipeline(client).transcribe(str(tmp_path / "long.flac"), language="es")
    theirs = word_edits(normalize(text), normalize("".join(segment.text for segment in segments))).percent
    assert ours <= theirs + 1
    assert ours < 25
    words = [word for segment in content["segments"] for word in segment["words"]]
    for start, end in others:
        assert [word for word in words if start + 0.5 < (word["start"] + word["end"]) / 2 < end - 0.5] == []
    shown = cues(tmp_path / "long.srt")
    for which in (0, 1):
        truth = np.array([voice[which] for voice in voices])
        assert np.median([np.abs(truth - cue[which]).min() for cue in shown]) < 0.4


def test_nothing_is_invented_where_nobody_speaks(real_model: Path, tmp_path: Path) -> None:
    chance, folder = np.random.default_rng(0), tmp_path / "in"
    folder.mkdir()
    clicks = np.zeros(10 * RATE)
    clicks[::RATE] = 0.9
    sounds = {"clicks": clicks, "music": music(10 * RATE), "noise": chance.normal(0, 0.05, 10 * RATE)}
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
    features = module.log_mel(batch_of(module, utterances).waveforms)
    asked = {"language": "es", "task": "transcribe", "num_beams": num_beams}
    expected = reference.generate(features, max_new_tokens=40, **asked).tolist()
    with torch.no_grad():
        states = module.whisper.model.encoder(features).last_hidden_state
    ours = decode(module.whisper, Encoded(states, None), module.encoder.prompt, 40, num_beams)
    special = {*module.encoder.prompt, module.encoder.end}
    assert ours == [[token for token in row if token not in special] for row in expected]
    counts = EditCounts()
    for each, row in zip(utterances, ours, strict=True):
        counts = counts.plus(word_edits(normalize(each.sentence), normalize(module.text(row))))
    assert counts.percent < 60


def test_loss_and_gradients_equal_transformers(real_model: Path, utterances: list[Utterance]) -> None:
    module = WhisperModule(checkpoint=str(real_model))
    reference = WhisperForConditionalGeneration.from_pretrained(real_model, dtype=torch.float32)
    batch = batch_of(module, utterances[:2])
    labels = padded_labels(module, batch)
    features = module.log_mel(batch.waveforms)
    expected = reference(input_features=features, decoder_input_ids=batch.decoder_input_ids, labels=labels).loss
    expected.backward()
    ours = loss_of(module, batch)
    ours.backward()  # type: ignore[no-untyped-call]
    assert float(ours) == pytest.approx(float(expected), rel=1e-5)
    gradients = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    found = {name: p.grad for name, p in module.whisper.named_parameters() if p.grad is not None}
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert relative(found[name], gradient) < 1e-5, name
