"""`best/`: the model with the lowest WER so far, for other programs to load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import save_file

from whisper_lightning.callbacks.lightning_internals import validated_weights
from whisper_lightning.errors import UserError
from whisper_lightning.files import remove, replacing, sync
from whisper_lightning.model.adapters import merge

ALPHAS = (0.25, 0.5, 0.75)


def weights_of_step(folder: Path, step: int) -> Path:
    """Return the place of a step's weights, which are kept to be averaged, in a run's folder."""
    return folder / "checkpoints" / f"step-{step:06d}.safetensors"


class KeepBest(Callback):
    """Writes the model with the lowest WER so far as a Hugging Face folder, `best/`.

    The model that the run starts from takes part, as step 0: until a step is better, `best/` holds that one.

    At the end the mean of the best steps' weights takes part as well, if that is wished. Where there are guards, the
    run then ends with the best of the weights between the start and that model, of those with which no guard has become
    worse; `tuned/` keeps the best step.

    Args:
        average: How many of the best steps' weights are averaged at the end (Izmailov et al. 2018, arXiv:1803.05407);
            0 for none. It costs a validation, and so many models on the disk, in float16.
        alphas: Where between the start (0) and the tuned model (1) weights are tried at the end, beside these two;
            each costs a validation. An empty list leaves the tuned model as it is.
        guard_margin: By how many points of normalized WER a guard may be worse, at the upper end of its interval; where
            that leaves nothing better than the start, on average.

    Attributes:
        wer: Lowest `val/wer` so far, in percent.
        step: The step that reached it, -1 before the first validation.
        steps: WER and step of those that are averaged.
        is_average: Whether the model that the training gave is their mean, which is better than the best step.
    """

    def __init__(self, average: int = 0, alphas: list[float] | None = None, guard_margin: float = 0.3) -> None:
        if average < 0 or average == 1:
            raise UserError(f"best.average: {average}; give the number of steps to average, such as 3, or 0")
        self.average = average
        self.alphas = list(ALPHAS) if alphas is None else alphas
        odd = [alpha for alpha in self.alphas if not 0 < alpha < 1]
        if odd:
            raise UserError(f"best.alphas: {odd[0]} does not lie between the start (0) and the tuned model (1)")
        self.guard_margin = guard_margin
        self.wer = float("inf")
        self.step = -1
        self.steps: list[list[float]] = []
        self.is_average = False

    def state_dict(self) -> dict[str, Any]:
        """Keep the record through a resume."""
        return {"wer": self.wer, "step": self.step, "steps": [list(each) for each in self.steps]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the record of the interrupted run."""
        self.wer, self.step = state_dict["wer"], state_dict["step"]
        self.steps = [list(each) for each in state_dict.get("steps", [])]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear up what a kill left: an unfinished folder, or an old one that was just making way."""
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir) / "best"
            restore(folder.parent)
            old = folder.with_name("best.old")
            if old.is_dir() and not folder.is_dir():
                old.rename(folder)
            for leftover in (old, folder.with_name("best.new")):
                remove(leftover)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the folder anew when this validation is the best."""
        whole = not trainer.sanity_checking or trainer.num_sanity_val_steps == float("inf")
        wer = trainer.callback_metrics.get("val/wer")
        if trainer.state.fn != "fit" or not whole or wer is None:
            return
        if trainer.global_step > 0 and self.average and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._keep_for_average(trainer, float(wer))
        if float(wer) >= self.wer:
            return
        self.wer, self.step = float(wer), trainer.global_step
        for each in trainer.loggers:
            each.log_metrics({"best/wer": self.wer, "best/step": self.step}, step=self.step)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        weights = validated_weights(trainer)
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir) / "best"
            with replacing(folder) as fresh:
                pl_module.save_pretrained(fresh, weights)  # type: ignore[operator]
                for path in fresh.rglob("*"):
                    sync(path)
            sync(folder.parent)

    def _keep_for_average(self, trainer: Trainer, wer: float) -> None:
        """Keep the weights of this step if it is one of the best, and no longer those that it pushes out."""
        step = trainer.global_step
        ranked = sorted([*(each for each in self.steps if each[1] != step), [wer, step]])
        self.steps, rest = ranked[: self.average], ranked[self.average :]
        weights = validated_weights(trainer)
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        if [wer, step] in self.steps:
            del weights["whisper.proj_out.weight"]  # the token embedding once more
            halved = {name: weight.to("cpu", torch.float16) for name, weight in merge(weights).items()}
            path = weights_of_step(folder, step)
            path.parent.mkdir(exist_ok=True)
            with replacing(path) as fresh:
                save_file(halved, fresh)
                sync(fresh)
        for _, old in rest:
            remove(weights_of_step(folder, int(old)))

    def averaged(self, folder: Path) -> list[Path]:
        """Return the files of a run's folder whose mean is to take part; none if there are fewer than two."""
        paths = [weights_of_step(folder, int(step)) for _, step in self.steps]
        return paths if len(paths) > 1 and all(path.is_file() for path in paths) else []

    def take(self, folder: Path, model: Path) -> None:
        """Let a run end with another model than its best step, which moves to `tuned/`."""
        best, tuned = folder / "best", folder / "tuned"
        if tuned.is_dir():
            remove(best)
        else:
            best.rename(tuned)
        model.rename(best)


def restore(folder: Path) -> None:
    """Put the best step back into `best/` of a run's folder, whatever the run had ended with."""
    best, tuned = folder / "best", folder / "tuned"
    if tuned.is_dir():
        remove(best)
        tuned.rename(best)
