"""`best/`: the model with the lowest WER so far, for other programs to load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from whisper_lightning.errors import UserError
from whisper_lightning.files import remove, replacing, sync

ALPHAS = (0.25, 0.5, 0.75)


class KeepBest(Callback):
    """Writes the model with the lowest WER so far as a Hugging Face folder, `best/`.

    The model that the run starts from takes part, as step 0: until a step is better, `best/` holds that one.

    Where there are guards, the run ends with the best of the weights between the start and that model, of those with
    which no guard has become worse; `tuned/` keeps the model itself.

    Args:
        alphas: Where between the start (0) and the tuned model (1) weights are tried at the end, beside these two;
            each costs a validation. An empty list leaves the tuned model as it is.
        guard_margin: By how many points of normalized WER a guard may be worse, at the upper end of its interval.

    Attributes:
        wer: Lowest `val/wer` so far, in percent.
        step: The step that reached it, -1 before the first validation.
    """

    def __init__(self, alphas: list[float] | None = None, guard_margin: float = 0.3) -> None:
        self.alphas = list(ALPHAS) if alphas is None else alphas
        odd = [alpha for alpha in self.alphas if not 0 < alpha < 1]
        if odd:
            raise UserError(f"best.alphas: {odd[0]} does not lie between the start (0) and the tuned model (1)")
        self.guard_margin = guard_margin
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
            old, tuned = folder.with_name("best.old"), self.tuned(folder.parent)
            if tuned != folder and not folder.is_dir():
                tuned.rename(folder)
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
            remove(folder.with_name("tuned"))  # of the run as it ended before it was continued
            sync(folder.parent)

    def tuned(self, folder: Path) -> Path:
        """Return the best model of the training in a run's folder, which another one may have replaced in `best/`."""
        return folder / "tuned" if (folder / "tuned").is_dir() else folder / "best"

    def take(self, folder: Path, model: Path | None) -> None:
        """Let a run end with another model than its tuned one, or with that one.

        Args:
            folder: The run's.
            model: Folder to take into `best/`; None is the tuned model.
        """
        best, tuned = folder / "best", folder / "tuned"
        if model is None:
            if tuned.is_dir():
                remove(best)
                tuned.rename(best)
            return
        if not tuned.is_dir():
            best.rename(tuned)
        remove(best)
        model.rename(best)
