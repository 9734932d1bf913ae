"""Exports are read by their own programs, and these hear what our decode hears."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

from tests.command import export as main
from tests.conftest import MODEL, QUICKSTART, copy_corpus, one_error, quick_arguments
from tests.multilingual import multilingual_tokenizer, take_over, write_model
from whisper_lightning.cli import main as fit
from whisper_lightning.commands.export import report
from whisper_lightning.export.card import read_run
from whisper_lightning.export.check import Check
from whisper_lightning.export.hardwired import difference, token_bytes
from whisper_lightning.model.load import load
from whisper_lightning.model.module import WhisperModule
from whisper_lightning.scoring.edits import EditCounts
from whisper_lightning.scoring.intervals import Difference

CLIPS = ["--data", str(QUICKSTART / "test.csv")]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's model with random weights, as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("models") / "untrained"
    torch.manual_seed(0)
    WhisperModule(checkpoint=str(MODEL), random_weights=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps."""
    folder = tmp_path_factory.mktemp("runs")
    assert fit(quick_arguments(copy_corpus(folder / "corpus"), folder / "run")) == 0
    return folder / "run"


def table(output: str) -> list[list[str]]:
    """The cells of the printed table, row by row; a long path may take more rows."""
    rows = [line.strip("│ ").split("│") for line in output.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in row] for row in rows if row[0].strip()]


@pytest.mark.parametrize(("name", "client"), [("ggml", "whisper.cpp"), ("openai", "openai-whisper")])
def test_another_vocabulary_is_refused_by_name(
    name: str, client: str, untrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """These clients have the published vocabulary's ids built in; they would load the model and write nonsense."""
    assert main([str(untrained), str(tmp_path / "out"), "--formats", f"hf,ct2,{name}", *CLIPS]) == 2
    error = one_error(capsys)
    assert error.startswith(f"error: {name}: {client} assumes")
    assert "a vocabulary of 464 tokens" in error
    assert "hf and ct2" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--formats", "hf,onnx"], "onnx"),
        ([], "give --data"),
        (["--data", "no.csv"], "no.csv"),
        (["--data", "{tmp}/none.csv"], "no clip"),
        (["--data", "{tmp}/none.csv", "--formats", "ct2"], "{tmp}/ct2 exists already"),
    ],
)
def test_one_line_for_each_mistake(
    arguments: list[str], message: str, untrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "none.csv").write_text("audio\nmissing.wav\n", encoding="utf-8")
    (tmp_path / "ct2").mkdir()
    place = str(tmp_path)
    assert main([str(untrained), place, *(word.replace("{tmp}", place) for word in arguments)]) == 2
    assert message.replace("{tmp}/", f"{tmp_path}/").replace("/", "") in one_error(capsys).replace("/", "").replace(
        "\\", ""
    )


@pytest.mark.parametrize("name", ["hf", "ct2"])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    name: str, untrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource")  # not on Windows
    # What is imported first below would be compiled into a file cut at the limit, and stay broken for who comes next.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        status = main([str(untrained), str(tmp_path / "out"), "--formats", name, "--num_clips", "1", *CLIPS])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 2
    assert str(tmp_path / "out") in one_error(capsys)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_place_that_is_none(untrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main([str(untrained), str(tmp_path / "file" / "out"), "--num_clips", "1", *CLIPS]) == 2
    assert "cannot be written" in one_error(capsys)


def test_hf_and_ct2_hear_the_same(untrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--formats", "hf,ct2", "--quantization", "float32", "--num_clips", "6", *CLIPS]
    assert main([str(untrained), str(tmp_path / "out"), *arguments]) == 0
    rows = table(capsys.readouterr().out)
    assert [row[0] for row in rows] == ["hf fp32", "ct2 float32"]
    assert all(row[4:8] == ["6/6", "0.00 %", "0.00 [0.00, 0.00]", "agrees"] for row in rows)
    card = (tmp_path / "out" / "hf" / "README.md").read_text(encoding="utf-8")
    assert "Not measured" in card
    assert "model-index" not in card


def test_an_older_client_reads_the_hf_folder(untrained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([str(untrained), str(out), "--precision", "fp16", "--num_clips", "1", *CLIPS]) == 0
    folder = out / "hf"
    model = WhisperForConditionalGeneration.from_pretrained(folder)
    assert model.dtype == torch.float16
    assert model.generation_config.language == "es"
    assert model.generation_config.task == "transcribe"
    features = WhisperFeatureExtractor.from_dict(
        json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    )
    assert features.feature_size == 80
    # From these two alone, as transformers 4's slow tokenizer.
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("#version")
    old = WhisperTokenizer(vocab=vocab, merges=[tuple(line.split()) for line in lines[1:]])
    new = WhisperTokenizer.from_pretrained(folder)
    sentence = "enciende la luz del baño"
    assert old(sentence, add_special_tokens=False).input_ids == new(sentence, add_special_tokens=False).input_ids
    added = json.loads((folder / "added_tokens.json").read_text(encoding="utf-8"))
    assert vocab | added == new.get_vocab() == WhisperTokenizer.from_pretrained(untrained).get_vocab()
    assert json.loads((folder / "normalizer.json").read_text(encoding="utf-8"))["colour"] == "color"
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["pad_token"] == "<|endoftext|>"
    assert not {"is_local", "local_files_only", "backend"} & config.keys()
    assert "extra_special_tokens" not in config
    assert set(new.all_special_ids) == set(WhisperTokenizer.from_pretrained(untrained).all_special_ids)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("fp16", torch.float16)])
def test_the_file_holds_the_precision_that_is_asked(
    precision: str, dtype: torch.dtype, short_run: Path, tmp_path: Path
) -> None:
    """A checkpoint has weights that float16 has not."""
    last = short_run / "checkpoints" / "last.ckpt"
    assert main([str(last), str(tmp_path / "out"), "--precision", precision, "--num_clips", "1", *CLIPS]) == 0
    weights = load_file(tmp_path / "out" / "hf" / "model.safetensors")
    trained = torch.load(last, weights_only=True)["state_dict"]
    assert weights
    for name, weight in weights.items():
        assert weight.dtype == dtype
        assert torch.equal(weight, trained[f"whisper.{name}"].to(dtype)), name
    config = json.loads((tmp_path / "out" / "hf" / "config.json").read_text(encoding="utf-8"))
    assert config["dtype"] == str(dtype).removeprefix("torch.")


def test_the_card_tells_the_run(short_run: Path, tmp_path: Path) -> None:
    assert main([str(short_run), str(tmp_path / "out"), "--name", "whisper-mío", "--num_clips", "2"]) == 0
    path = tmp_path / "out" / "hf" / "README.md"
    text = path.read_text(encoding="utf-8")
    front = ModelCard(text).data.to_dict()  # type: ignore[no-untyped-call]
    assert front["language"] == ["es"]
    assert "base_model" not in front
    metrics = pd.read_csv(short_run / "metrics.csv")
    expected = {name: metrics[f"test/{name}"].dropna().iloc[-1] for name in ("wer", "wer_normalized", "cer")}
    found = [metric["value"] for metric in front["model-index"][0]["results"][0]["metrics"]]
    assert found == [pytest.approx(value, abs=0.005) for value in expected.values()]
    run = read_run(str(short_run))
    assert run is not None
    assert run.before is not None
    assert run.after is not None
    for score in (run.before, run.after):
        assert text.count(" | ".join(rate.write(" %") for rate in score.rates.values())) >= 2  # in both languages
    assert run.before.rates["wer"].value == pytest.approx(metrics["before/wer"].dropna().iloc[0])
    assert run.differences is not None
    expected_difference = run.after.rates["wer"].value - run.before.rates["wer"].value
    assert run.differences["wer"].value == pytest.approx(expected_difference)
    for unit in (" points", " puntos"):
        assert run.differences["wer"].write(unit) in text
    for word in ("24 utterances", "24 frases", "trained from random weights", "0.003, linear", "chosen on the test"):
        assert word in text, word
    assert str(tmp_path) not in text
    assert str(Path.home()) not in text


def test_the_card_of_a_checkpoint_claims_no_figures_of_the_best_model(short_run: Path) -> None:
    run = read_run(str(short_run / "checkpoints" / "last.ckpt"))
    assert run is not None
    assert run.after is None
    assert run.before is not None
    best = read_run(str(short_run / "best"))
    assert best is not None
    assert best.after is not None


def test_the_base_model_and_its_licence(short_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = yaml.safe_load((short_run / "config.yaml").read_text(encoding="utf-8"))
    config["model"] |= {"random_weights": False, "checkpoint": "openai/whisper-base"}
    (short_run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    assert main([str(short_run / "best"), str(out), "--num_clips", "1"]) == 0
    front = ModelCard((out / "hf" / "README.md").read_text(encoding="utf-8")).data.to_dict()  # type: ignore[no-untyped-call]
    assert front["base_model"] == "openai/whisper-base"
    assert front["license"] == "apache-2.0"


@pytest.mark.parametrize("base", ["/home/ana/modelos/mi-whisper", r"C:\Users\ana\mi-whisper", "../mi-whisper/"])
def test_the_card_has_no_path_of_a_machine_and_the_licence_that_is_given(
    base: str, short_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(short_run, run)
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    config["model"] |= {"random_weights": False, "checkpoint": base}
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    assert main([str(run), str(tmp_path / "out"), "--num_clips", "1"]) == 0
    assert "give --license" in capsys.readouterr().out
    card = (tmp_path / "out" / "hf" / "README.md").read_text(encoding="utf-8")
    assert "`mi-whisper`" in card
    assert base not in card.replace("`mi-whisper`", "")
    given = ["--license", "cc-by-4.0", "--base_model", "ana/mi-whisper"]
    assert main([str(run), str(tmp_path / "again"), "--num_clips", "1", *given]) == 0
    assert "give --license" not in capsys.readouterr().out
    front = ModelCard((tmp_path / "again" / "hf" / "README.md").read_text(encoding="utf-8")).data.to_dict()  # type: ignore[no-untyped-call]
    assert (front["base_model"], front["license"]) == ("ana/mi-whisper", "cc-by-4.0")


def check(number: int, rounds: bool, difference: Difference | None, changed: int = 1) -> Check:
    """A client that gave other texts for some of 100 clips."""
    texts = [(f"{i}.wav", "la luz", "la lus") for i in range(number)]
    words = EditCounts(hits=100 - changed, substitutions=changed)
    return Check("ct2 x", "faster-whisper", Path("out"), 1.0, 0.1, words, rounds, words, difference, texts, 100)


def test_a_mismatch_is_shown_and_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert report([check(1, False, Difference(0.0, -0.1, 0.1, 1.0))]) == 1
    captured = capsys.readouterr()
    assert "la lus" in captured.out
    assert "error: ct2 x" in captured.err
    assert report([check(30, False, None)]) == 1
    assert "20 more clips differ" in capsys.readouterr().out


def test_eight_bits_are_judged_by_the_references(capsys: pytest.CaptureFixture[str]) -> None:
    """A small Whisper guesses, so that texts change where neither is better."""
    for found, status in (
        (Difference(0.4, -0.3, 0.9, 0.3), 0),
        (Difference(0.4, -1.0, 1.8, 0.6), 0),
        (Difference(1.9, 0.2, 3.6, 0.02), 0),
        (Difference(2.4, 1.1, 3.6, 0.0), 1),
        (Difference(0.9, None, None, None), 0),
        (Difference(1.1, None, None, None), 1),
    ):
        assert report([check(18, True, found, changed=8)]) == status
        captured = capsys.readouterr()
        assert found.write() in captured.out
        assert ("undecided" in captured.out) == (found.low is not None and found.low <= 1 < (found.high or 0))
    assert [check(18, True, None, changed).verdict for changed in (8, 12)] == ["agrees", "DIFFERS"]


@pytest.mark.slow
def test_clips_are_compared_with_their_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the published vocabulary, so that the client is faster-whisper itself."""
    model = write_model(tmp_path / "model")
    formats = ["--formats", "ct2", "--quantization", "int8", "--num_clips", "6", *CLIPS]
    main([str(model), str(tmp_path / "out"), *formats])
    (row,) = table(capsys.readouterr().out)
    assert re.fullmatch(r"-?[\d.]+ \[-?[\d.]+, -?[\d.]+\]", row[6])


@pytest.mark.slow
def test_the_published_vocabulary_is_told_from_others(tmp_path: Path) -> None:
    model = load(str(write_model(tmp_path / "model")))
    assert difference(model) is None
    tokenizer = multilingual_tokenizer()
    sentence = "¿Dónde está la ñ? 日本語"
    tokens = token_bytes(tokenizer)
    ids = tokenizer(sentence, add_special_tokens=False).input_ids
    assert b"".join(tokens[i] for i in ids).decode("utf-8") == sentence
    path = tmp_path / "model" / "tokenizer.json"
    contents = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = contents["model"]["vocab"]
    vocabulary["Ġla"], vocabulary["Ġde"] = vocabulary["Ġde"], vocabulary["Ġla"]
    path.write_text(json.dumps(contents), encoding="utf-8")
    assert re.match(r"another vocabulary: token \d+ is b' (la|de)'", str(difference(load(str(path.parent)))))


@pytest.mark.slow
def test_all_clients_hear_what_we_hear(
    quickstart_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The quickstart with Whisper's real vocabulary and 30 s of context, in the formats of four clients."""
    model = write_model(tmp_path / "model")
    take_over(quickstart_run / "runs" / "quickstart" / "best", model)
    run = tmp_path / "run"
    arguments = [f"--model.checkpoint={model}", "--model.random_weights=false", f"--trainer.default_root_dir={run}"]
    arguments += ["--model.learning_rate=0.002", "--trainer.max_steps=300", "--model.max_tokens=24"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.val_check_interval=150"]
    assert fit(["fit", "--config=quickstart.yaml", *arguments, *quiet]) == 0
    capsys.readouterr()
    score = read_run(str(run)).after  # type: ignore[union-attr]
    assert score is not None
    assert score.rates["wer"].value < 15, "a degenerate model agrees with everybody"
    for precision, quantization in (("fp32", "float32"), ("fp16", "float16"), ("fp32", "int8")):
        out = tmp_path / quantization
        options = [
            "--formats",
            "hf,ct2,ggml,openai",
            "--precision",
            precision,
            "--quantization",
            quantization,
            "--num_clips",
            "25",
        ]
        code = main([str(run), str(out), *options])
        output = capsys.readouterr().out
        assert code == 0, output
        for row in table(output):
            assert row[4] == "25/25" or row[0] == "ct2 int8", output
    assert (out / "ct2" / "tokenizer.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_shape_of_large_v3(precision: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """128 mel bins and 100 languages: every client loads and runs it."""
    model = write_model(tmp_path / "model", num_mel_bins=128, num_languages=100, width=128)
    options = ["--formats", "hf,ct2,ggml,openai", "--precision", precision, "--num_clips", "3", *CLIPS]
    main([str(model), str(tmp_path / "out"), *options])
    rows = table(capsys.readouterr().out)
    assert [row[1] for row in rows] == ["transformers", "faster-whisper", "whisper.cpp", "openai-whisper"]
    config = json.loads((tmp_path / "out" / "hf" / "preprocessor_config.json").read_text(encoding="utf-8"))
    assert config["feature_size"] == 128
    assert np.isfinite([float(row[3]) for row in rows]).all()
