"""Which utterances share a batch: a pure function of (durations, seed, epoch, world size).

Nothing here reads audio or keeps state. So every rank computes the same plan by itself, a resumed run computes the
plan that the interrupted one had, and an epoch can be entered at any batch. A corpus may have ten million utterances:
plans are arrays, and loops go over buckets, never over utterances or batches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from whisper_lightning.audio.constants import SAMPLE_RATE_HZ, SAMPLES_PER_POSITION
from whisper_lightning.errors import UserError

WINDOW_SHARDS = 64
"""Shards that are mixed at a time: random enough to train on, local enough for a cache of remote shards."""


class PlannedBatch(NamedTuple):
    """Utterances that are read together.

    Attributes:
        indices: Positions in the shard index; where utterances are packed, numbers of windows.
        num_samples: Length to which every waveform is padded, a multiple of `SAMPLES_PER_POSITION`.
    """

    indices: tuple[int, ...]
    num_samples: int


@dataclass(frozen=True, eq=False)
class Plan(Sequence[PlannedBatch]):
    """Batches in the order in which they are read, held in three arrays.

    Attributes:
        indices: The utterances, batch after batch.
        offsets: Where in `indices` each batch begins, and the last one ends, `(P + 1,)` for P batches.
        num_samples: Length to which the waveforms of each batch are padded, `(P,)`.
    """

    indices: NDArray[np.int32]
    offsets: NDArray[np.int64]
    num_samples: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.num_samples)

    @overload
    def __getitem__(self, i: int) -> PlannedBatch: ...

    @overload
    def __getitem__(self, i: slice) -> Plan: ...

    def __getitem__(self, i: int | slice) -> PlannedBatch | Plan:
        """Return batch `i`, or a plan of the batches of a slice, which must be contiguous: it shares the arrays."""
        if isinstance(i, slice):
            start, stop, step = i.indices(len(self))
            assert step == 1
            return Plan(self.indices, self.offsets[start : max(start, stop) + 1], self.num_samples[start:stop])
        i = range(len(self))[i]
        return PlannedBatch(
            tuple(self.indices[self.offsets[i] : self.offsets[i + 1]].tolist()), int(self.num_samples[i])
        )

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Utterances of each batch, `(P,)`."""
        return np.diff(self.offsets)

    @property
    def nbytes(self) -> int:
        """Memory of the arrays, in bytes."""
        return self.indices.nbytes + self.offsets.nbytes + self.num_samples.nbytes

    def take(self, batches: NDArray[np.integer]) -> Plan:
        """Return a plan of the named batches, in that order, with arrays of its own."""
        sizes = self.sizes[batches]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        source = np.arange(offsets[-1]) + np.repeat(self.offsets[batches] - offsets[:-1], sizes)
        return Plan(self.indices[source], offsets, self.num_samples[batches])


@dataclass(frozen=True)
class PlanOptions:
    """How utterances are put into batches.

    Attributes:
        batch_size: Utterances per batch and rank, at most.
        max_batch_seconds: Cap on the padded audio of one batch, in seconds; it bounds memory. None: no cap.
    """

    batch_size: int
    max_batch_seconds: float | None = None

    def rows(self, num_samples: NDArray[np.integer]) -> NDArray[np.int64]:
        """Utterances that fit into one batch when each is padded to `num_samples`, for each of these."""
        if self.max_batch_seconds is None:
            return np.full(len(num_samples), self.batch_size)
        fitting = int(self.max_batch_seconds * SAMPLE_RATE_HZ) // num_samples.astype(np.int64)
        return np.clip(fitting, 1, self.batch_size)


def plan_epoch(
    num_samples: NDArray[np.integer],
    shards: NDArray[np.integer],
    options: PlanOptions,
    *,
    seed: int,
    epoch: int,
    rank: int = 0,
    world_size: int = 1,
    shuffle: bool = True,
) -> Plan:
    """Plan the batches of one rank for one epoch; batch k of every rank is read in step k.

    Utterances of similar duration share a batch. Duration buckets are quantiles of the whole corpus, so an epoch has
    the same number of batches whatever its shuffling, as Lightning expects. Within a bucket utterances follow a
    shuffled order; the ranks of one step get neighbours in duration, so that none waits long for another.

    Args:
        num_samples: Length of each utterance in samples, `(U,)`.
        shards: Shard of each utterance, `(U,)`; utterances of a window of shards stay near one another.
        options: Batch size and cap.
        seed: The run's seed.
        epoch: Counts from 0.
        rank: Whose batches to give. What the other ranks get is worked out too, and forgotten.
        world_size: Number of ranks.
        shuffle: False for validation: sorted by duration, longest first.

    Returns:
        The rank's batches; every rank has equally many, and every utterance is in exactly one batch of one rank.

    Raises:
        UserError: There are fewer utterances than ranks, or every batch has one utterance and they do not share out.
    """
    count = len(num_samples)
    if count < world_size:
        raise UserError(f"{count} utterances cannot be shared by {world_size} processes; use fewer devices")
    assert 0 <= rank < world_size
    assert count <= np.iinfo(np.int32).max
    rng = np.random.Generator(np.random.PCG64([seed, epoch]))
    order = _shuffled(shards, rng) if shuffle else _by_duration(num_samples, longest_first=True)
    batches = _cut_buckets(num_samples, order, options) if shuffle else _cut_sorted(num_samples, order, options)
    batches = _split_until_divisible(batches, world_size)
    if shuffle:
        return batches.take(_group(batches, order, world_size, rng)[:, rank])
    return batches.take(np.arange(rank, len(batches), world_size))


def _shuffled(shards: NDArray[np.integer], rng: np.random.Generator) -> NDArray[np.int32]:
    """Shuffle shards, then the utterances within each window of `WINDOW_SHARDS` shards."""
    window_of_shard = rng.permutation(int(shards.max()) + 1) // WINDOW_SHARDS
    keys = rng.random(len(shards))
    # The smallest integers: numpy sorts up to 16 bits by radix, several times faster.
    window = window_of_shard.astype(np.min_scalar_type(window_of_shard.max()))[shards]
    order = np.argsort(window, kind="stable").astype(np.int32)
    ends = np.cumsum(np.bincount(window))
    for start, end in zip(np.append(0, ends[:-1]), ends, strict=True):
        members = order[start:end]
        order[start:end] = members[np.argsort(keys[members], kind="stable")]
    return order


def _by_duration(num_samples: NDArray[np.integer], *, longest_first: bool = False) -> NDArray[np.int32]:
    """Sort by duration; utterances of equal duration stay in the order of the index."""
    # Duration above, position below in one integer: numpy sorts these several times faster than `argsort` does.
    keys = num_samples.astype(np.int64) * (-1 if longest_first else 1) << 32
    keys |= np.arange(len(keys))
    keys.sort()
    return (keys & 0xFFFFFFFF).astype(np.int32)


def _whole_positions(num_samples: NDArray[np.integer]) -> NDArray[np.int64]:
    """Round up to whole encoder positions."""
    return -(-num_samples.astype(np.int64) // SAMPLES_PER_POSITION) * SAMPLES_PER_POSITION


def _cut_buckets(num_samples: NDArray[np.integer], order: NDArray[np.int32], options: PlanOptions) -> Plan:
    """Cut each duration bucket, in this epoch's order, into batches of as many rows as its longest admits."""
    count = len(num_samples)
    # The square root balances little padding (many buckets) against random company (many batches in each).
    num_buckets = max(1, min(100, round(math.sqrt(math.ceil(count / options.batch_size)))))
    by_duration = _by_duration(num_samples)
    ends = -(-np.arange(num_buckets + 1) * count // num_buckets)
    buckets = np.empty(count, np.uint8)
    buckets[by_duration] = np.repeat(np.arange(num_buckets, dtype=np.uint8), np.diff(ends))
    rows = options.rows(_whole_positions(num_samples[by_duration[ends[1:] - 1]]))
    starts = [np.arange(start, end, each) for (start, end), each in zip(pairwise(ends), rows, strict=True)]
    return _batches(order[np.argsort(buckets[order], kind="stable")], np.concatenate(starts), num_samples)


def _cut_sorted(num_samples: NDArray[np.integer], order: NDArray[np.int32], options: PlanOptions) -> Plan:
    """Cut utterances in order, longest first, into batches of as many rows as the first of each admits."""
    return _batches(order, _cut_growing(options.rows(_whole_positions(num_samples[order]))), num_samples)


def _batches(order: NDArray[np.int32], starts: NDArray[np.int64], num_samples: NDArray[np.integer]) -> Plan:
    """Return the batches that begin at `starts`, each as long as its longest utterance."""
    padded = _whole_positions(np.maximum.reduceat(num_samples[order], starts))
    return Plan(order, np.append(starts, len(order)), padded.astype(np.int32))


def _cut_growing(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the first utterance of each batch, where a batch that begins at i may have `rows[i]`, which never fall."""
    starts, first = [np.empty(0, np.int64)], 0
    for size in range(rows[0], rows[-1] + 1):
        starts.append(np.arange(first, np.searchsorted(rows, size, side="right"), size))
        first += size * len(starts[-1])
    return np.concatenate(starts)


def _split_until_divisible(batches: Plan, world_size: int) -> Plan:
    """Halve the largest batches until every rank gets equally many; a half keeps its length.

    It stays because an utterance must decode alike whatever the number of ranks.
    """
    while len(batches) % world_size:
        largest = int(np.argmax(batches.sizes))
        half = batches.sizes[largest] // 2
        if half == 0:
            raise UserError(
                f"{len(batches)} utterances, each a batch of its own, cannot be shared equally by {world_size} "
                "processes; raise data.batch_size (or data.max_batch_seconds), or use fewer devices"
            )
        batches = Plan(
            batches.indices,
            np.insert(batches.offsets, largest + 1, batches.offsets[largest] + half),
            np.insert(batches.num_samples, largest, batches.num_samples[largest]),
        )
    return batches


def _group(batches: Plan, order: NDArray[np.int32], world_size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the ranks of each step batches of similar work, and shuffle the steps: batch numbers, `(steps, ranks)`.

    Steps are shuffled within stretches of the epoch's order, which keeps a window of shards together.
    """
    steps = np.argsort(batches.sizes * batches.num_samples, kind="stable").reshape(-1, world_size)
    position = np.empty_like(order)
    position[order] = np.arange(len(order), dtype=np.int32)
    sums = np.add.reduceat(position[batches.indices], batches.offsets[:-1], dtype=np.int64)
    when = (sums / batches.sizes)[steps].mean(axis=1)
    stretch = max(1, len(order) // max(1, len(steps)) * 256)
    return steps[np.lexsort((rng.random(len(steps)), when.astype(np.int64) // stretch))]
