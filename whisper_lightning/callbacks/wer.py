"""Decode and score: WER of each validation, test and guard; CSV files of the transcripts."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm import tqdm

from whisper_lightning.callbacks.checkpoint import ExactResume
from whisper_lightning.callbacks.heard import Heard, gather
from whisper_lightning.callbacks.shown import log_transcripts, render
from whisper_lightning.callbacks.silence import count_words, hear_silence
from whisper_lightning.scoring.translation import score_translations
from whisper_lightning.scoring.utterance import (
    measure_difference,
    read_transcripts,
    transcripts_path,
    write_transcripts,
)

logger = logging.getLogger(__name__)


class EvaluateWER(Callback):
    """Scores each validation and test epoch over the whole corpus, and writes predictions.

    Counts are summed over utterances and ranks and divided once. What the run is to better is kept in
    `transcripts/before.csv`: the test utterances as the model hears them that the run starts from. Where the
    validation before the first step hears exactly these, it is that; else they are decoded once more, before the
    first step. `trainer.num_sanity_val_steps: 0` leaves both out.

    Guards are measured alike, and compared with what the starting model made of the same utterances. That goes by
    normalized words: a guard's texts are often written in another style than those that are trained.

    Args:
        num_shown: Worst and as many random pairs that are shown on the terminal.

    Attributes:
        latest: Metrics of the last epoch scored.
        candidate: What a validation's tables are called when the model is that of no step; it is not logged.
    """

    def __init__(self, num_shown: int = 4) -> None:
        self.num_shown = num_shown
        self.latest: dict[str, float] = {}
        self.candidate: str | None = None
        self._heard: list[Heard] = []
        self._predicted: list[tuple[str, str, str]] = []
        self._warned: set[str] = set()

    def _start(self, trainer: Trainer, *_: Any) -> None:
        self._heard, self._predicted = [Heard() for _ in _sets(trainer)], []

    on_validation_epoch_start = _start  # type: ignore[assignment]
    on_test_epoch_start = _start  # type: ignore[assignment]
    on_predict_epoch_start = _start  # type: ignore[assignment]

    def _collect(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int, number: int = 0
    ) -> None:
        self._heard[number].add(batch, outputs)

    on_validation_batch_end = _collect  # type: ignore[assignment]
    on_test_batch_end = _collect  # type: ignore[assignment]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score, log, show, write."""
        # The command `validate` knows no step: it must not take the place of what the run's start was heard to be.
        step = f"step-{trainer.global_step:06d}" if trainer.state.fn == "fit" else "validate"
        name = self.candidate or step
        heard = [each.gather(trainer) for each in self._heard]
        metrics: dict[str, float] = {}
        for which, each in zip(_sets(trainer), heard, strict=True):
            metrics |= self._finish(trainer, which or "val", each, name, against="step-000000")
            if trainer.sanity_checking and _is_heard_before(trainer, which):
                self._keep(trainer, which, each, "before")
                metrics |= _named(f"before/{which}" if which else "before", each.measure())
        metrics |= self._hear_silence(trainer, "silence/words", name)
        self.latest = metrics
        if self.candidate is None:
            _log(trainer, metrics)
        # Not through Lightning: it logs nothing of a sanity check, and only after the hook that saves a checkpoint.
        pl_module.log_dict(metrics, logger=False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decode what the test will, with the model that the run starts from, unless the sanity check has done it."""
        if trainer.global_step or trainer.num_sanity_val_steps == 0:
            return
        missing = [which for which in _sets(trainer) if not _is_heard_before(trainer, which)]
        if not missing:
            return
        loaders = dict(zip(_sets(trainer), trainer.datamodule.test_dataloader(), strict=True))  # type: ignore[attr-defined]
        modes = [(module, module.training) for module in pl_module.modules()]
        pl_module.eval()
        metrics: dict[str, float] = {}
        for which in missing:
            heard = self._hear(trainer, loaders[which]).gather(trainer)
            metrics |= self._finish(trainer, f"before/{which}" if which else "before", heard, "before")
        for module, training in modes:
            module.training = training
        _log(trainer, metrics)

    @torch.no_grad()
    def _hear(self, trainer: Trainer, loader: Any) -> Heard:
        """Decode what a test would decode, outside of it."""
        limit = trainer.limit_test_batches
        number = min(len(loader), limit) if isinstance(limit, int) else int(limit * len(loader))
        resume = next((c for c in trainer.callbacks if isinstance(c, ExactResume)), None)  # type: ignore[attr-defined]
        quiet = not trainer.is_global_zero or trainer.progress_bar_callback is None
        heard = Heard()
        for i, batch in enumerate(tqdm(islice(loader, number), "before training", number, disable=quiet)):
            if resume is not None:
                resume.leave_before_the_first_step()
            batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
            heard.add(batch, trainer.strategy.test_step(batch, i))
        return heard

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score, log, show, write."""
        metrics: dict[str, float] = {}
        for which, each in zip(_sets(trainer), self._heard, strict=True):
            stage = f"test/{which}" if which else "test"
            metrics |= self._finish(trainer, stage, each.gather(trainer), "test", against="before")
        metrics |= self._hear_silence(trainer, "test/silence/words", "test")
        self.latest = metrics
        _log(trainer, metrics)
        pl_module.log_dict(metrics, logger=False)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Collect transcripts."""
        self._predicted += zip(batch.keys, batch.audio, outputs.hypotheses, strict=True)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write predictions.csv into the run's folder."""
        rows = sorted(gather(trainer, self._predicted))
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / "predictions.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame(rows, columns=["key", "audio", "transcript"]).to_csv(path, index=False, encoding="utf-8")
            logger.info("%d transcripts, decoded at full context: %s", len(rows), path)

    def _finish(
        self, trainer: Trainer, stage: str, heard: Heard, name: str, against: str | None = None
    ) -> dict[str, float]:
        """Keep and show what was heard of a set; return its metrics, the same on every rank.

        Args:
            trainer: The trainer.
            stage: What the metrics' names begin with: `val`, `test`, `before`, or one of these and a guard.
            heard: Of all ranks.
            name: Of the table.
            against: Name of the table that a guard is compared with.
        """
        figures, which = heard.measure(), _guard(stage)
        if trainer.is_global_zero:
            self._keep(trainer, which, heard, name)
            if trainer.lightning_module.task == "translate":
                texts = ([row.hypothesis for row in heard.rows], [row.reference for row in heard.rows])
                figures |= score_translations(*texts)
            if which and against not in (None, name):
                figures |= self._compare(trainer, which, name, str(against))
            self._show(trainer, stage, heard, figures)
        return _named(stage, trainer.strategy.broadcast(figures))

    def _hear_silence(self, trainer: Trainer, metric: str, name: str) -> dict[str, float]:
        """Keep what is invented where nobody speaks, in runs that watch long windows; return the number of words."""
        if "guard/long" not in _sets(trainer):
            return {}
        heard = hear_silence(trainer)
        self._keep(trainer, "silence", heard, name)
        return {metric: count_words(heard)}

    def _compare(self, trainer: Trainer, guard: str, name: str, against: str) -> dict[str, float]:
        """Compare a guard's table with what the starting model made of the same utterances."""
        folder = Path(trainer.default_root_dir)
        now, before = (transcripts_path(folder, guard, each) for each in (name, against))
        if not before.is_file():
            return {}
        difference = measure_difference(read_transcripts(now), read_transcripts(before), "wer_normalized")
        if difference is None:
            return {}
        figures = {"difference": difference.value}
        if difference.low is not None and difference.high is not None:
            figures |= {"difference_low": difference.low, "difference_high": difference.high}
            if difference.low > 0 and self.candidate is None and guard not in self._warned:
                self._warned.add(guard)
                logger.warning(
                    "%s is heard worse than before training: %s points of normalized WER (step %d)",
                    guard,
                    difference.write(),
                    trainer.global_step,
                )
        return figures

    def _show(self, trainer: Trainer, stage: str, heard: Heard, figures: dict[str, float]) -> None:
        """Print the worst transcripts, or of a guard one line."""
        title = f"{stage} at {self.candidate or f'step {trainer.global_step}'}: "
        if _guard(stage):
            change = f", {figures['difference']:+.2f} points" if "difference" in figures else ""
            trainer.lightning_module.print(f"{title}normalized WER {figures['wer_normalized']:.2f} %{change}")
            return
        title += f"WER {figures['wer']:.2f} %, decoded at full context"
        if "bleu" in figures:
            title += f", BLEU {figures['bleu']:.1f}, chrF {figures['chrf']:.1f}"
        trainer.lightning_module.print(render(title, heard.rows, self.num_shown))
        if self.candidate is None:
            log_transcripts(trainer, stage, heard.rows, self.num_shown)

    def _keep(self, trainer: Trainer, which: str, heard: Heard, name: str) -> None:
        if trainer.is_global_zero:
            write_transcripts(heard.rows, transcripts_path(Path(trainer.default_root_dir), which, name))


def _sets(trainer: Trainer) -> list[str]:
    """Return what is decoded in an epoch: the utterances of the validation or the test, called "", then the guards."""
    return ["", *getattr(trainer.datamodule, "guards", [])]  # type: ignore[attr-defined]


def _guard(stage: str) -> str:
    """Return the guard in a stage's name, such as `guard/read` in `test/guard/read`; "" where there is none."""
    return stage[stage.index("guard/") :] if "guard/" in stage else ""


def _is_heard_before(trainer: Trainer, which: str) -> bool:
    """Say whether the validation before the first step decodes of a set what the test at the end will decode."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    same = trainer.limit_val_batches == trainer.limit_test_batches and trainer.num_sanity_val_steps == float("inf")
    return same and bool(data.is_whole(which) if which else data.test_is_val)


def _named(stage: str, figures: dict[str, float]) -> dict[str, float]:
    return {f"{stage}/{name}": value for name, value in figures.items()}


def _log(trainer: Trainer, metrics: dict[str, float]) -> None:
    for each in trainer.loggers:
        each.log_metrics(metrics, step=trainer.global_step)
