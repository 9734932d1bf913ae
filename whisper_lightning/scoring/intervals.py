"""How sure a figure is: bootstrap intervals of a rate, and of the difference between two models on the same speech."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MIN_UTTERANCES = 5
"""Fewer utterances have no interval: resampling so few shows the same ones again and again, and seems sure."""


class Estimate(NamedTuple):
    """A figure in percent with its 95 % interval.

    Attributes:
        value: The figure.
        low: Lower end; None where there is no interval: with fewer than `MIN_UTTERANCES`, or where all of them have
            the same rate, so that resampling could not show another one.
        high: Upper end, or None.
    """

    value: float
    low: float | None
    high: float | None

    def write(self, unit: str = "") -> str:
        """Write `5.18 [3.20, 7.31]`, with a unit after the figure; without interval where there is none."""
        return f"{self.value:.2f}{unit}" + ("" if self.low is None else f" [{self.low:.2f}, {self.high:.2f}]")


class Difference(NamedTuple):
    """First minus second model in percentage points, its 95 % interval, and how likely chance alone is.

    Interval and p-value are None with fewer than `MIN_UTTERANCES`.
    """

    value: float
    low: float | None
    high: float | None
    p_value: float | None

    def write(self, unit: str = "") -> str:
        """Write `-4.20 [-6.31, -2.02]`, with a unit after the figure; without interval where there is none."""
        return Estimate(*self[:3]).write(unit)


def estimate_rate(errors: Sequence[int], lengths: Sequence[int]) -> Estimate:
    """Return a corpus-level rate with its interval: errors of each utterance over its length (`bootstrap_interval`)."""
    value = 100.0 * sum(errors) / max(1, sum(lengths))
    if len(errors) < MIN_UTTERANCES:
        return Estimate(value, None, None)
    low, high = bootstrap_interval(np.array(errors), np.array(lengths))
    return Estimate(value, low, high) if low < high else Estimate(value, None, None)


def paired_difference(first: Sequence[int], second: Sequence[int], lengths: Sequence[int]) -> Difference:
    """Compare two models on the same utterances by a paired bootstrap (Bisani and Ney 2004).

    Both are resampled together, so what makes an utterance hard for both does not blur the difference. The p-value is
    two-sided: twice the share of resampled differences beyond zero, ties counted against the difference; two models
    that give the same have p = 1. It is about these utterances, not about another training seed.

    Args:
        first: Errors of one model in each utterance.
        second: Errors of the other.
        lengths: Reference words (or characters) of each utterance.
    """
    value = 100.0 * (sum(first) - sum(second)) / max(1, sum(lengths))
    if len(lengths) < MIN_UTTERANCES:
        return Difference(value, None, None, None)
    sums = resampled_sums(np.column_stack([np.subtract(first, second), lengths]))
    differences = 100.0 * sums[:, 0] / np.maximum(1, sums[:, 1])
    low, high = np.quantile(differences, [0.025, 0.975])
    beyond = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    p_value = min(1.0, 2 * (1 + beyond) / (1 + len(differences)))
    return Difference(value, float(low), float(high), p_value)


def bootstrap_interval(
    errors: NDArray[Any], lengths: NDArray[Any], *, num_samples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % interval of a corpus error rate over resampled utterances.

    Percentile bootstrap (Efron 1979; for word error rates Bisani and Ney 2004): utterances are drawn with
    replacement, errors and lengths are summed, and divided once. It says how far the figure could lie off with other
    utterances of the same kind; not with other speakers, when a speaker has many of them.

    Args:
        errors: `(N,)` edits of each utterance.
        lengths: `(N,)` words (or characters) of each reference.
        num_samples: Resampled corpora.
        seed: Of the draws; the same utterances in the same order give the same interval.

    Returns:
        Lower and upper end, in percent.
    """
    assert errors.shape == lengths.shape
    assert len(errors) > 0
    sums = resampled_sums(np.column_stack([errors, lengths]), num_samples=num_samples, seed=seed)
    low, high = np.percentile(100.0 * sums[:, 0] / np.maximum(1, sums[:, 1]), [2.5, 97.5])
    return float(low), float(high)


def resampled_sums(counts: NDArray[Any], *, num_samples: int = 2000, seed: int = 0) -> NDArray[np.float64]:
    """Sum counts of utterances over resampled corpora.

    All columns share the draws, and so do calls with the same seed and equally many utterances: what is resampled
    together stays paired.

    Args:
        counts: `(N, columns)`.
        num_samples: Resampled corpora.
        seed: Of the draws.

    Returns:
        `(num_samples, columns)`.
    """
    generator = np.random.default_rng(seed)
    size = len(counts)
    at_once = max(1, 2**21 // size)  # corpora: 16 MiB of draws
    sums = []
    for start in range(0, num_samples, at_once):
        corpora = min(at_once, num_samples - start)
        draws = generator.integers(size, size=(corpora, size)) + size * np.arange(corpora)[:, None]
        times = np.bincount(draws.ravel(), minlength=corpora * size).reshape(corpora, size)
        sums.append(times.astype(np.float64) @ counts)
    return np.concatenate(sums)
