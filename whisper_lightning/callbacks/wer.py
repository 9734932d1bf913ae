"""Decode, score and show: WER of each validation, tables of transcripts, CSV files of both."""

from __future__ import annotations

import io
import logging
import random
import sys
from functools import reduce
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import wandb
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from whisper_lightning.audio.constants import SAMPLE_RATE_HZ
from whisper_lightning.batch import Decoded
from whisper_lightning.callbacks.checkpoint import ExactResume
from whisper_lightning.scoring.edits import EditCounts
from whisper_lightning.scoring.utterance import ScoredUtterance, score, write_transcripts
from whisper_lightning.terminal import show

logger = logging.getLogger(__name__)


class EvaluateWER(Callback):
    """Scores each validation and test epoch over the whole corpus, and writes predictions.

    Counts are summed over utterances and ranks and divided once. What the run is to better is kept in
    `transcripts/before.csv`: the test utterances as the model hears them that the run starts from. Where the
    validation before the first step hears exactly these, it is that; else they are decoded once more, before the
    first step. `trainer.num_sanity_val_steps: 0` leaves both out.

    Args:
        num_shown: Worst and as many random pairs that are shown on the terminal.

    Attributes:
        latest: Metrics of the last epoch scored.
    """

    def __init__(self, num_shown: int = 4) -> None:
        self.num_shown = num_shown
        self.latest: dict[str, float] = {}
        self._scored: list[ScoredUtterance] = []
        self._predicted: list[tuple[str, str, str]] = []
        self._loss_sum, self._num_tokens = 0.0, 0

    def _start(self, *_: Any) -> None:
        self._scored, self._predicted = [], []
        self._loss_sum, self._num_tokens = 0.0, 0

    on_validation_epoch_start = _start  # type: ignore[assignment]
    on_test_epoch_start = _start  # type: ignore[assignment]
    on_predict_epoch_start = _start  # type: ignore[assignment]

    def _collect(self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, *_: Any) -> None:
        assert isinstance(outputs, Decoded)
        self._loss_sum += float(outputs.loss_sum)
        self._num_tokens += outputs.num_tokens
        columns = zip(batch.keys, batch.audio, batch.sentences, outputs.hypotheses, strict=True)
        self._scored += [score(*row) for row in columns]

    on_validation_batch_end = _collect  # type: ignore[assignment]
    on_test_batch_end = _collect  # type: ignore[assignment]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score, log, show, write."""
        metrics = self._finish(trainer, pl_module, "val", f"step-{trainer.global_step:06d}")
        if trainer.sanity_checking and _hears_the_test(trainer):
            self._keep(trainer, "before")
            metrics |= {name.replace("val/", "before/"): value for name, value in metrics.items()}
        _log(trainer, metrics)
        # Not through Lightning: it logs nothing of a sanity check, and only after the hook that saves a checkpoint.
        pl_module.log_dict(metrics, logger=False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decode the test utterances with the model that the run starts from, unless the sanity check has done it."""
        if trainer.global_step or trainer.num_sanity_val_steps == 0 or _hears_the_test(trainer):
            return
        self._start()
        data = trainer.datamodule  # type: ignore[attr-defined]
        loader = data.val_dataloader() if data.test_is_val else data.test_dataloader()
        limit = trainer.limit_test_batches
        number = min(len(loader), limit) if isinstance(limit, int) else int(limit * len(loader))
        modes = [(module, module.training) for module in pl_module.modules()]
        pl_module.eval()
        resume = next((c for c in trainer.callbacks if isinstance(c, ExactResume)), None)  # type: ignore[attr-defined]
        quiet = not trainer.is_global_zero or trainer.progress_bar_callback is None
        with torch.no_grad():
            for i, batch in enumerate(tqdm(islice(loader, number), "before training", number, disable=quiet)):
                if resume is not None:
                    resume.leave_before_the_first_step()
                batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
                self._collect(trainer, pl_module, trainer.strategy.test_step(batch, i), batch)
        for module, training in modes:
            module.training = training
        _log(trainer, self._finish(trainer, pl_module, "before", "before"))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score, log, show, write."""
        metrics = self._finish(trainer, pl_module, "test", "test")
        _log(trainer, metrics)
        pl_module.log_dict(metrics, logger=False)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Collect transcripts."""
        self._predicted += zip(batch.keys, batch.audio, outputs.hypotheses, strict=True)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write predictions.csv into the run's folder."""
        rows = sorted(_gather(trainer, self._predicted))
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / "predictions.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame(rows, columns=["key", "audio", "transcript"]).to_csv(path, index=False, encoding="utf-8")
            logger.info("%d transcripts, decoded at full context: %s", len(rows), path)

    def _finish(self, trainer: Trainer, module: LightningModule, stage: str, name: str) -> dict[str, float]:
        """Bring the ranks together and return the metrics, the same on every rank."""
        rows = self._scored = sorted(_gather(trainer, self._scored), key=lambda row: row.key)
        sums = torch.tensor(_gather(trainer, [(self._loss_sum, self._num_tokens)]), dtype=torch.float64).sum(0)
        words = reduce(EditCounts.plus, (row.words for row in rows), EditCounts())
        normalized = reduce(EditCounts.plus, (row.normalized_words for row in rows), EditCounts())
        characters = reduce(EditCounts.plus, (row.characters for row in rows), EditCounts())
        self.latest = {
            f"{stage}/loss": float(sums[0] / sums[1]),
            f"{stage}/wer": words.percent,
            f"{stage}/wer_normalized": normalized.percent,
            f"{stage}/cer": characters.percent,
            f"{stage}/substitutions": float(words.substitutions),
            f"{stage}/deletions": float(words.deletions),
            f"{stage}/insertions": float(words.insertions),
        }
        if trainer.is_global_zero:
            title = f"{stage} at step {trainer.global_step}: WER {words.percent:.2f} %, decoded at full context"
            module.print(_render(title, _choose(rows, self.num_shown)))
            self._keep(trainer, name)
            for each in trainer.loggers:
                if isinstance(each, WandbLogger):
                    data = [[r.key, r.reference, r.hypothesis, r.words.percent] for r in rows[:1000]]
                    each.log_table(f"{stage}/transcripts", ["key", "reference", "hypothesis", "wer"], data)
                    _log_audio(trainer, each, stage, _choose(rows, self.num_shown))
        return dict(self.latest)

    def _keep(self, trainer: Trainer, name: str) -> None:
        """Write the rows of the epoch, which `_finish` has gathered."""
        if trainer.is_global_zero:
            write_transcripts(self._scored, Path(trainer.default_root_dir) / "transcripts" / f"{name}.csv")


def _hears_the_test(trainer: Trainer) -> bool:
    """Say whether the validation before the first step decodes what the test at the end will decode."""
    same = trainer.limit_val_batches == trainer.limit_test_batches and trainer.num_sanity_val_steps == float("inf")
    return same and trainer.datamodule.test_is_val  # type: ignore[attr-defined]


def _log(trainer: Trainer, metrics: dict[str, float]) -> None:
    for each in trainer.loggers:
        each.log_metrics(metrics, step=trainer.global_step)


def _log_audio(trainer: Trainer, logger: WandbLogger, stage: str, rows: list[ScoredUtterance]) -> None:
    """Add what is shown on the terminal to W&B, to be listened to; read from the shards once more, a few clips."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    split = data.splits["val" if stage == "val" or "test" not in data.splits else "test"]
    table = []
    for row in rows:
        # The key is the number of the row in the CSV, or in the tars; few clips, so they are looked for one by one.
        position = next(i for i in split.members.tolist() if split.index.read_text(i).key == row.key)
        audio = wandb.Audio(split.index.read(position).waveform.numpy(), sample_rate=SAMPLE_RATE_HZ)
        table.append([row.key, audio, row.reference, row.hypothesis, row.words.percent])
    logger.log_table(f"{stage}/shown", ["key", "audio", "reference", "hypothesis", "wer"], table)


def _gather(trainer: Trainer, rows: list[Any]) -> list[Any]:
    """Join the rows of all ranks."""
    if trainer.world_size == 1:
        return rows
    gathered: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(gathered, rows)
    return [row for rank in gathered for row in rank]


def _choose(rows: list[ScoredUtterance], number: int) -> list[ScoredUtterance]:
    """Return the worst utterances and as many others; the same others each time, so that progress shows."""
    worst = sorted(rows, key=lambda row: -row.words.errors)[:number]
    rest = [row for row in rows if row not in worst]
    return worst + random.Random(0).sample(rest, min(number, len(rest)))


def _render(title: str, rows: list[ScoredUtterance]) -> str:
    table = Table(title=title, title_justify="left", show_lines=False)
    table.add_column("WER %", justify="right")
    table.add_column("reference")
    table.add_column("hypothesis")
    for row in rows:
        texts = (Text(show(text)) for text in (row.reference, row.hypothesis))  # no markup, and :smile: stays text
        table.add_row(f"{row.words.percent:.0f}", *texts)
    # With lines that the terminal's encoding has.
    out = io.TextIOWrapper(io.BytesIO(), sys.stdout.encoding or "utf-8", errors="backslashreplace")
    Console(file=out, width=120).print(table, markup=False)
    out.seek(0)
    return out.read()
