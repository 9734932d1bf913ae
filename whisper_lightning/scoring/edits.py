"""Edit counts that add up: over batches, over ranks, to one corpus-level WER and CER."""

from __future__ import annotations

from typing import NamedTuple

import jiwer


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
