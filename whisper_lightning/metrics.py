"""Edit counts that add up: over batches, over ranks, to one corpus-level WER and CER."""

from __future__ import annotations

from typing import Any, NamedTuple

import jiwer
import numpy as np
from numpy.typing import NDArray


class EditCounts(NamedTuple):
    """How a hypothesis differs from its reference, in words or characters.

    Counts are summed and divided once at the end: a mean of per-utterance rates would weigh short utterances more.
    """

    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    def plus(self, other: EditCounts) -> EditCounts:
        """Add two counts."""
        return EditCounts(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions together."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def reference_length(self) -> int:
        """Words (or characters) of the reference."""
        return self.hits + self.substitutions + self.deletions

    @property
    def percent(self) -> float:
        """Error rate in percent of the reference's length; with an empty reference, of one word."""
        return 100.0 * self.errors / max(1, self.reference_length)


def word_edits(reference: str, hypothesis: str) -> EditCounts:
    """Count the word edits between two texts (words are what blanks separate)."""
    if not reference.split():
        return EditCounts(insertions=len(hypothesis.split()))
    out = jiwer.process_words(reference, hypothesis)
    return EditCounts(out.hits, out.substitutions, out.deletions, out.insertions)


def character_edits(reference: str, hypothesis: str) -> EditCounts:
    """Count the character edits between two texts."""
    if not reference.strip():
        return EditCounts(insertions=len(hypothesis.strip()))
    out = jiwer.process_characters(reference, hypothesis)
    return EditCounts(out.hits, out.substitutions, out.deletions, out.insertions)


def bootstrap_interval(
    errors: NDArray[Any], lengths: NDArray[Any], *, num_samples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Give the 95 % interval of a corpus error rate over resampled utterances.

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
