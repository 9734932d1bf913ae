"""Thirty seconds for the price of the speech: of the silence behind it, few positions are computed.

A Whisper hears 30 s, 1,500 encoder positions, of which a 5 s clip fills 250. Its attention rests in the silence that
follows, so a model without it is another one; but the silence is almost the same everywhere, so a part of it will do.

The tail is cut into cells. Of each, one position is computed, with its own position embedding, and counts in attention
for as many keys as the cell has: a coarse quadrature of the same sum. Some silent positions are unlike the rest, their
states tens of times as long; each of these stands for itself. What such a sum still misses hardly depends on the
speech. So a recording of silence alone goes through every layer both ways, whole and sampled, and the difference is
added to the sampled tail of every utterance, as multigrid methods correct what a coarse grid misses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F
from transformers.models.whisper.modeling_whisper import WhisperEncoder

MARGIN = 3
"""Positions behind the speech that are computed exactly; the windows of its last frames reach into two."""
LOUD = 3.0
"""Silent positions whose states are so many times as long as the median's stand for themselves."""
FLOOR = -0.7
"""Log-mel of the recording of silence: the floor below speech of usual loudness."""


class Sample(NamedTuple):
    """The silence behind the speech of one batch, as far as it is computed.

    Attributes:
        positions: `(S,)` int64, all positions that are computed: the exact ones, the sample, and the last one.
        log_weights: `(1, 1, 1, S)`: the logarithm of what each counts for in attention.
        defects: For each encoder layer what to add to its output, `(1, S, D)`; zero where it is exact.
    """

    positions: torch.Tensor
    log_weights: torch.Tensor
    defects: list[torch.Tensor]


class Encoded(NamedTuple):
    """What the decoder attends to.

    Attributes:
        states: `(B, S, D)`.
        log_weights: `(1, 1, 1, S)`: the logarithm of what each position counts for; None where each counts for itself.
    """

    states: torch.Tensor
    log_weights: torch.Tensor | None


class Tail:
    """Where the silence is sampled, for one model. The weights that a run starts from decide it.

    Args:
        encoder: Its encoder.
        num_cells: Cells of the tail; None computes every position.
    """

    def __init__(self, encoder: WhisperEncoder, num_cells: int | None) -> None:
        self.num_cells = num_cells
        self._end: int = encoder.config.max_source_positions - 1
        self._lengths: NDArray[np.float32] = np.empty(0, np.float32)
        if num_cells is not None:
            self._lengths = _silence(encoder)[-2][0].norm(dim=-1).float().cpu().numpy()

    def num_frames(self, num_frames: int) -> int:
        """Give the log-mel frames that a batch needs whose speech has so many; all frames if nothing can be saved."""
        exact = num_frames // 2 + MARGIN
        if self.num_cells is None or exact + self.num_cells >= self._end:
            return 2 * (self._end + 1)
        if exact + len(self._choose(exact)[0]) >= self._end:
            return 2 * (self._end + 1)
        return 2 * (exact + 1)

    def num_positions(self, num_frames: int) -> int:
        """Give the positions that are computed of `num_frames` log-mel frames."""
        exact = num_frames // 2 - 1
        return exact + 1 if exact == self._end else exact + len(self._choose(exact)[0]) + 1

    def sample(self, encoder: WhisperEncoder, num_frames: int) -> Sample | None:
        """Sample the silence behind `num_frames` log-mel frames with the weights of now; None if nothing is left."""
        exact = num_frames // 2 - 1
        if exact == self._end:
            return None
        chosen, counts = self._choose(exact)
        device = encoder.embed_positions.weight.device
        positions = torch.from_numpy(np.concatenate([np.arange(exact), chosen, [self._end]]))
        weights = torch.from_numpy(np.concatenate([np.ones(exact), counts, [1]]).astype(np.float32))
        positions, log_weights = (each.to(device, non_blocking=True) for each in (positions, weights.log()))
        log_weights = log_weights[None, None, None]
        states = _silence(encoder)
        with _without_dropout(encoder):
            sampled = [
                layer(before[:, positions], log_weights)
                for layer, before in zip(encoder.layers, states[:-1], strict=True)
            ]
        defects = [after[:, positions] - coarse for after, coarse in zip(states[1:], sampled, strict=True)]
        for defect in defects:
            defect[:, :exact] = 0
        return Sample(positions, log_weights, defects)

    def _choose(self, start: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Choose positions of the tail that begins at `start`, and what each counts for."""
        tail = np.arange(start, self._end)
        lengths = self._lengths[start : self._end]
        loud = lengths > LOUD * np.median(self._lengths)
        ordinary = tail[~loud]
        cells: list[NDArray[np.int64]] = np.split(ordinary, _borders(len(ordinary), self.num_cells or 0))
        # The quietest of its middle: one that may become loud in another recording would count for the whole cell.
        middles = [cell[len(cell) // 4 : len(cell) - len(cell) // 4] for cell in cells]
        chosen = [middle[self._lengths[middle].argmin()] for middle in middles]
        positions = np.concatenate([chosen, tail[loud]]).astype(np.int64)
        counts = np.concatenate([[len(cell) for cell in cells], np.ones(np.count_nonzero(loud))]).astype(np.int64)
        order = positions.argsort()
        return positions[order], counts[order]


def encode(encoder: WhisperEncoder, features: torch.Tensor, sample: Sample | None) -> Encoded:
    """Run the encoder over `(B, F, T)` log-mel frames, and over the silence that follows them if there is a sample."""
    states, positions, log_weights = stem(encoder, features), encoder.embed_positions.weight, None
    if sample is not None:
        # The last position sees the end of the recording, the one before it silence, as all that follow.
        exact, num_silent = states.shape[1] - 1, len(sample.positions) - states.shape[1]
        silent = states[:, exact - 1 : exact].expand(-1, num_silent, -1)
        states = torch.cat([states[:, :exact], silent, states[:, exact:]], dim=1)
        positions, log_weights = positions[sample.positions], sample.log_weights
    states = F.dropout(states + positions[: states.shape[1]], p=encoder.dropout, training=encoder.training)
    for number, layer in enumerate(encoder.layers):
        states = layer(states, log_weights)
        if sample is not None:
            states = states + sample.defects[number]
    return Encoded(encoder.layer_norm(states), log_weights)


def _borders(num_positions: int, num_cells: int) -> NDArray[np.int64]:
    """Cut a row into cells that grow from both of its ends to the middle, each by the same ratio; give the cuts."""
    if num_cells >= num_positions:
        return np.arange(1, num_positions)
    steps = np.arange(max(1, num_cells // 2))
    low, high = 1.0, 4.0
    for _ in range(50):
        ratio = (low + high) / 2
        low, high = (ratio, high) if (ratio**steps).sum() < num_positions / 2 else (low, ratio)
    widths = np.concatenate([ratio**steps, ratio ** steps[::-1]])
    cuts = np.rint(widths.cumsum()[:-1] * num_positions / widths.sum()).astype(np.int64)
    return np.unique(cuts[(cuts > 0) & (cuts < num_positions)])


@torch.no_grad()
def _silence(encoder: WhisperEncoder) -> list[torch.Tensor]:
    """Encode a recording of silence: the input of each layer and the output of the last, `(1, M, D)` each."""
    frames = torch.full((1, encoder.num_mel_bins, 8), FLOOR, device=encoder.embed_positions.weight.device)
    first, inner, _, last = torch.split(stem(encoder, frames), 1, dim=1)  # every inner position is alike
    embedding = encoder.embed_positions.weight
    states = [torch.cat([first, inner.expand(-1, len(embedding) - 2, -1), last], dim=1) + embedding]
    with _without_dropout(encoder):
        for layer in encoder.layers:
            states.append(layer(states[-1], None))
    return states


def stem(encoder: WhisperEncoder, features: torch.Tensor) -> torch.Tensor:
    """Run the convolutions: `(B, F, T)` log-mel frames to `(B, T / 2, D)`."""
    assert features.shape[-1] % 2 == 0, "an odd number of frames"
    return F.gelu(encoder.conv2(F.gelu(encoder.conv1(features)))).transpose(1, 2)


@contextmanager
def _without_dropout(module: nn.Module) -> Iterator[None]:
    """What silence makes of a model is computed without chance, and without gradients."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)
