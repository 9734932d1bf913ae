"""From the sums of an accumulation group to one gradient of means, which is finite."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import FSDPStrategy

from whisper_lightning.errors import UserError

GRADIENT_SCALE = 1 / 256
"""Keeps the loss of a batch near 1, which float16 needs; a power of two, so that it costs no precision."""


class TokenMean:
    """Divides an accumulated gradient by the label tokens of its group, on all ranks.

    Their number is known only when the group is complete: so each batch contributes the sum of its tokens' losses, and
    the gradient of the sums becomes that of the mean before it is clipped.
    """

    def __init__(self) -> None:
        self._sums: list[torch.Tensor] = []
        self._num_tokens = 0

    def add(self, loss_sum: torch.Tensor, num_tokens: int) -> torch.Tensor:
        """Note a batch of the group; return its loss, to be differentiated."""
        self._sums.append(loss_sum.detach())
        self._num_tokens += num_tokens
        return loss_sum * GRADIENT_SCALE

    def normalize(self, optimizer: torch.optim.Optimizer, trainer: Trainer) -> torch.Tensor:
        """Divide the gradients, and begin the next group; return the loss per token."""
        totals = torch.stack([torch.stack(self._sums).sum(), self._sums[0].new_tensor(self._num_tokens)])
        totals = trainer.strategy.reduce(totals, reduce_op="sum")
        loss_sum, num_tokens = totals.unbind()
        # Lightning has divided by the accumulation, DDP by the number of ranks.
        undo = trainer.accumulate_grad_batches * trainer.world_size / GRADIENT_SCALE
        torch._foreach_mul_([p.grad for p in _parameters(optimizer) if p.grad is not None], undo / num_tokens)
        self._sums, self._num_tokens = [], 0
        return loss_sum / num_tokens


class FiniteLosses:
    """Remembers losses on their device; to look at them waits for it, so that is done rarely."""

    def __init__(self) -> None:
        self._unchecked: list[tuple[list[str], torch.Tensor]] = []

    def add(self, keys: list[str], loss: torch.Tensor) -> None:
        """Note the loss of a batch of these utterances."""
        self._unchecked.append((keys, loss))

    def check(self, step: int) -> None:
        """Stop the run if a loss since the last check is not finite.

        Raises:
            UserError: With the keys of the first such batch.
        """
        unchecked, self._unchecked = self._unchecked, []
        if not unchecked or bool(torch.isfinite(torch.stack([loss for _, loss in unchecked])).all()):
            return
        keys = next(keys for keys, loss in unchecked if not bool(torch.isfinite(loss)))
        raise UserError(
            f"the loss is not finite at step {step}, in the batch of utterances {', '.join(keys)}; "
            "lower model.learning_rate, or look at these rows of the CSV"
        )


def clip_gradients(
    optimizer: torch.optim.Optimizer, trainer: Trainer, limit: float | None, algorithm: str | None
) -> torch.Tensor:
    """Bound the gradient's norm, or each of its values; return the norm that it had before.

    Args:
        optimizer: Of the parameters.
        trainer: Knows how they are spread over processes.
        limit: Of the norm or the values; None or 0 leaves them.
        algorithm: "value", or the norm.
    """
    parameters = _parameters(optimizer)
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if isinstance(trainer.strategy, FSDPStrategy):  # each process has a part of every gradient
        norm = trainer.strategy.reduce(norm.square(), reduce_op="sum").sqrt()
    if limit and algorithm == "value":
        torch.nn.utils.clip_grad_value_(parameters, limit)
    elif limit:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
