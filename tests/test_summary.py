"""How a run ends: validated, with a model, and with figures of one set in one decode."""

import logging
import re
from pathlib import Path

import jiwer
import pandas as pd
import pytest
import torch

from tests.conftest import copy_corpus, one_error, quick_arguments
from whisper_lightning.cli import main


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False)


def logged(run: Path, name: str) -> list[float]:
    """The values of one column of metrics.csv."""
    return list(pd.read_csv(run / "metrics.csv")[name].dropna())


def wer(table: pd.DataFrame) -> float:
    return 100 * float(jiwer.wer(list(table["reference"]), list(table["hypothesis"])))


@pytest.fixture(autouse=True)
def everything_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def last_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    (said,) = (record.getMessage() for record in caplog.records if record.name == "whisper_lightning.commands.summary")
    return said.strip().splitlines()


def figures(line: str) -> list[float]:
    return [float(figure) for figure in re.findall(r"[-+]?\d+\.\d+", line)]


def check_the_lines(lines: list[str], run: Path) -> None:
    """The printed figures, recomputed from the two tables."""
    before, after = (read(run / "transcripts" / f"{name}.csv") for name in ("before", "test"))
    assert list(before["key"]) == list(after["key"])
    assert list(before["reference"]) == list(after["reference"])
    assert f"on {len(after)} utterances of" in lines[0]
    assert figures(lines[0])[0] == pytest.approx(wer(after), abs=0.005)
    assert figures(lines[1])[0] == pytest.approx(wer(before), abs=0.005)
    difference, low, high = figures(lines[2])[:3]
    assert difference == pytest.approx(wer(after) - wer(before), abs=0.006)
    draws = [after.sample(len(after), replace=True, random_state=i).index for i in range(300)]
    resampled = pd.Series([wer(after.loc[draw]) - wer(before.loc[draw]) for draw in draws])
    spread = resampled.std()
    assert (low, high) == pytest.approx(tuple(resampled.quantile([0.025, 0.975])), abs=0.4 * spread + 0.01)
    assert logged(run, "before/wer") == [pytest.approx(wer(before))]
    assert logged(run, "difference/wer") == [pytest.approx(wer(after) - wer(before))]


@pytest.mark.parametrize("test", ["the same as val", "another"])
def test_before_and_after_are_of_one_set_in_one_decode(
    test: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus, run = copy_corpus(tmp_path / "corpus", 32, 12), tmp_path / "run"
    options = ["--trainer.max_steps=36", "--trainer.val_check_interval=12", "--model.learning_rate=0.005"]
    if test == "another":
        options += [f"--data.val={corpus / 'train.csv'}", f"--data.test={corpus / 'test.csv'}"]
    assert main([*quick_arguments(corpus, run), *options]) == 0
    lines = last_lines(caplog)
    check_the_lines(lines, run)
    assert figures(lines[2])[0] != 0, "the model has learned, or the test says nothing"
    assert ("chosen on these same utterances" in "".join(lines)) == (test != "another")
    assert len(read(run / "transcripts" / "before.csv")) == 12
    assert len(read(run / "transcripts" / "step-000012.csv")) == (32 if test == "another" else 12)


def test_before_is_decoded_whole_where_the_first_validation_was_cut_short(corpus: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(quick_arguments(corpus, whole)) == 0
    options = ["--trainer.num_sanity_val_steps=1", "--data.eval_batch_size=3"]
    assert main([*quick_arguments(corpus, cut), *options]) == 0
    tables = [read(run / "transcripts" / "before.csv") for run in (whole, cut)]
    assert tables[0].equals(tables[1])


def test_validation_is_decoded_like_the_test(quickstart_run: Path, corpus: Path, tmp_path: Path) -> None:
    """Both hear all of the model's seconds: a published Whisper that hears less repeats itself."""
    best = quickstart_run / "runs" / "quickstart" / "best"
    options = [f"--model.checkpoint={best}", "--model.random_weights=false", "--model.max_tokens=60"]
    run = tmp_path / "run"
    assert main([*quick_arguments(corpus, run), *options, "--model.learning_rate=1e-12"]) == 0
    tables = [read(run / "transcripts" / f"{name}.csv") for name in ("step-000000", "test")]
    assert list(tables[0]["hypothesis"]) == list(tables[1]["hypothesis"])
    # The test is of the float16 file.
    assert logged(run, "val/loss")[0] == pytest.approx(logged(run, "test/loss")[0], rel=1e-3)


def test_a_model_that_does_not_get_better_stays_the_best(
    quickstart_run: Path, corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start, run = quickstart_run / "runs" / "quickstart" / "best", tmp_path / "run"
    options = [f"--model.checkpoint={start}", "--model.random_weights=false", "--model.learning_rate=1"]
    assert main([*quick_arguments(corpus, run), *options]) == 0
    lines = last_lines(caplog)
    assert "Best model (step 0)" in "".join(lines)
    assert "No step was better" in "".join(lines)
    assert (run / "best" / "model.safetensors").read_bytes() == (start / "model.safetensors").read_bytes()
    assert logged(run, "best/step") == [0]


@pytest.mark.parametrize(
    ("options", "last"),
    [
        (["--trainer.val_check_interval=50"], 4),
        (["--trainer.max_steps=5"], 5),
        (
            ["--trainer.max_epochs=1", "--trainer.max_steps=-1", "--trainer.val_check_interval=50"],
            4,
        ),
        (["--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=50", "--trainer.max_steps=3"], 3),
        (["--trainer.val_check_interval=0.5"], 4),
        (["--trainer.log_every_n_steps=0"], 4),
    ],
)
def test_every_run_ends_with_a_validation_of_its_last_step_and_a_model(
    options: list[str], last: int, corpus: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert main([*quick_arguments(corpus, run), *options]) == 0
    assert (run / "transcripts" / f"step-{last:06d}.csv").is_file()
    assert (run / "best" / "model.safetensors").is_file()
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == last


def without_steps(arguments: list[str]) -> list[str]:
    return [each for each in arguments if "max_steps" not in each]


@pytest.mark.parametrize("configuration", ["quickstart.yaml", "base.yaml", "rtx3060.yaml"])
def test_epochs_alone_give_the_schedule_its_steps(configuration: str, corpus: Path, tmp_path: Path) -> None:
    """24 utterances, 4 batches, 2 in a step: 2 steps in an epoch, whatever the files say."""
    run = tmp_path / "run"
    arguments = [*without_steps(quick_arguments(corpus, run)), "--trainer.max_epochs=3", "--data.num_workers=0"]
    arguments += ["--trainer.accumulate_grad_batches=2", "--trainer.accelerator=cpu", "--trainer.precision=32-true"]
    arguments += ["--model.checkpoint=quickstart/model", "--model.random_weights=true", "--model.learning_rate=0.003"]
    arguments += ["--wandb.enabled=false", "--model.max_tokens=8", "--data.pack=0", "--data.timestamps=0"]
    arguments[1] = f"--config={configuration}"
    assert main(arguments) == 0
    assert logged(run, "train/learning_rate") == pytest.approx(
        [0.003 * factor for factor in (1, 1, 0.8, 0.6, 0.4, 0.2)]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--trainer.max_epochs=3", "--model.warmup_steps=12"],
            "model.warmup_steps: 12 is not below the run's 12 steps",
        ),
        (["--trainer.max_steps=1"], "try 0"),
        (["--trainer.limit_val_batches=0"], "limit_val_batches: 0"),
        (["--trainer.limit_train_batches=0"], "limit_train_batches: 0"),
        (["--trainer.overfit_batches=1"], "--trainer.limit_train_batches 1"),
        (["--trainer.barebones=true"], "--trainer.fast_dev_run true"),
        (["--trainer.val_check_interval=00:00:01:00"], "share of an epoch"),
        (
            ["--trainer.max_steps=9", "--trainer.check_val_every_n_epoch=1", "--trainer.val_check_interval=7"],
            "an epoch has 4",
        ),
        (["--trainer.max_epochs=0"], "max_epochs: 0"),
    ],
)
def test_a_run_that_would_end_with_nothing_is_refused(
    options: list[str], message: str, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*without_steps(quick_arguments(corpus, tmp_path / "run")), *options]) == 2
    assert message in one_error(capsys)


@pytest.mark.real
def test_the_published_whisper_is_measured_before_and_after(
    real_model: Path, real_speech: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A few short real clips, two steps: the printed figures are those of the two tables."""
    for name, number in (("train", 4), ("test", 5)):
        rows = pd.read_csv(real_speech / f"{name}.csv", keep_default_na=False)
        rows = rows[[len(sentence.split()) >= 5 for sentence in rows.iloc[:, 1]]]
        paths = [real_speech / audio for audio in rows.iloc[:, 0]]
        rows = rows.assign(size=[path.stat().st_size for path in paths]).sort_values("size").head(number)
        rows = pd.DataFrame({"audio": [real_speech / audio for audio in rows.iloc[:, 0]], "sentence": rows.iloc[:, 1]})
        rows.to_csv(tmp_path / f"{name}.csv", index=False, encoding="utf-8")
    run = tmp_path / "run"
    options = [f"--model.checkpoint={real_model}", "--trainer.precision=32-true", "--wandb.enabled=false"]
    options += [f"--data.train={tmp_path / 'train.csv'}", f"--data.val={tmp_path / 'test.csv'}", "--data.num_workers=0"]
    options += ["--trainer.max_steps=2", "--model.warmup_steps=1", "--trainer.val_check_interval=2"]
    options += ["--data.batch_size=2", f"--trainer.default_root_dir={run}"]
    assert main(["fit", "--config=rtx3060.yaml", "--trainer.accelerator=cpu", *options]) == 0
    check_the_lines(last_lines(caplog), run)
    assert wer(read(run / "transcripts" / "before.csv")) < 100
