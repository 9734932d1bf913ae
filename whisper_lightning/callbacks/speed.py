"""What each optimizer step was: loss, gradient, learning rate, how fast it went and what it waited for."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class LogSteps(Callback):
    """Logs `train/*`, `speed/*` and, on a GPU, `memory/peak_gib` every `trainer.log_every_n_steps` optimizer steps.

    With `trainer.log_every_n_steps: 0` it logs nothing.

    It writes to the loggers itself, so that the row of a step is there before the step's checkpoint is: Lightning
    would write it afterwards, and a continued run would lack it. The step in every log is the number of finished
    optimizer steps.

    `speed/audio_seconds_per_second` counts the speech of the batches, without padding; `speed/data_wait_fraction` is
    the time between the end of one batch and the start of the next, which is what the loader makes the model wait.
    Both read clocks, never the device.
    """

    def __init__(self) -> None:
        self._audio_seconds = self._waited = 0.0
        self._since = self._batch_end = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clocks."""
        self._audio_seconds = self._waited = 0.0
        self._since = self._batch_end = time.perf_counter()

    on_train_epoch_start = on_train_start
    on_validation_end = on_train_start

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Add the time since the last batch."""
        self._waited += time.perf_counter() - self._batch_end

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Add the batch's speech; log what the step was at logging steps."""
        self._audio_seconds += batch.audio_seconds * trainer.world_size
        self._batch_end = time.perf_counter()
        metrics = pl_module.take_step_metrics()  # type: ignore[operator]
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not metrics or not every or trainer.global_step % every:
            return
        pl_module.check_losses()  # type: ignore[operator]
        pl_module.log("train/loss", metrics["train/loss"], prog_bar=True, logger=False)
        elapsed = self._batch_end - self._since
        values = {name: float(value) for name, value in metrics.items()} | {
            "speed/audio_seconds_per_second": self._audio_seconds / elapsed,
            "speed/data_wait_fraction": self._waited / elapsed,
        }
        if pl_module.device.type == "cuda":
            values["memory/peak_gib"] = torch.cuda.max_memory_allocated(pl_module.device) / 2**30
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        self.on_train_start(trainer, pl_module)
