"""What is odd about a transcript: it repeats itself, or nobody could speak it in that time."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from whisper_lightning.scoring.normalize import normalize

LOOP = re.compile(r"(?:^|(?<= ))((?:\S+ ){1,10}?)\1{2,}|([^\W\d_]{1,10}?)\2{5,}")
"""Up to ten words three times in a row, or up to ten letters of a word six times."""
OUTLIER_DEVIATIONS = 3.5
"""Modified z-score from which a value is an outlier (Iglewicz and Hoaglin 1993)."""
LEAST_DEVIATION = 0.1
"""Of the logarithm of characters per second; below it a corpus would be even beyond belief."""


def is_loop(reference: str, hypothesis: str) -> bool:
    """Say whether a transcript repeats itself as decoders do when they are stuck, and as its reference does not."""
    spoken = normalize(reference)
    return any(loop[0].strip() not in spoken for loop in LOOP.finditer(normalize(hypothesis) + " "))


def characters_per_second(text: str, seconds: float) -> float:
    """Return how fast a text would have been spoken; people speak Spanish at 10 to 20 characters per second."""
    return len(text) / seconds


def is_unlikely_speed(reference: str, hypothesis: str, seconds: float, limits: tuple[float, float]) -> bool:
    """Say whether nobody speaks this transcript in this time, though somebody spoke its reference.

    A clip may well be one word and a pause, or said in haste: a transcript is odd where it leaves the limits on a side
    on which its reference does not, and never where its words are right.

    Args:
        reference: What was said.
        hypothesis: What was heard.
        seconds: Length of the audio.
        limits: As `speed_limits` returns them.
    """
    if not hypothesis.strip() or normalize(hypothesis) == normalize(reference):
        return False
    (low, high), said = limits, characters_per_second(reference, seconds)
    heard = characters_per_second(hypothesis, seconds)
    return heard < low <= said or heard > high >= said


def speed_limits(speeds: Sequence[float]) -> tuple[float, float]:
    """Return the slowest and the fastest believable speech, from the references' characters per second.

    A transcript beyond them mostly does not belong to its audio: words lost or made up. Median and median
    absolute deviation of the logarithm, which the outliers themselves hardly move.
    """
    logarithms = np.log([speed for speed in speeds if speed > 0] or [1.0])
    median = np.median(logarithms)
    deviation = max(LEAST_DEVIATION, 1.4826 * float(np.median(np.abs(logarithms - median))))
    low, high = np.exp([median - OUTLIER_DEVIATIONS * deviation, median + OUTLIER_DEVIATIONS * deviation])
    return float(low), float(high)
