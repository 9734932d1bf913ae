"""What makes a continued run the run that was never interrupted, to the last bit.

`last.ckpt` is written only between two optimizer steps or in a validation, in the one form from which Lightning 2.6
goes on exactly; every batch is seeded; what cannot be continued is refused.
"""

from __future__ import annotations

import hashlib
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from whisper_lightning.callbacks.lightning_internals import (
    current_epoch,
    dump_checkpoint,
    is_accumulating,
    is_validation_due,
    let_processes_end,
)
from whisper_lightning.callbacks.signals import StopRequest
from whisper_lightning.errors import Interrupted, UserError
from whisper_lightning.files import read_checkpoint, write_checkpoint
from whisper_lightning.run import check_folder

logger = logging.getLogger(__name__)

FREE_OPTIONS = {"max_tokens", "initial_weights", "_instantiator"}
"""Options of the model that a continued run may change: they take effect, and leave what is restored as it is."""

DATA_OPTIONS = (
    "batch_size",
    "max_batch_seconds",
    "augment",
    "speed",
    "timestamps",
    "pack",
    "prompt",
    "guard_utterances",
    "guard_windows",
)
"""Options of the data that decide what is computed; the utterances themselves are compared by their content."""

NEEDED = ("run", "callbacks", "loops", "optimizer_states", "lr_schedulers")
"""What a checkpoint must have to be continued, beside weights."""
OTHER = {"data": "other utterances", "model.checkpoint": "another model"}
"""What is compared by its content, whose identity says nothing to a person; `data` is every split."""


class ExactResume(Checkpoint):
    """Keeps `checkpoints/last.ckpt`, stops on a signal, and seeds every batch so that a continued run is the same.

    No state of a random generator is saved: each batch is seeded from (seed, epoch, batch, rank).

    SIGTERM, SIGUSR1 and Ctrl-C make every rank save at its next optimizer step (in a validation, at its next batch) and
    end with exit code 75, or 130 for Ctrl-C.

    Args:
        every_n_steps: Optimizer steps between two checkpoints; each validation writes one as well.

    Attributes:
        begin_from: The checkpoint that the trainer will load, which it tells nobody before it has.
    """

    def __init__(self, every_n_steps: int = 25) -> None:
        self.every_n_steps = every_n_steps
        self.begin_from: Path | None = None
        self._stop = StopRequest()
        self._exit_code = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be continued, before anything of it is loaded or written.

        Raises:
            UserError: Seed, data, number of processes, model or options differ.
        """
        if self.begin_from is None:
            return
        checkpoint = read_checkpoint(self.begin_from, verify=False)  # the command line has
        if stage == "fit":
            refuse_another_run(checkpoint, describe_run(trainer), self.begin_from)
        refuse_other_weights(checkpoint["state_dict"], pl_module, self.begin_from)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let what is validated and tested next be as it is."""
        self.begin_from = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove what a kill left of a checkpoint that was being written."""
        if trainer.is_global_zero:
            path = last_checkpoint(Path(trainer.default_root_dir))
            path.with_name(path.name + ".new").unlink(missing_ok=True)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals; Lightning has set its own handlers just before."""
        self._stop.install()

    on_train_start = on_sanity_check_start

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed dropout, SpecAugment and whatever else draws in a step."""
        seed = trainer.datamodule.seed  # type: ignore[attr-defined]
        position = (seed, current_epoch(trainer), batch_idx, trainer.global_rank)
        seed = int.from_bytes(hashlib.sha256(repr(position).encode()).digest()[:8], "little") >> 1
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """At an optimizer step, save when it is time, unless a validation is due now, which saves when it has ended."""
        if is_accumulating(trainer):
            return
        self._exit_code = self._stop.agreed()
        if is_validation_due(trainer):
            return
        step = trainer.global_step
        if self._exit_code or step % self.every_n_steps == 0 or step == trainer.max_steps:
            self._save(trainer)
        self._leave(trainer)

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Stop if that was asked for, in a validation that runs again, whole.

        The one after the last step is brought to its end: Lightning would not run it again. So is one in the middle of
        an accumulation: the gradients so far would be lost.
        """
        if trainer.state.fn != "fit":
            return
        if trainer.sanity_checking:
            self.leave_before_the_first_step()
        self._exit_code = self._exit_code or self._stop.agreed()
        if self._exit_code and trainer.global_step < trainer.max_steps and not is_accumulating(trainer):
            self._save(trainer, validating=True)
            self._leave(trainer)

    def leave_before_the_first_step(self) -> None:
        """End the run on every rank if that was asked for; nothing is trained yet."""
        if code := self._stop.agreed():
            raise Interrupted("stopped before the first step; start the run again", code)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save with the validation's results, unless it was in the middle of an accumulation."""
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        if fitting and not is_accumulating(trainer):
            self._save(trainer)
            self._leave(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        self._stop.settle()
        self._stop.restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._stop.restore()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what the run is, and how far its logs are."""
        checkpoint["run"] = describe_run(trainer)
        checkpoint["loggers"] = [each.state_dict() if hasattr(each, "state_dict") else None for each in trainer.loggers]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let the logs go on where the checkpoint was."""
        if trainer.state.fn != "fit":
            return
        for each, state in zip(trainer.loggers, checkpoint.get("loggers", []), strict=False):
            if state is not None and hasattr(each, "load_state_dict"):
                each.load_state_dict(state)

    def _leave(self, trainer: Trainer) -> None:
        """Raise `Interrupted` on every rank if the ranks have agreed to stop."""
        if not self._exit_code:
            return
        let_processes_end(trainer)
        raise Interrupted(
            f"stopped at step {trainer.global_step}; continue with --ckpt_path last "
            f"(--trainer.default_root_dir {trainer.default_root_dir})",
            self._exit_code,
        )

    def _save(self, trainer: Trainer, *, validating: bool = False) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        trainer.lightning_module.check_losses()  # type: ignore[operator]
        checkpoint = dump_checkpoint(trainer, validating=validating)
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            check_folder(folder)
            write_checkpoint(checkpoint, last_checkpoint(folder))
        trainer.strategy.barrier("ExactResume")


def last_checkpoint(folder: Path) -> Path:
    """Return the path of the `last.ckpt` of the run in a folder."""
    return folder / "checkpoints" / "last.ckpt"


def describe_run(trainer: Trainer) -> dict[str, Any]:
    """Return what must be the same for a run to be continued: all that decides what is computed, by option's name."""
    module, data = trainer.lightning_module, trainer.datamodule  # type: ignore[attr-defined]
    steps = ("accumulate_grad_batches", "precision", "gradient_clip_val", "gradient_clip_algorithm")
    limits = ("limit_train_batches", "limit_val_batches", "val_check_interval", "check_val_every_n_epoch")
    run = {f"trainer.{name}": getattr(trainer, name) for name in steps + limits}
    run |= {f"model.{name}": value for name, value in module.hparams.items() if name not in FREE_OPTIONS}
    run["model.checkpoint"] = module.identity  # it may have moved, or be called by another name
    run |= {f"data.{name}": getattr(data, name) for name in DATA_OPTIONS}
    run |= {"seed_everything": data.seed, "number of processes": trainer.world_size}
    # A checkpoint is read without pickle: no enumerations, no paths.
    run = {name: value if isinstance(value, int | float | None) else str(value) for name, value in run.items()}
    return run | {f"data.{name}": split.fingerprint for name, split in data.splits.items()}


def refuse_another_run(checkpoint: dict[str, Any], run: dict[str, Any], path: Path) -> None:
    """Compare a checkpoint's run with this one.

    Raises:
        UserError: They differ; each option is named with both values. Or it is no checkpoint to continue from.
    """
    absent = [name for name in NEEDED if not checkpoint.get(name)]
    if absent:
        raise UserError(
            f"--ckpt_path: {path} has no {', '.join(absent)}: it was not written by this program as a checkpoint of a "
            f"run, and cannot be continued exactly. {_anew(path)}"
        )
    saved = checkpoint["run"]
    splits = {f"data.{name}" for name in ("train", "val", "test", "noise", "reverb")}
    kinds = {name: "data" if name in splits or name.startswith("data.guard/") else name for name in saved | run}
    differing = [
        f"{name}: {OTHER[kinds[name]]} than before" if kinds[name] in OTHER and name in saved and name in run
        # An absent name is an option that one of the two versions of this program does not have.
        else f"{name} was {saved.get(name, 'absent')}, now {run.get(name, 'absent')}"
        for name in sorted(saved.keys() | run.keys())
        if saved.get(name) != run.get(name)
    ]  # fmt: skip
    if differing:
        raise UserError(
            f"--ckpt_path: {path} cannot be continued like this: {'; '.join(differing)}. Continue with what it was "
            f"begun with. {_anew(path)}"
        )


def refuse_other_weights(state: dict[str, Any], module: LightningModule, path: Path) -> None:
    """Compare the names and shapes of a checkpoint's weights with the model's.

    Raises:
        UserError: They are another model's.
    """
    ours = module.state_dict()
    if {name: value.shape for name, value in state.items()} != {name: value.shape for name, value in ours.items()}:
        raise UserError(
            f"--ckpt_path: {path} holds the weights of another model than {module.checkpoint}; "
            "give the model.checkpoint that it was begun with"
        )


def _anew(path: Path) -> str:
    return (
        f"Or start anew from its weights: --model.initial_weights {path} and a new --trainer.default_root_dir instead "
        "of --ckpt_path"
    )
