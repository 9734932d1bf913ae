"""What is decayed, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

from torch import nn

Schedule = Literal["linear", "cosine", "constant"]


def parameter_groups(parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """Split trainable named parameters into decayed matrices and undecayed biases and norms.

    By name, because a parameter that is sharded over processes is a vector whatever it was.
    """
    trainable = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
    plain = {name for name, _ in trainable if name.endswith("bias") or "layer_norm" in name}
    return [
        {"params": [parameter for name, parameter in trainable if name not in plain], "weight_decay": weight_decay},
        {"params": [parameter for name, parameter in trainable if name in plain], "weight_decay": 0.0},
    ]


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
