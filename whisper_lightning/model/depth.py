"""LayerDrop: layers that are left out in training."""

from __future__ import annotations

import torch


def leave_out(before: torch.Tensor, after: torch.Tensor, share: float, *, training: bool) -> torch.Tensor:
    """Let a layer change nothing for a share of the utterances, drawn anew each time.

    After Fan et al. 2020 (arXiv:1909.11556), who leave it out for all utterances at once. It is computed all the same:
    so every parameter has a gradient on every rank, whatever each of them draws.

    Args:
        before: What goes into the layer, `(B, N, D)`.
        after: What comes out, `(B, N, D)`.
        share: Of the utterances, 0 to 1.
        training: False leaves nothing out.
    """
    if share == 0 or not training:
        return after
    left_out = torch.rand(len(before), 1, 1, device=before.device) < share
    return torch.where(left_out, before, after)
