"""Runs that translate are scored as translations too."""

import importlib.util
import logging
import sys
from pathlib import Path

import pandas as pd
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from tests.conftest import copy_corpus, one_error, quick_arguments, read_rows
from whisper_lightning.cli import main
from whisper_lightning.scoring.translation import score_translations
from whisper_lightning.scoring.utterance import read_transcripts


def test_scores_are_sacrebleu_s() -> None:
    references = ["the cat sat on the mat", "turn on the light in the kitchen", "good afternoon everybody"]
    assert score_translations(references, references) == pytest.approx({"bleu": 100, "chrf": 100})
    hypotheses = ["the cat sat on a mat", "turn off the light in the kitchen", "good evening"]
    expected = [metric.corpus_score(hypotheses, [references]).score for metric in (BLEU(), CHRF())]
    assert list(score_translations(hypotheses, references).values()) == pytest.approx(expected)
    assert 0 < expected[0] < expected[1] < 100


def test_a_run_that_translates(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the curves of each validation and in the last lines; it learns the half of what it is tested on."""
    caplog.set_level(logging.INFO)
    corpus = copy_corpus(tmp_path / "corpus", 8, 4)
    for name, sentence in (("train", "turn on the light"), ("test", "turn on the light in the kitchen")):
        table = pd.read_csv(corpus / f"{name}.csv").assign(sentence=sentence)
        table.to_csv(corpus / f"{name}.csv", index=False, encoding="utf-8")
    options = ["--trainer.logger=true", "--data.guard_windows=0", "--model.task=translate", "--trainer.max_steps=40"]
    options += ["--trainer.val_check_interval=20"]
    assert main([*quick_arguments(corpus, tmp_path / "run"), *options]) == 0
    rows = read_rows(tmp_path / "run" / "metrics.csv")
    assert sum(bool(row["val/bleu"]) for row in rows) == 3
    (last,) = (row for row in rows if row["test/bleu"])
    tested, before = (read_transcripts(tmp_path / "run" / "transcripts" / f"{name}.csv") for name in ("test", "before"))
    hypotheses, references = (tested[name].tolist() for name in ("hypothesis", "reference"))
    assert float(last["test/bleu"]) == pytest.approx(BLEU().corpus_score(hypotheses, [references]).score)
    assert float(last["test/chrf"]) == pytest.approx(CHRF().corpus_score(hypotheses, [references]).score)
    assert 10 < float(last["test/chrf"]) < 100
    was = score_translations(before["hypothesis"].tolist(), references)
    scores = [
        f"BLEU {bleu:.1f}, chrF {chrf:.1f}"
        for bleu, chrf in ((float(last["test/bleu"]), float(last["test/chrf"])), (was["bleu"], was["chrf"]))
    ]
    assert f"\n{scores[0]} (before: {scores[1]})" in caplog.text


def test_without_sacrebleu_a_run_that_translates_does_not_begin(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "sacrebleu")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *given: None if name == "sacrebleu" else find(name))
    assert main([*quick_arguments(corpus, tmp_path / "run"), "--model.task=translate"]) == 2
    assert "pip install 'whisper-lightning[translate]'" in one_error(capsys)
    assert not (tmp_path / "run").exists()
