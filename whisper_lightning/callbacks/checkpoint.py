"""What a run leaves on disk: `best/` for other programs, `checkpoints/last.ckpt` to continue from.

The only file that touches Lightning's private attributes; they are those of lightning 2.6.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

logger = logging.getLogger(__name__)


class KeepBest(Callback):
    """Writes the model with the lowest WER so far as a Hugging Face folder, `best/`.

    Attributes:
        wer: Lowest `val/wer` so far, in percent.
        step: The step that reached it, -1 before the first.
    """

    def __init__(self) -> None:
        self.wer = float("inf")
        self.step = -1

    def state_dict(self) -> dict[str, Any]:
        """Keep the record through a resume."""
        return {"wer": self.wer, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the record of the interrupted run."""
        self.wer, self.step = state_dict["wer"], state_dict["step"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the folder anew when this validation is the best."""
        wer = trainer.callback_metrics.get("val/wer")
        if trainer.sanity_checking or trainer.state.fn != "fit" or wer is None or float(wer) >= self.wer:
            return
        self.wer, self.step = float(wer), trainer.global_step
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            folder = Path(trainer.default_root_dir) / "best"
            fresh = folder.with_name("best.new")
            shutil.rmtree(fresh, ignore_errors=True)
            pl_module.save_pretrained(fresh)  # type: ignore[operator]
            shutil.rmtree(folder, ignore_errors=True)
            fresh.rename(folder)


class ExactResume(Checkpoint):
    """Keeps `checkpoints/last.ckpt`, and seeds every batch so that a continued run draws the same random numbers.

    No state of a random generator is saved: each batch is seeded from (seed, epoch, batch, rank).

    Args:
        every_n_steps: Optimizer steps between two checkpoints; each validation writes one as well.
    """

    def __init__(self, every_n_steps: int = 25) -> None:
        self.every_n_steps = every_n_steps
        self._saved_step = -1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed dropout and SpecAugment."""
        position = (trainer.datamodule.seed, trainer.current_epoch, batch_idx, trainer.global_rank)  # type: ignore[attr-defined]
        digest = hashlib.sha256(repr(position).encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Save when it is time, unless a validation is due now, which saves when it has ended."""
        loop = trainer.fit_loop.epoch_loop
        at_step = not loop._should_accumulate()
        due = trainer.global_step % self.every_n_steps == 0 and trainer.global_step != self._saved_step
        fetcher = trainer.fit_loop._data_fetcher
        assert fetcher is not None
        if at_step and due and not loop._should_check_val_fx(fetcher):
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save with the validation's results."""
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of the run."""
        if trainer.global_step != self._saved_step:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        trainer.lightning_module.check_losses()  # type: ignore[operator]
        self._saved_step = trainer.global_step
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        if trainer.is_global_zero:
            write_checkpoint(checkpoint, Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt")
        trainer.strategy.barrier("ExactResume")


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint so that a kill at any moment leaves the old file or the new one, whole.

    Lightning's own writer goes through `TMPDIR`; from another file system the final move is a copy that can be cut.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    with fresh.open("wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
