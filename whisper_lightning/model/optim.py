"""What is decayed, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from whisper_lightning.errors import UserError

Schedule = Literal["linear", "cosine", "constant"]


class Rates(NamedTuple):
    """How fast a run learns, by the names of `WhisperModule`'s options."""

    learning_rate: float
    warmup_steps: int
    schedule: Schedule
    weight_decay: float
    layer_decay: float


def adamw(
    parameters: Iterable[tuple[str, nn.Parameter]], rates: Rates, max_steps: int, *, fused: bool
) -> dict[str, Any]:
    """Return AdamW and its schedule as Lightning takes them.

    Args:
        parameters: Of a module, by name.
        rates: How fast.
        max_steps: Steps of the whole run.
        fused: Update all weights in one kernel.
    """
    groups = parameter_groups(parameters, rates.weight_decay, rates.learning_rate, rates.layer_decay)
    optimizer = AdamW(groups, lr=rates.learning_rate, fused=fused)
    length = {"warmup_steps": rates.warmup_steps, "max_steps": max_steps}
    factor = partial(learning_rate_factor, **length, schedule=rates.schedule)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]],
    weight_decay: float,
    learning_rate: float = 0.0,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Split trainable named parameters into decayed matrices and undecayed biases and norms, and by their depth.

    By name, because a parameter that is sharded over processes is a vector whatever it was.

    Args:
        parameters: Of a module.
        weight_decay: Of the matrices.
        learning_rate: Of the decoder's last layer.
        layer_decay: Factor from each layer to the one before it (Howard and Ruder 2018, arXiv:1801.06146); with 1
            there are two groups, without a rate of their own.
    """
    trainable = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
    plain = {name for name, _ in trainable if re.search("bias$|layer_norm|magnitude", name)}
    depths = (
        dict.fromkeys((name for name, _ in trainable), 0) if layer_decay == 1.0 else layers_below_the_top(trainable)
    )
    groups: list[dict[str, Any]] = []
    for depth in sorted(set(depths.values())):
        rate = {} if layer_decay == 1.0 else {"lr": learning_rate * layer_decay**depth}
        for chosen, decay in ((False, weight_decay), (True, 0.0)):
            members = [p for name, p in trainable if depths[name] == depth and (name in plain) == chosen]
            groups.append({"params": members, "weight_decay": decay} | rate)
    return groups


def layers_below_the_top(parameters: Sequence[tuple[str, nn.Parameter]]) -> dict[str, int]:
    """Return for each parameter's name how many layers lie above its own.

    What stands behind the last layer of encoder or decoder counts as that layer; embeddings and convolutions lie below
    the first. The token embedding is the output layer too, and so at the top.
    """
    numbers = {name: re.search(r"model\.(encoder|decoder)\.(?:layers\.(\d+))?", name) for name, _ in parameters}
    last = {"encoder": -1, "decoder": -1}
    for found in numbers.values():
        if found and found[2]:
            last[found[1]] = max(last[found[1]], int(found[2]))
    depths = {}
    for name, found in numbers.items():
        if found is None or "embed_tokens" in name or "decoder.layer_norm" in name:
            depths[name] = 0
            continue
        top = last[found[1]] if f"{found[1]}.layer_norm" in name else -1
        layer = int(found[2]) if found[2] else top
        depths[name] = last[found[1]] - layer + (last["decoder"] + 1 if found[1] == "encoder" else 0)
    return depths


def check_shares(**options: float) -> None:
    """Refuse options of the model that do not lie between 0 and 1.

    Raises:
        UserError: With the first one.
    """
    for name, value in options.items():
        if not 0.0 <= value <= 1.0:
            raise UserError(f"model.{name}: {value:g} does not lie between 0 and 1")


def learning_rate_factor(step: int, *, warmup_steps: int, max_steps: int, schedule: Schedule) -> float:
    """Return the factor on the learning rate for the optimizer step that follows `step` finished ones.

    The first step has 1 / warmup_steps, not 0, so no step is wasted; the last one ends just above 0.

    Args:
        step: Finished optimizer steps, from 0.
        warmup_steps: Steps of linear warm-up.
        max_steps: Steps of the whole run.
        schedule: What follows the warm-up.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    if schedule == "linear":
        return 1.0 - progress
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0
