"""Runs that translate are scored as translations too."""

import csv
import importlib.util
import sys
from pathlib import Path

import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from tests.conftest import copy_corpus, one_error, quick_arguments, read_rows
from whisper_lightning.cli import main
from whisper_lightning.scoring.translation import score_translations


def test_scores_are_sacrebleu_s() -> None:
    references = ["the cat sat on the mat", "turn on the light in the kitchen", "good afternoon everybody"]
    assert score_translations(references, references) == pytest.approx({"bleu": 100, "chrf": 100})
    hypotheses = ["the cat sat on a mat", "turn off the light in the kitchen", "good evening"]
    expected = [metric.corpus_score(hypotheses, [references]).score for metric in (BLEU(), CHRF())]
    assert list(score_translations(hypotheses, references).values()) == pytest.approx(expected)
    assert 0 < expected[0] < expected[1] < 100


def test_a_run_that_translates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the curves of each validation and in the last lines; a run that transcribes has none of it."""
    corpus = copy_corpus(tmp_path / "corpus", 8, 4)
    options = ["--trainer.logger=true", "--data.guard_windows=0"]
    assert main([*quick_arguments(corpus, tmp_path / "run"), "--model.task=translate", *options]) == 0
    rows = read_rows(tmp_path / "run" / "metrics.csv")
    assert sum(bool(row["val/bleu"]) for row in rows) == 3
    (last,) = (row for row in rows if row["test/bleu"])
    with (tmp_path / "run" / "transcripts" / "test.csv").open(encoding="utf-8", newline="") as file:
        tested = list(csv.DictReader(file))
    hypotheses, references = ([row[name] for row in tested] for name in ("hypothesis", "reference"))
    assert float(last["test/bleu"]) == pytest.approx(BLEU().corpus_score(hypotheses, [references]).score)
    assert float(last["test/chrf"]) == pytest.approx(CHRF().corpus_score(hypotheses, [references]).score)
    assert (
        f"\nBLEU {float(last['test/bleu']):.1f}, chrF {float(last['test/chrf']):.1f} (before: BLEU "
        in capsys.readouterr().out
    )


def test_without_sacrebleu_a_run_that_translates_does_not_begin(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "sacrebleu")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *given: None if name == "sacrebleu" else find(name))
    assert main([*quick_arguments(corpus, tmp_path / "run"), "--model.task=translate"]) == 2
    assert "pip install 'whisper-lightning[translate]'" in one_error(capsys)
    assert not (tmp_path / "run").exists()
