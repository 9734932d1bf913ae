import csv
import importlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from transformers import WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor

pytest.importorskip("espeakng_loader")

ROOT = Path(__file__).parent.parent
QUICKSTART = ROOT / "configs" / "quickstart"
SENTENCES = ["El niño enciende la luz.", "¿Dónde está la música?", "Mañana lloverá."]

Main = Callable[[list[str]], None]


@pytest.fixture
def main() -> Main:
    door: Main = importlib.import_module("tools.synthesize_corpus").main
    return door


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    path = tmp_path / "sentences.txt"
    path.write_text("\n\n".join(SENTENCES) + "\n", encoding="utf-8")
    return path


def read_rows(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_bytes(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("ending", ["flac", "opus"])
def test_corpus_does_not_depend_on_the_number_of_workers(
    main: Main, sentences: Path, tmp_path: Path, ending: str
) -> None:
    # breathy voices hold random noise, which espeak-ng seeds from the clock unless told otherwise
    flags = [
        "--sentences",
        str(sentences),
        "--num_utterances",
        "6",
        "--format",
        ending,
        "--voices",
        "es+f5",
        "es-419+m1",
    ]
    for num_workers in ("1", "2"):
        main([*flags, "--out", str(tmp_path / num_workers), "--num_workers", num_workers])
    one, two = read_bytes(tmp_path / "1"), read_bytes(tmp_path / "2")
    assert one == two
    assert sorted(one) == [*(f"audio/{index:06d}.{ending}" for index in range(6)), "train.csv"]


def test_csv_and_audio(main: Main, sentences: Path, tmp_path: Path) -> None:
    main(
        [
            "--sentences",
            str(sentences),
            "--out",
            str(tmp_path),
            "--num_utterances",
            "6",
            "--name",
            "test",
            "--seed",
            "7",
        ]
    )
    rows = read_rows(tmp_path / "test.csv")
    assert [row["audio"] for row in rows] == [f"audio/{index:06d}.flac" for index in range(6)]
    assert (
        sorted(row["sentence"] for row in rows[:3]) == sorted(row["sentence"] for row in rows[3:]) == sorted(SENTENCES)
    )
    assert all(row["voice"].startswith(("es+", "es-419+")) for row in rows)
    for row in rows:
        waveform, sample_rate = soundfile.read(tmp_path / row["audio"])
        assert sample_rate == 16_000
        assert waveform.ndim == 1
        assert 0.5 < len(waveform) / sample_rate < 4.0
        assert 0.05 < np.abs(waveform).max() <= 1.0


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("\n \n", [], "holds no sentence"),
        (None, [], "cannot be read"),
        ("hola\n", ["--voices", "es+nobody"], "'es\\+nobody' is unknown"),
        ("...\n", [], "gives no sound"),
        ("hola\n", ["--num_utterances", "0"], "make no corpus"),
    ],
)
def test_a_mistake_gives_one_clear_line(
    main: Main, tmp_path: Path, text: str | None, flags: list[str], message: str
) -> None:
    path = tmp_path / "sentences.txt"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as caught:
        main(["--sentences", str(path), "--out", str(tmp_path / "out"), *flags])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "train.csv").exists()


def test_quickstart_clips() -> None:
    train, test = read_rows(QUICKSTART / "train.csv"), read_rows(QUICKSTART / "test.csv")
    assert (len(train), len(test)) == (250, 100)
    assert not {row["sentence"] for row in train} & {row["sentence"] for row in test}
    words = {word for row in train for word in row["sentence"].split()}
    assert {word for row in test for word in row["sentence"].split()} <= words
    assert {row["voice"] for row in train} < {row["voice"] for row in test}
    files = [QUICKSTART / row["audio"] for row in train + test]
    assert len(set(files)) == 350
    for info in map(soundfile.info, files):
        assert (info.samplerate, info.channels) == (16_000, 1)
        assert info.duration < 3.8


def test_quickstart_model() -> None:
    processor = WhisperProcessor.from_pretrained(QUICKSTART / "model")
    tokenizer = processor.tokenizer
    tokenizer.set_prefix_tokens(language="es", task="transcribe", predict_timestamps=False)
    prompt = tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|es|>", "<|transcribe|>", "<|notimestamps|>"])
    for row in read_rows(QUICKSTART / "train.csv") + read_rows(QUICKSTART / "test.csv"):
        ids = tokenizer(row["sentence"]).input_ids
        assert ids[:4] == prompt
        assert ids.count(prompt[0]) == 1
        assert ids[-1] == tokenizer.eos_token_id
        assert len(ids) == 4 + len(row["sentence"].split()) + 1
        assert tokenizer.decode(ids, skip_special_tokens=True) == row["sentence"]
    config = WhisperConfig.from_pretrained(QUICKSTART / "model")
    assert config.vocab_size == len(tokenizer)
    assert config.decoder_start_token_id == prompt[0]
    assert processor.feature_extractor.nb_max_frames == 2 * config.max_source_positions
    WhisperForConditionalGeneration(config)
