"""What is refused, or said, before a run does any work: options that cannot train, and a machine without a GPU."""

from __future__ import annotations

import logging

import torch
from jsonargparse import Namespace
from lightning.pytorch import Trainer

from whisper_lightning.callbacks.length import check_warmup
from whisper_lightning.errors import UserError
from whisper_lightning.scoring.translation import check_sacrebleu

logger = logging.getLogger(__name__)

LEAST = {
    "trainer.accumulate_grad_batches": 1,
    "trainer.check_val_every_n_epoch": 1,
    "trainer.log_every_n_steps": 0,
    "data.batch_size": 1,
    "data.eval_batch_size": 1,
    "data.num_workers": 0,
    "evaluate.num_shown": 0,
    "resume.every_n_steps": 1,
    "model.max_tokens": 1,
    "model.num_beams": 1,
    "model.warmup_steps": 0,
}
"""Options that are counted, and where counting begins."""


def check_fit(config: Namespace) -> None:
    """Refuse combinations that cannot train."""
    trainer = config.trainer
    for key, least in LEAST.items():
        value = config.get(key)
        if value is not None and value < least:
            raise UserError(f"{key}: {value}; the least is {least}")
    if config.model.lora_rank and config.model.random_weights and config.model.initial_weights is None:
        raise UserError(
            "model.lora_rank: adapters beside random weights; give model.lora_rank 0, or a trained checkpoint"
        )
    if config.model.task == "translate":
        check_sacrebleu()
    _check_length(trainer, config.model.warmup_steps)
    _check_validation(trainer)
    if trainer.enable_checkpointing is False:
        raise UserError(
            "trainer.enable_checkpointing: false; a run without checkpoints could not be continued. Leave it out; to "
            "save more rarely, --resume.every_n_steps 1000"
        )
    if trainer.barebones:
        raise UserError(
            "trainer.barebones: true leaves out validation, checkpoints and logs, which a run cannot do without; "
            "for a quick try use --trainer.fast_dev_run true"
        )
    for name in ("limit_train_batches", "limit_val_batches", "limit_test_batches"):
        if trainer[name] is not None and trainer[name] <= 0:
            raise UserError(
                f"trainer.{name}: {trainer[name]}; a run needs some of its utterances to end with a model and its "
                "word error rate. Give a number of batches or a share, such as 0.1"
            )
    if trainer.overfit_batches:
        raise UserError(
            f"trainer.overfit_batches: {trainer.overfit_batches} would validate on what is trained on; give "
            f"--trainer.limit_train_batches {trainer.overfit_batches} and --data.val with the same CSV as --data.train"
        )
    share = config.data.val
    if isinstance(share, float) and not 0 < share < 1:
        raise UserError(f"data.val: {share} is no share of the training utterances; give 0.1, or a CSV")


def _check_length(trainer: Namespace, warmup_steps: int) -> None:
    """Refuse a run without an end or without a step; what epochs amount to is known when the data is open."""
    by_epochs = trainer.max_epochs not in (None, -1)
    if trainer.max_steps < (-1 if by_epochs else 1) or trainer.max_steps == 0 or (by_epochs and trainer.max_epochs < 1):
        given = f"trainer.max_epochs: {trainer.max_epochs}" if by_epochs else f"trainer.max_steps: {trainer.max_steps}"
        raise UserError(
            f"{given}; the schedule needs a length, such as --trainer.max_steps 1000 or --trainer.max_epochs 3"
        )
    if not by_epochs:
        check_warmup(warmup_steps, trainer.max_steps, "trainer.max_steps")


def _check_validation(trainer: Namespace) -> None:
    """Refuse an interval of validations that cannot be continued exactly; let a share of an epoch be one."""
    every, group = trainer.val_check_interval, trainer.accumulate_grad_batches
    if isinstance(every, float) and trainer.check_val_every_n_epoch is None and 0 < every <= 1:
        trainer.check_val_every_n_epoch = 1
    elif not isinstance(every, int | float | None) or (every is not None and (every < 1 and not 0 < every < 1)):
        raise UserError(
            f"trainer.val_check_interval: {every}; give a number of batches, such as 25, or a share of an epoch, such "
            "as 0.5"
        )
    elif isinstance(every, int) and every % group:
        raise UserError(
            f"trainer.val_check_interval: {every} batches end inside an accumulation group of {group}; "
            f"to validate every {every} steps set it to {every * group}"
        )


def warn_of_cpu(trainer: Trainer) -> None:
    """Say that the run is on the CPU, where nobody asked for that, and how to get it onto a GPU."""
    if trainer.strategy.root_device.type == "cpu":
        logger.warning("Training on the CPU, many times slower: %s", find_cuda())
        if trainer.precision != "32-true":
            logger.warning("On a CPU %s is slow as well; add --trainer.precision 32-true", trainer.precision)


def find_cuda() -> str:
    """Say why torch sees no GPU, and what would change that."""
    if torch.version.cuda is not None:
        return f"torch {torch.__version__} finds no GPU; does nvidia-smi list one, and is its driver recent enough?"
    return (
        # PyPI has torch with CUDA for Linux; what it has for Windows is for CPUs alone.
        f"this torch ({torch.__version__}) has no CUDA; with an NVIDIA card, install the build for CUDA 13.0 with the "
        'command that pytorch.org/get-started/locally gives, for "torch>=2.11,<2.13" "torchaudio==2.11.*"'
    )
