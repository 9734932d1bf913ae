"""Thirty seconds for the price of the speech: of the silence behind it, few positions are computed.

A Whisper hears 30 s, 1,500 encoder positions, of which a 5 s clip fills 250. Its attention rests in the silence that
follows, so a model without it is another one; but the silence is almost the same everywhere, so a part of it will do.

The tail is cut into cells. Of each, one position is computed, with its own position embedding, and counts in attention
for as many keys as the cell has: a coarse quadrature of the same sum. What it misses hardly depends on the speech. So a
recording of silence alone goes through every layer both ways, whole and sampled, and the difference is added to the
sampled tail of every utterance, as multigrid methods correct what a coarse grid misses.

Some silent positions are unlike the rest, their states up to twenty times as long. No other can stand for one of these,
but they hardly depend on the speech either: all utterances hear them as they are in the recording of silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from whisper_lightning.errors import UserError
from whisper_lightning.model.depth import leave_out

MARGIN = 3
"""Positions behind the speech that are computed exactly; the windows of its last frames reach into two."""
LOUD = 3.0
"""Silent positions whose states are so many times as long as the median's are the loud ones."""
FLOOR = -0.7
"""Log-mel of the recording of silence: the floor below speech of usual loudness."""


class Sample(NamedTuple):
    """The silence behind the speech of one batch, as far as it is computed.

    Attributes:
        positions: `(S,)` int64, the positions that are computed: the exact ones, then one of each cell.
        log_weights: `(1, 1, 1, S + R)`: the logarithm of what each counts for in attention, and 0 for R loud ones.
        loud: The loud positions as silence has them, `(1, R, D)` each: the input of each layer, the output of the last.
        defects: For each layer what to add to its output, `(1, S, D)`; zero where it is exact.
    """

    positions: torch.Tensor
    log_weights: torch.Tensor
    loud: list[torch.Tensor]
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

    Raises:
        UserError: There are none.
    """

    def __init__(self, encoder: WhisperEncoder, num_cells: int | None) -> None:
        if num_cells is not None and num_cells < 1:
            raise UserError(f"model.tail: {num_cells}; give a number of cells, such as 40, or exact")
        self.num_cells = num_cells
        self._end: int = encoder.config.max_source_positions - 1
        self._lengths: NDArray[np.float32] = np.empty(0, np.float32)
        self._kept: tuple[list[object], list[torch.Tensor]] = [], []
        if num_cells is not None:
            self._lengths = _silence(encoder)[-2][0].norm(dim=-1).float().cpu().numpy()

    def num_frames(self, num_frames: int) -> int:
        """Return the log-mel frames that a batch needs whose speech has so many; all frames if nothing can be saved."""
        exact = num_frames // 2 + MARGIN
        if self.num_cells is None or exact + self.num_cells >= self._end:
            return 2 * (self._end + 1)
        return 2 * (exact + 1)

    def num_positions(self, num_frames: int) -> int:
        """Return the positions that are computed of `num_frames` log-mel frames."""
        exact = num_frames // 2 - 1
        return exact + 1 if exact == self._end else exact + len(self._choose(exact)[0])

    def sample(self, encoder: WhisperEncoder, num_frames: int) -> Sample | None:
        """Sample the silence behind `num_frames` log-mel frames with the weights of now; None if nothing is left."""
        exact = num_frames // 2 - 1
        if exact == self._end:
            return None
        cells, counts, loud = self._choose(exact)
        weights = np.concatenate([np.ones(exact), counts, np.ones(len(loud))]).astype(np.float32)
        arrays = np.concatenate([np.arange(exact), cells, loud]), np.log(weights)[None, None, None]
        device = encoder.embed_positions.weight.device
        places, log_weights = (torch.from_numpy(each).to(device, non_blocking=True) for each in arrays)
        behind, num_cells, silence = places[exact:], len(cells), self._silent_states(encoder)
        sample = Sample(places[: exact + num_cells], log_weights, [silence[0][:, behind[num_cells:]]], [])
        with _without_dropout(encoder):
            for layer, (before, after) in zip(encoder.layers, pairwise(silence), strict=True):
                coarse = torch.cat([before[:, behind[:num_cells]], sample.loud[-1]], dim=1)
                heard = layer.self_attn_layer_norm(torch.cat([before[:, :exact], coarse], dim=1))
                coarse = layer(coarse, log_weights, key_value_states=heard)
                defect = (after[:, behind] - coarse).detach()
                sample.defects.append(F.pad(defect[:, :num_cells], (0, 0, exact, 0)))
                # What silence has, with the gradient of one row.
                sample.loud.append(coarse[:, num_cells:] + defect[:, num_cells:])
        return sample

    def _silent_states(self, encoder: WhisperEncoder) -> list[torch.Tensor]:
        """Encode silence; once for all batches of an evaluation, where the weights stay what they are."""
        trained = any(weight.requires_grad for weight in encoder.parameters())
        if torch.is_grad_enabled() and trained:  # they change after each, and nothing is held in memory meanwhile
            self._kept = [], []
            return _silence(encoder)
        weights: list[object] = [(each.device, each.dtype, each._version) for each in encoder.parameters()]
        if self._kept[0] != [id(encoder), *weights]:
            self._kept = [id(encoder), *weights], _silence(encoder)
        return self._kept[1]

    def _choose(self, start: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Choose positions of the tail that begins at `start`, what each counts for, and those that stand alone."""
        tail = np.arange(start, self._end + 1)
        loud = self._lengths[start:] > LOUD * np.median(self._lengths)
        loud[-1] = True  # it sees the end of the recording
        ordinary = tail[~loud]
        cells: list[NDArray[np.int64]] = np.split(ordinary, _borders(len(ordinary), self.num_cells or 0))
        # The quietest of its middle: one that may become loud in another recording would count for the whole cell.
        middles = [cell[len(cell) // 4 : len(cell) - len(cell) // 4] for cell in cells]
        chosen = np.array([middle[self._lengths[middle].argmin()] for middle in middles], np.int64)
        return chosen, np.array([len(cell) for cell in cells]), tail[loud]


def encode(encoder: WhisperEncoder, features: torch.Tensor, sample: Sample | None) -> Encoded:
    """Run the encoder over `(B, F, T)` log-mel frames, and over the silence that follows them if there is a sample."""
    states, positions = stem(encoder, features), encoder.embed_positions.weight
    if sample is not None:
        # The last position sees the end of the features, the one before it silence, as all that follow.
        silent = states[:, -2:-1].expand(-1, len(sample.positions) - states.shape[1] + 1, -1)
        states, positions = torch.cat([states[:, :-1], silent], dim=1), positions[sample.positions]
    states = F.dropout(states + positions[: states.shape[1]], p=encoder.dropout, training=encoder.training)
    if sample is None:
        for layer in encoder.layers:
            states = leave_out(states, layer(states, None), encoder.layerdrop, training=encoder.training)
        return Encoded(encoder.layer_norm(states), None)
    for layer, loud, defect in zip(encoder.layers, sample.loud, sample.defects, strict=False):
        heard = layer.self_attn_layer_norm(_join(states, loud))
        after = layer(states, sample.log_weights, key_value_states=heard) + defect
        states = leave_out(states, after, encoder.layerdrop, training=encoder.training)
    return Encoded(encoder.layer_norm(_join(states, sample.loud[-1])), sample.log_weights)


def _join(states: torch.Tensor, loud: torch.Tensor) -> torch.Tensor:
    """Put the loud positions, which are one row, behind `(B, S, D)` states."""
    return torch.cat([states, loud.expand(len(states), -1, -1)], dim=1)


def _borders(num_positions: int, num_cells: int) -> NDArray[np.int64]:
    """Cut a row into cells that grow from both of its ends to the middle, each by the same ratio; return the cuts."""
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
    """What silence makes of a model is computed without chance."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
