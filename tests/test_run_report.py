"""What `fit` leaves to look at: the same figures as in its last lines, every step, and never a failed run."""

import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import quick_arguments, read_rows
from tests.test_summary import figures, last_lines
from whisper_lightning.cli import main
from whisper_lightning.report import run as run_report

FILES = {"index.html", "results.csv", "results.json", "table.md", "table.tex", "rejected.csv"}


@pytest.fixture(autouse=True)
def everything_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def results(run: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((run / "report" / "results.json").read_text(encoding="utf-8"))
    return read


def said_of_the_report(caplog: pytest.LogCaptureFixture) -> str:
    (line,) = (each.getMessage() for each in caplog.records if each.name == "whisper_lightning.report.run")
    return line


def test_a_run_ends_with_its_report(corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tmp_path / "mi carrera"
    options = ["--model.learning_rate=0.01", "--trainer.max_steps=12", "--trainer.val_check_interval=6"]
    assert main([*quick_arguments(corpus, run), *options]) == 0
    assert said_of_the_report(caplog) == f"Report: {run / 'report' / 'index.html'}"
    assert {path.name for path in (run / "report").iterdir()} == FILES
    found, lines = results(run), last_lines(caplog)
    best = found["training"]["best_step"]
    assert f"(step {best})" in "".join(lines)
    assert [model["name"] for model in found["models"]] == [f"after (best: step {best})", "before"]
    for model, line in zip(found["models"], lines, strict=False):
        assert model["scores"]["orthographic"]["wer"][0] == pytest.approx(figures(line)[0], abs=0.006)
        assert model["decode"] == {"num_beams": 1, "never_written": []}
    of_words = {"scoring": "orthographic", "rate": "wer"}
    (difference,) = (each for each in found["differences"] if of_words.items() <= each.items())
    ends = (difference["value"], difference["low"], difference["high"])
    assert ends == pytest.approx(figures(lines[2])[:3], abs=0.006)
    assert all(line in found["training"]["remarks"] for line in lines[3:-2])
    for utterance, row in zip(found["utterances"], read_rows(corpus / "test.csv"), strict=True):
        assert Path(utterance["path"]) == corpus / row["audio"]
    steps = {name: [step for step, _ in points] for name, points in found["training"]["curves"].items()}
    assert steps.pop("train/loss") == list(range(1, 13))
    assert steps == {key: [0, 6, 12] for key in ("val/loss", "val/wer", "val/wer_normalized")}


def test_the_settings_that_are_not_usual_come_first(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(quick_arguments(corpus, run)) == 0
    training = results(run)["training"]
    assert training["config"] == (run / "config.yaml").read_text(encoding="utf-8")
    changed = {each["name"]: (each["value"], each["default"]) for each in training["changed"]}
    assert changed["trainer.max_steps"] == ("4", "100")
    assert changed["model.random_weights"] == ("true", "false")
    assert changed["data.train"] == (str(corpus / "train.csv"), "train.csv")
    options = yaml.safe_load(training["config"])
    assert options["model"]["weight_decay"] == 0.01
    assert not {"model.weight_decay", "report.enabled", "seed_everything"} & changed.keys()


def test_a_continued_run_has_its_whole_history(corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tmp_path / "run"
    assert main(quick_arguments(corpus, run)) == 0
    caplog.clear()
    assert main([*quick_arguments(corpus, run), "--trainer.max_steps=8", "--ckpt_path=last"]) == 0
    curves = results(run)["training"]["curves"]
    assert [step for step, _ in curves["train/loss"]] == list(range(1, 9))
    assert [step for step, _ in curves["val/wer"]] == [0, 2, 4, 6, 8]
    assert len(results(run)["models"]) == 2
    assert said_of_the_report(caplog).endswith("index.html")


def test_it_can_be_turned_off(corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tmp_path / "run"
    assert main([*quick_arguments(corpus, run), "--report.enabled=false"]) == 0
    assert not (run / "report").exists()
    assert "Report:" not in caplog.text


def test_without_a_figure_from_before_there_is_one_model(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main([*quick_arguments(corpus, run), "--trainer.num_sanity_val_steps=0"]) == 0
    found = results(run)
    assert len(found["models"]) == 1
    assert found["differences"] == []
    assert [step for step, _ in found["training"]["curves"]["val/wer"]] == [2, 4]


def test_a_first_validation_of_some_utterances_is_no_point_of_the_curve(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["--trainer.num_sanity_val_steps=1", "--data.eval_batch_size=3"]
    assert main([*quick_arguments(corpus, run), *options]) == 0
    assert [step for step, _ in results(run)["training"]["curves"]["val/wer"]] == [2, 4]
    assert len(results(run)["models"]) == 2


def test_utterances_held_out_of_the_training_csv_are_found(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main([*quick_arguments(corpus, run), "--data.val=0.25", "--data.batch_size=4"]) == 0
    found = results(run)
    assert found["data"]["source"] == f"{corpus / 'train.csv'} (held out: 0.25)"
    assert len(found["utterances"]) == 6
    rows = read_rows(corpus / "train.csv")
    assert all(Path(each["path"]) == corpus / rows[each["row"] - 2]["audio"] for each in found["utterances"])


def test_a_missing_package_is_one_line(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where there are numbers to be written out; the quickstart has none."""
    monkeypatch.setitem(sys.modules, "num2words", None)
    run = tmp_path / "without numbers"
    options = ["--model.learning_rate=1e-9"]
    assert main([*quick_arguments(corpus, run), *options]) == 0
    heard = "".join(row["hypothesis"] for row in read_rows(run / "transcripts" / "test.csv"))
    assert (run / "report" / "index.html").is_file() or re.search(r"\d", heard)
    path, run = corpus / "test.csv", tmp_path / "with numbers"
    path.write_text(path.read_text(encoding="utf-8").replace("cocina", "cocina 2"), encoding="utf-8")
    caplog.clear()
    assert main([*quick_arguments(corpus, run), *options]) == 0
    line = said_of_the_report(caplog)
    assert "pip install 'whisper-lightning[report]'" in line
    assert "\n" not in line
    assert (run / "best" / "model.safetensors").is_file()


def test_a_report_that_cannot_be_written_is_one_line(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "report").write_text("a file", encoding="utf-8")
    assert main(quick_arguments(corpus, run)) == 0
    assert "cannot be written" in said_of_the_report(caplog)
    assert "Traceback" not in caplog.text
    # Not for a mistake of ours either; that one is shown in full.
    caplog.clear()
    monkeypatch.setattr(run_report, "write_report", lambda *_, **__: 1 / 0)
    assert main(quick_arguments(corpus, tmp_path / "another")) == 0
    assert "ZeroDivisionError" in caplog.text


def test_a_quick_try_has_none(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main([*quick_arguments(corpus, run), "--trainer.fast_dev_run=true", "--model.warmup_steps=0"]) == 0
    assert not (run / "report").exists()
