"""The plan: every utterance once, equal epochs, equal ranks, little padding."""

import hashlib
from typing import Any

import numpy as np
import pytest

from whisper_lightning.data.plan import Plan, PlannedBatch, PlanOptions, plan_epoch
from whisper_lightning.errors import UserError

FULL = 30 * 16_000


def corpus(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    seconds = np.clip(rng.lognormal(1.55, 0.4, count), 0.3, 30)
    return (seconds * 16_000).astype(np.int32), (np.arange(count) // 50).astype(np.int32)


def plan_steps(*corpus_and_options: Any, world_size: int = 1, **choices: Any) -> list[tuple[PlannedBatch, ...]]:
    """What every rank plans by itself, side by side: a step is one batch of each."""
    ranks = [plan_epoch(*corpus_and_options, rank=r, world_size=world_size, **choices) for r in range(world_size)]
    return list(zip(*ranks, strict=True))


def flat(steps: list[tuple[PlannedBatch, ...]]) -> list[PlannedBatch]:
    return [batch for step in steps for batch in step]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("cap", [None, 120.0])
@pytest.mark.parametrize("shuffle", [True, False])
def test_each_utterance_once_and_fitting(world_size: int, cap: float | None, shuffle: bool) -> None:
    num_samples, shards = corpus(1003)
    options = PlanOptions(16, cap)
    steps = plan_steps(num_samples, shards, options, seed=1, epoch=3, world_size=world_size, shuffle=shuffle)
    batches = flat(steps)
    assert sorted(i for batch in batches for i in batch.indices) == list(range(1003))
    for batch in batches:
        assert 1 <= len(batch.indices) <= 16
        assert batch.num_samples % 320 == 0
        assert max(num_samples[list(batch.indices)]) <= batch.num_samples <= FULL
        assert cap is None or len(batch.indices) == 1 or len(batch.indices) * batch.num_samples <= cap * 16_000


@pytest.mark.parametrize("cap", [None, 90.0])
def test_epochs_have_equally_many_batches(cap: float | None) -> None:
    """Lightning caches the first epoch's length: longer epochs would silently lose utterances."""
    num_samples, shards = corpus(997)
    options = PlanOptions(16, cap)
    lengths = {len(plan_steps(num_samples, shards, options, seed=1, epoch=e, world_size=2)) for e in range(20)}
    assert len(lengths) == 1


def test_pure_function_and_new_order_each_epoch() -> None:
    num_samples, shards = corpus(300)
    options = PlanOptions(8)
    first = plan_steps(num_samples, shards, options, seed=1, epoch=0)
    assert first == plan_steps(num_samples, shards, options, seed=1, epoch=0)
    assert first != plan_steps(num_samples, shards, options, seed=1, epoch=1)
    assert first != plan_steps(num_samples, shards, options, seed=2, epoch=0)
    together = {batch.indices for batch in flat(first)}
    again = {batch.indices for batch in flat(plan_steps(num_samples, shards, options, seed=1, epoch=1))}
    assert not together & again, "the same company in each epoch"


def test_batches_are_full_and_little_is_padding() -> None:
    num_samples, shards = corpus(3200)
    batches = flat(plan_steps(num_samples, shards, PlanOptions(16), seed=1, epoch=0))
    assert sum(len(batch.indices) == 16 for batch in batches) > 0.85 * len(batches)
    padded = sum(len(batch.indices) * batch.num_samples for batch in batches)
    assert num_samples.sum() / padded > 0.9


def test_ranks_of_a_step_work_equally_long() -> None:
    num_samples, shards = corpus(3200)
    steps = plan_steps(num_samples, shards, PlanOptions(16), seed=1, epoch=0, world_size=2)
    work = np.array([[len(b.indices) * b.num_samples for b in step] for step in steps])
    assert work.max(axis=1).sum() / work.mean(axis=1).sum() < 1.05


def test_an_utterance_has_the_same_validation_length_at_every_world_size() -> None:
    """Where the sampled silence begins decides the last digits: totals must not depend on the number of ranks."""
    num_samples, shards = corpus(203)
    lengths = []
    for world_size in (1, 2, 4):
        steps = plan_steps(num_samples, shards, PlanOptions(16), seed=1, epoch=0, world_size=world_size, shuffle=False)
        lengths.append({i: batch.num_samples for batch in flat(steps) for i in batch.indices})
    assert lengths[0] == lengths[1] == lengths[2]


def test_fewer_utterances_than_ranks_is_the_users_to_mend() -> None:
    with pytest.raises(UserError, match="3 utterances"):
        plan_epoch(*corpus(3), PlanOptions(16), seed=1, epoch=0, world_size=4)


def test_batches_of_one_that_do_not_share_out_are_the_users_to_mend() -> None:
    with pytest.raises(UserError, match="5 utterances, each a batch of its own"):
        plan_epoch(*corpus(5), PlanOptions(1), seed=1, epoch=0, world_size=2)


@pytest.mark.parametrize(
    ("options", "choices", "digest"),
    [
        (PlanOptions(16), {"epoch": 3}, "809dc15f8d769ac8"),
        (PlanOptions(16, 90.0), {"epoch": 0, "world_size": 4}, "3e56639ba32c266c"),
        (PlanOptions(8), {"epoch": 1, "world_size": 3}, "b32090158c92d8eb"),
        (PlanOptions(16, 120.0), {"epoch": 0, "world_size": 2, "shuffle": False}, "d61187ff4fd18548"),
    ],
)
def test_the_plan_is_the_committed_one(options: PlanOptions, choices: dict[str, Any], digest: str) -> None:
    """A checkpoint knows its place in an epoch by counting batches: a changed plan would resume elsewhere, silently.

    The digests are of the last rank's plan as the first version, plain loops over lists, made it.
    """
    rank = choices.get("world_size", 1) - 1
    plan = plan_epoch(*corpus(8003), options, seed=7, rank=rank, **choices)
    assert hashlib.sha256(repr([tuple(batch) for batch in plan]).encode()).hexdigest()[:16] == digest


def test_a_plan_is_a_sequence_and_its_rest_shares_memory() -> None:
    plan = plan_epoch(*corpus(1003), PlanOptions(16), seed=1, epoch=0, rank=1, world_size=2)
    batches = list(plan)
    assert len(batches) == len(plan)
    for start in (0, 1, len(plan) // 2, len(plan) - 1, len(plan), len(plan) + 5):
        rest = plan[start:]
        assert list(rest) == batches[start:]
        assert rest.indices is plan.indices
    assert plan[-1] == batches[-1]
    assert list(plan[5:9]) == batches[5:9]
    with pytest.raises(IndexError):
        plan[len(plan)]


def test_a_rank_holds_its_own_batches_only() -> None:
    """Ten million utterances: 4 bytes for each of the rank's, not lists of everybody's."""

    def held(world_size: int) -> Plan:
        return plan_epoch(*corpus(40_000), PlanOptions(16), seed=1, epoch=0, rank=0, world_size=world_size)

    assert held(1).nbytes < 6 * 40_000
    assert held(8).nbytes < 6 * 40_000 / 7
    assert all(array.base is None for array in (held(8).indices, held(8).offsets, held(8).num_samples))
