"""Lightning's trainer with what every run of ours has, for Python; the command line adds the same by itself."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import TQDMProgressBar

from whisper_lightning.callbacks.best import KeepBest
from whisper_lightning.callbacks.checkpoint import ExactResume, last_checkpoint
from whisper_lightning.callbacks.interpolate import settle
from whisper_lightning.callbacks.length import RunLength
from whisper_lightning.callbacks.speed import LogSteps
from whisper_lightning.callbacks.wer import EvaluateWER
from whisper_lightning.errors import UserError
from whisper_lightning.files import find_whole
from whisper_lightning.loggers import MetricsCSV, WandbOptions, make_loggers
from whisper_lightning.model.module import WhisperModule
from whisper_lightning.run import hold_folder, is_first_process

DEFAULTS: dict[str, Any] = {
    "val_check_interval": 25,
    "check_val_every_n_epoch": None,
    "num_sanity_val_steps": -1,
    "log_every_n_steps": 5,
    "gradient_clip_val": 1.0,
    "enable_model_summary": False,
}
"""As configs/base.yaml has them, which is held to this by a test."""


class Trainer(pl.Trainer):
    """Trains with our standing callbacks: WER at each validation, the best model, exact resume, logs of the steps.

    Of these, one that is given in `callbacks` takes the place of ours. All that Lightning's trainer takes is taken.

    Args:
        default_root_dir: The run's folder, which holds one run.
        max_steps: Optimizer steps; 100 unless `max_epochs` is given.
        callbacks: More of them.
        logger: Loggers; by default metrics.csv and TensorBoard in the run's folder.
        options: Lightning's own, by their names.
    """

    def __init__(
        self,
        *,
        default_root_dir: str | Path = "runs/default",
        max_steps: int | None = None,
        callbacks: list[Callback] | None = None,
        logger: Any = None,
        **options: Any,
    ) -> None:
        given = callbacks or []
        standing = (EvaluateWER, KeepBest, ExactResume, LogSteps, RunLength)
        missing: list[Callback] = [kind() for kind in standing if not any(isinstance(each, kind) for each in given)]
        options = DEFAULTS | options
        if options.get("enable_progress_bar") is not False:
            # Drawing the bar reads the loss from the device: at every batch it would slow a GPU.
            missing.append(TQDMProgressBar(refresh_rate=options["log_every_n_steps"] or 1))
        folder = Path(default_root_dir)
        super().__init__(
            default_root_dir=folder,
            max_steps=(-1 if "max_epochs" in options else 100) if max_steps is None else max_steps,
            callbacks=[*given, *missing],
            logger=make_loggers(folder, WandbOptions(enabled=False), keep=True) if logger is None else logger,
            **options,
        )

    def fit(
        self,
        model: pl.LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: pl.LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Train, or continue: `ckpt_path="last"` is the last checkpoint of the run's folder.

        Args:
            model: A `WhisperModule`.
            train_dataloaders: A `SpeechDataModule`, or as Lightning's.
            val_dataloaders: As Lightning's.
            datamodule: As Lightning's.
            ckpt_path: What to continue from.
            weights_only: As Lightning's.

        Raises:
            UserError: The folder holds a run and it is not continued, is in use, or there is nothing to continue.
        """
        folder = Path(self.default_root_dir)
        fresh, last = ckpt_path is None, last_checkpoint(folder)
        if fresh and last.exists() and not self.fast_dev_run:  # type: ignore[attr-defined]
            raise UserError(f'{folder} holds a run; continue it with ckpt_path="last", or choose another folder')
        path = find_whole(last) if ckpt_path == "last" else None if ckpt_path is None else Path(ckpt_path)
        if not fresh and (path is None or not path.is_file()):
            raise UserError(f"ckpt_path: there is no checkpoint at {last if path is None else path}")
        for each in self.callbacks:  # type: ignore[attr-defined]
            if isinstance(each, ExactResume):
                each.begin_from = path
        for each in self.loggers:
            if isinstance(each, MetricsCSV):
                each.keep = not fresh
        with hold_folder(folder) if is_first_process() else nullcontext():
            super().fit(model, train_dataloaders, val_dataloaders, datamodule, path, weights_only)
            data = self.datamodule  # type: ignore[attr-defined]
            begun = (folder / "best").is_dir() and not self.fast_dev_run  # type: ignore[attr-defined]
            if isinstance(model, WhisperModule) and data is not None and begun:
                settle(self, model, data)
