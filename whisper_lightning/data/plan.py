"""Which utterances share a batch: a pure function of (durations, seed, epoch, world size).

Nothing here reads audio or keeps state. So every rank computes the same plan by itself, a resumed run computes the
plan that the interrupted one had, and an epoch can be entered at any batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from whisper_lightning.audio import SAMPLE_RATE_HZ, SAMPLES_PER_POSITION
from whisper_lightning.errors import UserError

WINDOW_SHARDS = 64
"""Shards that are mixed at a time: random enough to train on, local enough for a cache of remote shards."""


class PlannedBatch(NamedTuple):
    """Utterances that are read together.

    Attributes:
        indices: Positions in the shard index.
        num_samples: Length to which every waveform is padded, a multiple of `SAMPLES_PER_POSITION`.
    """

    indices: tuple[int, ...]
    num_samples: int


@dataclass(frozen=True)
class PlanOptions:
    """How utterances are put into batches.

    Attributes:
        batch_size: Utterances per batch and rank, at most.
        full_samples: The model's own maximum context, in samples.
        full_share: Share of the utterances that are padded to the full context, 0 to 1.
        max_batch_seconds: Cap on the padded audio of one batch, in seconds; it bounds memory. None: no cap.
    """

    batch_size: int
    full_samples: int
    full_share: float = 0.0
    max_batch_seconds: float | None = None

    def rows(self, num_samples: int) -> int:
        """Utterances that fit into one batch when each is padded to `num_samples`."""
        if self.max_batch_seconds is None:
            return self.batch_size
        fitting = int(self.max_batch_seconds * SAMPLE_RATE_HZ) // num_samples
        return max(1, min(self.batch_size, fitting))


def plan_epoch(
    num_samples: NDArray[np.integer],
    shards: NDArray[np.integer],
    options: PlanOptions,
    *,
    seed: int,
    epoch: int,
    world_size: int = 1,
    shuffle: bool = True,
) -> list[list[PlannedBatch]]:
    """Plan one epoch: a list of steps, each with one batch for every rank.

    Utterances of similar duration share a batch. Duration buckets are quantiles of the whole corpus, so an epoch has
    the same number of batches whatever its shuffling, as Lightning expects. Within a bucket utterances follow a
    shuffled order; the ranks of one step get neighbours in duration, so that none waits long for another.

    Args:
        num_samples: Length of each utterance in samples, `(U,)`.
        shards: Shard of each utterance, `(U,)`; utterances of a window of shards stay near one another.
        options: Batch size, context and cap.
        seed: The run's seed.
        epoch: Counts from 0.
        world_size: Number of ranks.
        shuffle: False for validation: sorted by duration, longest first.

    Returns:
        Steps in order, each with exactly `world_size` batches. Every utterance is in exactly one batch.

    Raises:
        UserError: There are fewer utterances than ranks.
    """
    count = len(num_samples)
    if count < world_size:
        raise UserError(f"{count} utterances cannot be shared by {world_size} processes; use fewer devices")
    rng = np.random.Generator(np.random.PCG64([seed, epoch]))
    order = _shuffled(shards, rng) if shuffle else np.argsort(-num_samples.astype(np.int64), kind="stable")
    buckets, contexts = _assign_buckets(num_samples, order, options, shuffle=shuffle)
    batches = _cut(order, buckets, contexts, num_samples, options)
    batches = _split_until_divisible(batches, world_size)
    if not shuffle:
        return [batches[i : i + world_size] for i in range(0, len(batches), world_size)]
    return _group(batches, np.argsort(order), world_size, rng)


def _shuffled(shards: NDArray[np.integer], rng: np.random.Generator) -> NDArray[np.int64]:
    """Shuffle shards, then the utterances within each window of `WINDOW_SHARDS` shards."""
    rank_of_shard = rng.permutation(int(shards.max()) + 1)
    window = rank_of_shard[shards] // WINDOW_SHARDS
    return np.lexsort((rng.random(len(shards)), window))


def _assign_buckets(
    num_samples: NDArray[np.integer], order: NDArray[np.int64], options: PlanOptions, *, shuffle: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give the bucket of each utterance, and of each bucket the context in samples that it is capped for.

    Bucket 0 holds the utterances that are padded to the full context; their number per duration bucket is fixed and
    they come first in this epoch's order, so that the counts do not depend on the epoch.
    """
    count = len(num_samples)
    if options.full_share >= 1.0:
        return np.zeros(count, np.int64), np.array([options.full_samples])
    num_batches = math.ceil(count / options.batch_size)
    # The square root balances little padding (many buckets) against random company (many batches in each).
    num_buckets = max(1, min(100, round(math.sqrt(num_batches)))) if shuffle else 1
    by_duration = np.argsort(num_samples, kind="stable")
    buckets = np.empty(count, np.int64)
    buckets[by_duration] = 1 + np.arange(count) * num_buckets // count
    contexts = np.full(num_buckets + 1, options.full_samples)
    longest = np.zeros(num_buckets + 1, np.int64)
    np.maximum.at(longest, buckets, num_samples)
    contexts[1:] = _whole_positions(longest[1:])
    if options.full_share > 0:
        ordered = buckets[order]
        by_bucket = np.argsort(ordered, kind="stable")
        starts = np.searchsorted(ordered[by_bucket], np.arange(num_buckets + 2))
        rank = np.arange(count) - starts[ordered[by_bucket]]
        sizes = np.diff(starts, append=count)[ordered[by_bucket]]
        buckets[order[by_bucket[rank < np.round(sizes * options.full_share)]]] = 0
    return buckets, contexts


def _whole_positions(num_samples: NDArray[np.int64]) -> NDArray[np.int64]:
    """Round up to whole encoder positions."""
    return -(-num_samples // SAMPLES_PER_POSITION) * SAMPLES_PER_POSITION


def _cut(
    order: NDArray[np.int64],
    buckets: NDArray[np.int64],
    contexts: NDArray[np.int64],
    num_samples: NDArray[np.integer],
    options: PlanOptions,
) -> list[PlannedBatch]:
    """Cut each bucket, in order, into batches of as many rows as its cap admits."""
    batches = []
    by_bucket = order[np.argsort(buckets[order], kind="stable")]
    starts = np.searchsorted(buckets[by_bucket], np.arange(len(contexts) + 1))
    for bucket, context in enumerate(contexts):
        members = by_bucket[starts[bucket] : starts[bucket + 1]]
        first = 0
        while first < len(members):
            # One unshuffled bucket is sorted, longest first: its rows per batch follow the batch, not the bucket.
            if len(contexts) == 2 and bucket == 1:
                context = int(_whole_positions(num_samples[members[first:]].max(keepdims=True).astype(np.int64))[0])
            chosen = members[first : first + options.rows(int(context))]
            first += len(chosen)
            longest = num_samples[chosen].max(keepdims=True).astype(np.int64)
            padded = options.full_samples if bucket == 0 else int(_whole_positions(longest)[0])
            batches.append(PlannedBatch(tuple(chosen.tolist()), padded))
    return batches


def _split_until_divisible(batches: list[PlannedBatch], world_size: int) -> list[PlannedBatch]:
    """Halve the largest batches until every rank gets equally many; a half keeps its context.

    The context stays because an utterance must decode alike whatever the number of ranks.
    """
    batches = list(batches)
    while len(batches) % world_size:
        largest = max(range(len(batches)), key=lambda i: len(batches[i].indices))
        indices, padded = batches[largest]
        assert len(indices) > 1, "fewer utterances than ranks"
        half = len(indices) // 2
        batches[largest : largest + 1] = [PlannedBatch(indices[:half], padded), PlannedBatch(indices[half:], padded)]
    return batches


def _group(
    batches: list[PlannedBatch], position: NDArray[np.int64], world_size: int, rng: np.random.Generator
) -> list[list[PlannedBatch]]:
    """Give the ranks of each step batches of similar work, and shuffle the steps.

    Steps are shuffled within stretches of the epoch's order, which keeps a window of shards together.
    """
    work = [len(batch.indices) * batch.num_samples for batch in batches]
    by_work = sorted(range(len(batches)), key=lambda i: (work[i], i))
    steps = [[batches[i] for i in by_work[k : k + world_size]] for k in range(0, len(by_work), world_size)]
    when = [float(np.mean([position[list(batch.indices)].mean() for batch in step])) for step in steps]
    stretch = max(1, len(position) // max(1, len(steps)) * 256)
    keys = rng.random(len(steps))
    ordered = sorted(range(len(steps)), key=lambda i: (int(when[i]) // stretch, keys[i]))
    return [steps[i] for i in ordered]
