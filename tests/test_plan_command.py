"""`plan`: what a run will need, before anything is built, downloaded or loaded."""

import re
from pathlib import Path

import pytest

from tests.conftest import MODEL, copy_corpus, one_error
from whisper_lightning.cli import main
from whisper_lightning.commands.plan import SHAPES, _published
from whisper_lightning.model.rehearsal import Load, Mode, Rehearsal

OPENAI_MILLIONS = {"tiny": 39, "base": 74, "small": 244, "medium": 769, "large-v2": 1550, "large-v3-turbo": 809}


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy_corpus(tmp_path, 12, 4)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", OPENAI_MILLIONS)
def test_published_shapes(name: str) -> None:
    """As the table of OpenAI's README rounds them."""
    weights = Rehearsal(_published(name), Mode()).num_weights / 1e6
    assert weights == pytest.approx(OPENAI_MILLIONS[name], rel=0.035)


def test_a_plan(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The quickstart's own model, from a CSV; and nothing is made."""
    before = sorted(corpus.rglob("*"))
    assert main(["plan", f"--model.checkpoint={MODEL}", "--data.batch_size=5", "--card", "2", "--measure"]) == 0
    printed = capsys.readouterr().out
    assert "0.2 M weights" in printed
    assert "training, at most 5 x" in printed
    assert "validation, at most 32 x" in printed
    assert "a card of 2 GiB has 1.7 GiB for that: it fits" in printed
    assert "12 utterances" in printed
    assert "not counted" not in printed
    assert re.search(r"a step of 4 x \d\.\d s took \d+\.\d\d s \(cpu\): \d+\.\d min an epoch", printed)
    assert "GB of checkpoints" in printed
    assert sorted(corpus.rglob("*")) == before
    assert main(["plan", f"--model.checkpoint={MODEL}", "--data.batch_size=5", "--card", "0.01"]) == 0
    assert "it does NOT fit" in capsys.readouterr().out
    with (corpus / "train.csv").open("a", encoding="utf-8") as file:
        file.write("audio/absent.opus,No hay nada.\n")
    capped = ["--data.max_batch_seconds=20", "--data.pack=0.5", "--trainer.precision=bf16"]
    assert main(["plan", "--model.checkpoint=openai/whisper-tiny", *capped]) == 0
    printed = capsys.readouterr().out
    assert "1 rows are not counted: no such file" in printed
    assert "training, at most 1 x 30.0 s" in printed, "a window of 30 s is alone in a batch of 20 s"
    (rows,) = re.findall(r"validation, at most (\d+) x", printed)
    assert 1 < int(rows) < 32


def test_fewer_adapters_take_less() -> None:
    load = Load(4, 4.0, 20, 4)
    all_of_them, two = (
        Rehearsal(_published("tiny"), Mode(lora_rank=32, lora_targets=targets))
        for targets in (None, ["q_proj", "v_proj"])
    )
    assert two.num_trained < all_of_them.num_trained / 3
    assert two.training_bytes(load) < all_of_them.training_bytes(load)


@pytest.mark.slow
def test_the_largest_whisper_on_twelve_gib(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the shipped configuration has it, which has been measured on no card; whole weights would not fit."""
    shipped = ["--config=rtx3060.yaml", "--config=rtx3060_large_v3.yaml", "--card=12"]
    assert main(["plan", *shipped]) == 0
    printed = capsys.readouterr().out
    assert "openai/whisper-large-v3: 1601.2 M weights, 3.6 %" in printed
    assert "training, at most 16 x 30.0 s" in printed
    assert ": it fits" in printed
    assert main(["plan", *shipped, "--model.lora_rank=0", "--model.learning_rate=1e-5"]) == 0
    assert "it does NOT fit" in capsys.readouterr().out


@pytest.mark.slow
def test_a_table_of_what_fits(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in SHAPES.keys() - {"tiny", "medium"}:
        monkeypatch.delitem(SHAPES, name)
    told = ["--model.checkpoint=openai/whisper-tiny", "--trainer.precision=bf16-mixed", "--data.batch_size=4"]
    assert main(["plan", *told, "--card=7", "--table"]) == 0
    header, _, tiny, medium = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert header.startswith("| 7 GiB, bf16-mixed, 4 x ")
    assert tiny.count("4 at once") == 3
    assert medium.startswith("| medium | no: 1")
    assert "at once" in medium
    seconds = float(re.findall(r"4 x (\d+\.\d) s", header)[0])
    needed = Rehearsal(_published("tiny"), Mode()).training_bytes(Load(4, seconds, 60, 4)) / 2**30
    assert float(tiny.split(": ")[1].split()[0]) == pytest.approx(needed, abs=0.15)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--card", "0"], ["--card", "0"]),
        (["--data.train", "absent.csv"], ["data.train", "absent.csv"]),
        (["--data.train", "https://example.org/shards"], ["data.train", "remote"]),
        (["--data.batch_size", "0"], ["data.batch_size", "0"]),
        (["--model.checkpoint", "absent/folder"], ["model.checkpoint", "absent/folder"]),
        (["--model.lora_rnk", "4"], ["lora_rank"]),
    ],
)
def test_mistakes(corpus: Path, arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *arguments]) == 2
    error = one_error(capsys)
    assert all(word in error for word in words)
