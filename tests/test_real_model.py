"""The published openai/whisper-base on real Spanish speech: every tool takes it; it hears and learns as elsewhere."""

import csv
import importlib
import json
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig, WhisperForConditionalGeneration, WhisperProcessor

from tests.conftest import read_rows
from tests.test_model import loss_of, padded_labels, relative
from whisper_lightning.audio import load_audio
from whisper_lightning.data.loader import Batch, collate
from whisper_lightning.data.shards import Utterance
from whisper_lightning.export.check import FORMATS
from whisper_lightning.metrics import EditCounts, word_edits
from whisper_lightning.model.decode import greedy_decode
from whisper_lightning.model.module import WhisperModule
from whisper_lightning.model.tail import Encoded
from whisper_lightning.model.trained import open_model
from whisper_lightning.text import normalize

pytestmark = pytest.mark.real
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


def test_it_transcribes(real_model: Path, real_speech: Path, tmp_path: Path) -> None:
    row = max(read_rows(real_speech / "test.csv")[:30], key=lambda row: len(row["sentence"]))
    assert transcribe([str(real_model), str(real_speech / row["audio"]), "--out", str(tmp_path), "--format=txt"]) == 0
    (path,) = tmp_path.glob("*.txt")
    assert word_edits(normalize(row["sentence"]), normalize(path.read_text(encoding="utf-8"))).percent < 50


def test_same_tokens_as_generate(module: WhisperModule, real_model: Path, utterances: list[Utterance]) -> None:
    reference = WhisperForConditionalGeneration.from_pretrained(real_model, dtype=torch.float32).eval()
    features = module.log_mel(batch_of(module, utterances).waveforms)
    asked = {"language": "es", "task": "transcribe", "num_beams": 1, "suppress_tokens": []}
    expected = reference.generate(features, max_new_tokens=40, **asked).tolist()
    with torch.no_grad():
        states = module.whisper.model.encoder(features).last_hidden_state
    ours = greedy_decode(module.whisper, Encoded(states, None), module.encoder.prompt, 40)
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
