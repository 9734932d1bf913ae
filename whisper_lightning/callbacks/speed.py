"""How fast it goes, and what it waits for."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class MeasureSpeed(Callback):
    """Logs `speed/audio_seconds_per_second`, `speed/data_wait_fraction` and, on a GPU, `memory/peak_gib`.

    Between two logging steps it sums the speech of the batches (without padding) and the time between the end of one
    batch and the start of the next, which is what the loader makes the model wait. It reads clocks, never the device.
    """

    def __init__(self) -> None:
        self._audio_seconds = self._waited = 0.0
        self._since = self._batch_end = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clocks."""
        self._restart()

    on_validation_end = on_train_epoch_start

    def _restart(self) -> None:
        self._audio_seconds = self._waited = 0.0
        self._since = self._batch_end = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Add the time since the last batch."""
        self._waited += time.perf_counter() - self._batch_end

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Add the batch's speech; log at logging steps."""
        self._audio_seconds += batch.audio_seconds * trainer.world_size
        self._batch_end = time.perf_counter()
        elapsed = self._batch_end - self._since
        if trainer.global_step % trainer.log_every_n_steps or not elapsed:  # type: ignore[attr-defined]
            return
        metrics = {
            "speed/audio_seconds_per_second": self._audio_seconds / elapsed,
            "speed/data_wait_fraction": self._waited / elapsed,
        }
        if pl_module.device.type == "cuda":
            metrics["memory/peak_gib"] = torch.cuda.max_memory_allocated(pl_module.device) / 2**30
        pl_module.log_dict(metrics)
        self._restart()
