"""How long a run is: epochs are turned into optimizer steps, and the last step is validated, whatever the interval."""

from __future__ import annotations

import math

from lightning.pytorch import Callback, LightningModule, Trainer

from whisper_lightning.callbacks.lightning_internals import set_length, validate_last_step
from whisper_lightning.errors import UserError


class RunLength(Callback):
    """Gives the schedule its number of steps when a run is given in epochs, and ends every run with a validation.

    The number comes from the plan of the batches. Lightning's own estimate would set up the loader before its place
    in the epoch is restored, and a continued run would begin its epoch again.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Settle it before the optimizer is made, from data that is open by now.

        Raises:
            UserError: The warm-up is as long as the run, or no validation would fit into an epoch.
        """
        if stage != "fit" or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        loop = trainer.fit_loop
        num_batches = _num_batches(trainer)
        every = trainer.val_check_interval
        if isinstance(every, int) and trainer.check_val_every_n_epoch is not None and every > num_batches:
            raise UserError(
                f"trainer.val_check_interval: {every} batches, and an epoch has {num_batches}; to count across epochs "
                "set trainer.check_val_every_n_epoch: null, or validate by shares of an epoch, such as 0.5"
            )
        if loop.max_epochs not in (None, -1):
            steps_per_epoch = math.ceil(num_batches / trainer.accumulate_grad_batches)
            num_steps = loop.max_epochs * steps_per_epoch
            if loop.max_steps != -1:
                num_steps = min(num_steps, loop.max_steps)
            check_warmup(pl_module.hparams["warmup_steps"], num_steps, f"of {steps_per_epoch} in an epoch")
            set_length(trainer, num_steps)
        validate_last_step(trainer)


def check_warmup(warmup_steps: int, num_steps: int, source: str) -> None:
    """Refuse a warm-up that would take the whole run.

    Args:
        warmup_steps: Steps of linear warm-up.
        num_steps: Optimizer steps of the run.
        source: What these come from, for the message.

    Raises:
        UserError: With a number to try instead.
    """
    if not 0 <= warmup_steps < num_steps:
        raise UserError(
            f"model.warmup_steps: {warmup_steps} is not below the run's {num_steps} steps ({source}); "
            f"try {num_steps // 10}"
        )


def _num_batches(trainer: Trainer) -> int:
    """Return the batches of an epoch on one process, `trainer.limit_train_batches` counted in."""
    number = len(trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
    limit = trainer.limit_train_batches
    return min(number, limit) if isinstance(limit, int) else int(number * limit)
