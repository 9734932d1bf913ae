"""`best/`: the model with the lowest WER so far, for other programs to load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from whisper_lightning.files import remove, replacing, sync


class KeepBest(Callback):
    """Writes the model with the lowest WER so far as a Hugging Face folder, `best/`.

    The model that the run starts from takes part, as step 0: until a step is better, `best/` holds that one.

    Attributes:
        wer: Lowest `val/wer` so far, in percent.
        step: The step that reached it, -1 before the first validation.
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

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear up what a kill left: an unfinished folder, or an old one that was just making way."""
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir) / "best"
            old = folder.with_name("best.old")
            if old.is_dir() and not folder.is_dir():
                old.rename(folder)
            for leftover in (old, folder.with_name("best.new")):
                remove(leftover)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the folder anew when this validation is the best."""
        whole = not trainer.sanity_checking or trainer.num_sanity_val_steps == float("inf")
        wer = trainer.callback_metrics.get("val/wer")
        if trainer.state.fn != "fit" or not whole or wer is None or float(wer) >= self.wer:
            return
        self.wer, self.step = float(wer), trainer.global_step
        for each in trainer.loggers:
            each.log_metrics({"best/wer": self.wer, "best/step": self.step}, step=self.step)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        weights = trainer.strategy.lightning_module_state_dict()  # on every rank: it may have to be gathered
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir) / "best"
            with replacing(folder) as fresh:
                pl_module.save_pretrained(fresh, weights)  # type: ignore[operator]
                for path in fresh.iterdir():
                    sync(path)
            sync(folder.parent)
