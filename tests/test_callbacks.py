"""What the callbacks choose and say: the best model, the worst utterances, the speed."""

import re
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from tests.conftest import QUICKSTART, quick_arguments
from whisper_lightning.cli import main
from whisper_lightning.data.generations import open_folder
from whisper_lightning.model.module import WhisperModule


class Spoil(Callback):
    """Breaks the model after its second step."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 2:
            assert isinstance(pl_module, WhisperModule)
            with torch.no_grad():
                pl_module.whisper.model.decoder.layer_norm.weight.neg_()


def test_best_is_the_best_and_the_worst_is_shown_first(
    quickstart_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    arguments = [
        *quick_arguments(QUICKSTART, run),
        f"--model.checkpoint={quickstart_run / 'runs' / 'quickstart' / 'best'}",
        "--model.random_weights=false",
        "--model.learning_rate=1e-5",
        "--evaluate.num_shown=1",
        "--trainer.callbacks+=tests.test_callbacks.Spoil",
    ]
    assert main(arguments) == 0
    metrics = pd.read_csv(run / "metrics.csv")
    wers = list(metrics["val/wer"].dropna())
    assert wers[-1] > 50 > wers[1]
    (tested,) = metrics["test/wer"].dropna()
    assert tested == pytest.approx(min(wers))
    spoiled = capsys.readouterr().out.split("val at step 4")[1]
    worst = pd.read_csv(run / "transcripts" / "step-000004.csv")
    errors = worst[["words_substitutions", "words_deletions", "words_insertions"]].sum(axis=1)
    first_row = re.findall(r"^│ +\d+ │ (.*?) +│", spoiled, re.MULTILINE)[0]
    assert first_row in set(worst.loc[errors == errors.max(), "reference"])
    assert errors.max() > errors.min()


SLEPT_SECONDS = 0.2


class Dawdle(Callback):
    """Lets the first step wait for its data, and the second compute, for a while. It comes before our callbacks."""

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        time.sleep(SLEPT_SECONDS if trainer.global_step == 0 else 0)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        time.sleep(SLEPT_SECONDS if trainer.global_step == 2 else 0)


def test_speed_and_waiting_are_measured(corpus: Path, tmp_path: Path) -> None:
    """Bounds that hold on any machine: the seconds slept are in the figures they belong to."""
    run = tmp_path / "run"
    arguments = [
        *quick_arguments(corpus, run),
        "--data.batch_size=24",
        "--trainer.val_check_interval=4",
        "--trainer.callbacks=tests.test_callbacks.Dawdle",  # one alone is no list
    ]
    assert main(arguments) == 0
    metrics = pd.read_csv(run / "metrics.csv").dropna(subset="train/loss")
    rates, waiting = metrics["speed/audio_seconds_per_second"], metrics["speed/data_wait_fraction"]
    assert len(set(rates)) == len(set(waiting)) == 4
    # One batch holds the whole corpus, so that each step has the same speech.
    elapsed = open_folder(corpus / "train.shards").info["total_seconds"] / rates
    assert (elapsed * waiting).iloc[0] >= SLEPT_SECONDS
    assert (elapsed * (1 - waiting)).iloc[1] >= SLEPT_SECONDS
    assert waiting.between(0, 1).all()
