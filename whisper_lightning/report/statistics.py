"""How sure a figure is, and what is odd about a transcript."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from whisper_lightning.metrics import bootstrap_interval, resampled_sums
from whisper_lightning.text import normalize

LOOP = re.compile(r"(?:^|(?<= ))((?:\S+ ){1,10}?)\1{2,}|([^\W\d_]{1,10}?)\2{5,}")
"""Up to ten words three times in a row, or up to ten letters of a word six times."""
OUTLIER_DEVIATIONS = 3.5
"""Modified z-score from which a value is an outlier (Iglewicz and Hoaglin 1993)."""
LEAST_DEVIATION = 0.1
"""Of the logarithm of characters per second; below it a corpus would be even beyond belief."""


class Estimate(NamedTuple):
    """A figure in percent with its 95 % interval."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """First minus second model in percentage points, its 95 % interval, and how likely chance alone is."""

    value: float
    low: float
    high: float
    p_value: float


def estimate_rate(errors: Sequence[int], lengths: Sequence[int]) -> Estimate:
    """Give a corpus-level rate with its interval: errors of each utterance over its length, as `bootstrap_interval`."""
    return Estimate(
        100.0 * sum(errors) / max(1, sum(lengths)), *bootstrap_interval(np.array(errors), np.array(lengths))
    )


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
    sums = resampled_sums(np.column_stack([np.subtract(first, second), lengths]))
    differences = 100.0 * sums[:, 0] / np.maximum(1, sums[:, 1])
    low, high = np.quantile(differences, [0.025, 0.975])
    beyond = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    p_value = min(1.0, 2 * (1 + beyond) / (1 + len(differences)))
    value = 100.0 * (sum(first) - sum(second)) / max(1, sum(lengths))
    return Difference(value, float(low), float(high), p_value)


def is_loop(reference: str, hypothesis: str) -> bool:
    """Say whether a transcript repeats itself as decoders do when they are stuck, and as its reference does not."""
    spoken = normalize(reference)
    return any(loop[0].strip() not in spoken for loop in LOOP.finditer(normalize(hypothesis) + " "))


def characters_per_second(text: str, seconds: float) -> float:
    """Give how fast a text would have been spoken; people speak Spanish at 10 to 20 characters per second."""
    return len(text) / seconds


def speed_limits(speeds: Sequence[float]) -> tuple[float, float]:
    """Give the slowest and the fastest believable speech, from the references' characters per second.

    A text beyond them does not belong to its audio: words lost or made up, or a wrong or cut label. Median and median
    absolute deviation of the logarithm, which the outliers themselves hardly move.
    """
    logarithms = np.log([speed for speed in speeds if speed > 0] or [1.0])
    median = np.median(logarithms)
    deviation = max(LEAST_DEVIATION, 1.4826 * float(np.median(np.abs(logarithms - median))))
    low, high = np.exp([median - OUTLIER_DEVIATIONS * deviation, median + OUTLIER_DEVIATIONS * deviation])
    return float(low), float(high)
