"""Which utterances share a window of the model's context: a pure function of durations, speakers, tokens and the seed.

It is the same in every epoch, so that every epoch has as many batches: the plan takes a window for an utterance.
What is drawn anew in each epoch, `Windows.arrange`, changes no window's length.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from whisper_lightning.audio.constants import POSITIONS_PER_SECOND, SAMPLE_RATE_HZ, SAMPLES_PER_POSITION

PAUSE_SECONDS = (0.2, 1.0)
"""Between two utterances of a window."""
SHORTEST_PAUSE, LONGEST_PAUSE = (round(POSITIONS_PER_SECOND * seconds) for seconds in PAUSE_SECONDS)
SMALLEST_TARGET = 1 / 3
"""Windows are filled up to a share of the context that is drawn for each, from this one (10 s of 30) to the whole."""
ALONE = -1
"""In place of a speaker: the utterance is not packed."""


class Arrangement(NamedTuple):
    """A window in one epoch: its utterances in order, and the encoder positions between each two of them."""

    indices: list[int]
    pauses: list[int]


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of utterances, in arrays.

    Attributes:
        indices: The utterances, window after window, ascending in each, `(U,)`.
        offsets: Where in `indices` each window begins, and the last one ends, `(W + 1,)`.
        silence: Encoder positions of all pauses of each window, `(W,)`.
        num_samples: Length of each, of whole encoder positions, `(W,)`.
    """

    indices: NDArray[np.int32]
    offsets: NDArray[np.int64]
    silence: NDArray[np.int32]
    num_samples: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.silence)

    def __str__(self) -> str:
        several = self.sizes > 1
        seconds = self.num_samples[several].sum(dtype=np.int64) / SAMPLE_RATE_HZ / max(1, np.count_nonzero(several))
        packed, count = self.sizes[several].sum(), len(self.indices)
        return f"{packed} of {count} utterances in {np.count_nonzero(several)} windows of {seconds:.1f} s on average"

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Utterances of each window, `(W,)`."""
        return np.diff(self.offsets)

    @property
    def first(self) -> NDArray[np.int32]:
        """The first utterance of each window in the index, `(W,)`."""
        return self.indices[self.offsets[:-1]]

    def of(self, members: NDArray[np.int32]) -> Windows:
        """Return the same windows with `members[i]` in place of each utterance i."""
        return replace(self, indices=members[self.indices])

    def take(self, numbers: NDArray[np.integer]) -> Windows:
        """Return some of the windows, in that order."""
        parts = [self.indices[self.offsets[number] : self.offsets[number + 1]] for number in numbers]
        offsets = np.append(0, np.cumsum(self.sizes[numbers]))
        return Windows(np.concatenate(parts), offsets, self.silence[numbers], self.num_samples[numbers])

    def arrange(self, window: int, *, seed: int, epoch: int) -> Arrangement:
        """Draw a window's order and pauses for an epoch; the pauses' sum is always the same."""
        indices = self.indices[self.offsets[window] : self.offsets[window + 1]]
        rng = np.random.Generator(np.random.PCG64([seed, epoch, window, 1]))  # without the 1, window 0 is the plan's
        left, pauses = int(self.silence[window]), list[int]()
        for others in range(len(indices) - 2, -1, -1):
            shortest = max(SHORTEST_PAUSE, left - others * LONGEST_PAUSE)
            longest = min(LONGEST_PAUSE, left - others * SHORTEST_PAUSE)
            pauses.append(int(rng.integers(shortest, longest + 1)))
            left -= pauses[-1]
        # The last ones had less choice; shuffled, no place in a window is special.
        return Arrangement(rng.permutation(indices).tolist(), rng.permutation(pauses).astype(int).tolist())


def draw_packed(count: int, share: float, seed: int) -> NDArray[np.bool_]:
    """Choose the utterances that are packed, `(U,)`: a share of all, the same for the whole run."""
    packed = np.zeros(count, dtype=bool)
    packed[np.random.Generator(np.random.PCG64([seed, 0, 0, 2])).permutation(count)[: round(share * count)]] = True
    return packed


def compose_windows(
    num_samples: NDArray[np.integer],
    speakers: NDArray[np.integer],
    num_tokens: NDArray[np.integer],
    *,
    max_samples: int,
    max_tokens: int,
    seed: int,
) -> Windows:
    """Fill windows with utterances of one speaker that follow one another in the index.

    Args:
        num_samples: Length of each utterance, `(U,)`.
        speakers: Who speaks, by number; `ALONE` for an utterance that has a window of its own, `(U,)`.
        num_tokens: Tokens of each one's text and its two time stamps, `(U,)`.
        max_samples: The model's context, a multiple of `SAMPLES_PER_POSITION`.
        max_tokens: Most tokens of texts and time stamps in one window of several utterances.
        seed: The run's seed.

    Returns:
        Windows that have each utterance once.
    """
    assert max_samples % SAMPLES_PER_POSITION == 0
    count, context = len(num_samples), max_samples // SAMPLES_PER_POSITION
    rng = np.random.Generator(np.random.PCG64([seed, 0, 0, 3]))
    targets = rng.integers(int(SMALLEST_TARGET * context), context + 1, count)
    pauses = rng.integers(SHORTEST_PAUSE, LONGEST_PAUSE + 1, count)
    positions = -(-num_samples.astype(np.int64) // SAMPLES_PER_POSITION)
    order = np.argsort(speakers, kind="stable")
    begins = np.ones(count, dtype=bool)
    num_alone = int(np.count_nonzero(speakers == ALONE))  # the first of the order
    speaker = target = length = tokens = ALONE
    columns = [column[order[num_alone:]].tolist() for column in (speakers, targets, pauses, positions, num_tokens)]
    for i, (who, aim, pause, size, text) in enumerate(zip(*columns, strict=True), start=num_alone):
        if who == speaker and length + pause + size <= target and tokens + text <= max_tokens:
            begins[i] = False
            length, tokens = length + pause + size, tokens + text
        else:
            speaker, target, length, tokens = who, aim, size, text
    starts = np.flatnonzero(begins)
    silence = np.add.reduceat(np.where(begins, 0, pauses[order]), starts)
    lengths = np.add.reduceat(positions[order], starts) + silence
    return Windows(
        order.astype(np.int32),
        np.append(starts, count),
        silence.astype(np.int32),
        (lengths * SAMPLES_PER_POSITION).astype(np.int32),
    )
