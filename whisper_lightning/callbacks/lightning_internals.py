"""Every private name of Lightning 2.6 that callbacks touch; tests/test_lightning_internals.py holds it to them."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import WeightAveraging


def is_accumulating(trainer: Trainer) -> bool:
    """Say whether the batch that has just ended was in the middle of an accumulation group."""
    return bool(trainer.fit_loop.epoch_loop._should_accumulate())


def is_validation_due(trainer: Trainer) -> bool:
    """Say whether Lightning will validate after the batch that has just ended."""
    assert trainer.fit_loop._data_fetcher is not None
    return bool(trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher))


def validate_last_step(trainer: Trainer) -> None:
    """Let Lightning think that a validation is due at the last step: so it is saved and continued as any other."""
    loop = trainer.fit_loop.epoch_loop
    is_due = loop._should_check_val_fx

    def is_due_or_last(data_fetcher: Any) -> bool:
        return is_due(data_fetcher) or trainer.global_step >= loop.max_steps

    loop._should_check_val_fx = is_due_or_last  # type: ignore[method-assign]


def set_length(trainer: Trainer, num_steps: int) -> None:
    """Make a run that was given in epochs one of so many optimizer steps."""
    trainer.fit_loop.max_epochs, trainer.fit_loop.epoch_loop.max_steps = -1, num_steps


def current_epoch(trainer: Trainer) -> int:
    """Return the epoch that the next batch belongs to; `trainer.current_epoch` is behind at its border."""
    return int(trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]


def dump_checkpoint(trainer: Trainer, *, validating: bool) -> dict[str, Any]:
    """Return what a checkpoint holds, in the one form from which Lightning goes on exactly.

    A run that was itself continued carries counters that never agree again (epochs begun, batches of a validation
    that was cut); Lightning reads from such differences where a run was interrupted, so each checkpoint is cleaned.

    Args:
        trainer: Between two optimizer steps, or in a validation.
        validating: The checkpoint is taken in a validation, which is to run again from its first batch.
    """
    checkpoint: dict[str, Any] = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    fit_loop = checkpoint["loops"]["fit_loop"]
    epoch = fit_loop["epoch_progress"]["current"]["processed"]
    for counts in fit_loop["epoch_progress"].values():
        counts |= {"ready": epoch + 1, "started": epoch + 1, "processed": epoch, "completed": epoch}
    progress = fit_loop["epoch_loop.val_loop.batch_progress"]
    done = progress["total"]["completed"] - (progress["current"]["completed"] if validating else 0)
    progress["total"] = dict.fromkeys(("ready", "started", "processed", "completed"), done)
    progress["current"] = dict.fromkeys(("ready", "started", "processed", "completed"), 0)
    progress["is_last_batch"] = not validating
    if validating:  # Lightning's sign for a validation that was cut: its batch was started, not processed
        for counts in (progress["total"], progress["current"]):
            counts["ready"] += 1
            counts["started"] += 1
    return checkpoint


def validated_weights(trainer: Trainer) -> dict[str, Any]:
    """Return the weights that a validation hears: where Lightning averages weights, the mean, else the module's own.

    Lightning has put the module's own back before `on_validation_end`. On every rank: they may have to be gathered.
    """
    for each in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(each, WeightAveraging) and each._average_model is not None:
            state = each._average_model.state_dict()
            return {name[7:]: value for name, value in state.items() if name.startswith("module.")}
    return dict(trainer.strategy.lightning_module_state_dict())


def let_processes_end(trainer: Trainer) -> None:
    """Keep Lightning from killing this process when another one of the run ends with an exit code."""
    getattr(trainer.strategy.launcher, "procs", []).clear()
