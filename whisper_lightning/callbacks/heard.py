"""What a model has made of a set of utterances, over all ranks, and its figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from lightning.pytorch import Trainer

from whisper_lightning.batch import Decoded
from whisper_lightning.scoring.edits import EditCounts
from whisper_lightning.scoring.oddities import is_loop
from whisper_lightning.scoring.utterance import ScoredUtterance, score

NEAR_SECONDS = 0.3
"""Within which a time stamp is right."""


@dataclass
class Heard:
    """What a model made of a set of utterances.

    Attributes:
        rows: Its transcripts, scored.
        loss_sum: Cross-entropy summed over the label tokens.
        num_tokens: Label tokens.
        languages: The language that was spoken and the one that was heard, of each utterance of a guard.
        times: Time stamps that belong there and those that were written, of each window.
    """

    rows: list[ScoredUtterance] = field(default_factory=list)
    loss_sum: float = 0.0
    num_tokens: int = 0
    languages: list[tuple[str, str]] = field(default_factory=list)
    times: list[tuple[list[float], list[float]]] = field(default_factory=list)

    def add(self, batch: Any, decoded: Any) -> None:
        """Score a batch."""
        assert isinstance(decoded, Decoded)
        self.loss_sum += float(decoded.loss_sum)
        self.num_tokens += decoded.num_tokens
        columns = zip(batch.keys, batch.audio, batch.sentences, decoded.hypotheses, strict=True)
        self.rows += [score(*row) for row in columns]
        if decoded.languages is not None:
            self.languages += zip(batch.languages, decoded.languages, strict=True)
        self.times += decoded.times or []

    def gather(self, trainer: Trainer) -> Heard:
        """Return what all ranks have heard, in the order of the keys."""
        parts = gather(trainer, [self])
        return Heard(
            sorted((row for part in parts for row in part.rows), key=lambda row: row.key),
            sum(part.loss_sum for part in parts),
            sum(part.num_tokens for part in parts),
            [pair for part in parts for pair in part.languages],
            [pair for part in parts for pair in part.times],
        )

    def measure(self) -> dict[str, float]:
        """Return the figures of the whole set."""
        words, normalized, characters = (
            reduce(EditCounts.plus, (getattr(row, name) for row in self.rows), EditCounts())
            for name in ("words", "normalized_words", "characters")
        )
        figures = {
            "loss": self.loss_sum / self.num_tokens,
            "wer": words.percent,
            "wer_normalized": normalized.percent,
            "cer": characters.percent,
            "substitutions": float(words.substitutions),
            "deletions": float(words.deletions),
            "insertions": float(words.insertions),
        }
        if self.languages:
            figures["language"] = _percent(spoken == heard for spoken, heard in self.languages)
        if self.times:
            figures["timestamps"] = timestamps_right(self.times)
        figures["loops"] = _percent(is_loop(row.reference, row.hypothesis) for row in self.rows)
        figures["empty"] = _percent(not row.hypothesis for row in self.rows)
        return figures


def timestamps_right(times: Sequence[tuple[list[float], list[float]]]) -> float:
    """Return the percentage of the time stamps that are right, of those that belong there or are written.

    A clip's border is found where some time stamp is within `NEAR_SECONDS` of it; one that is near no border is wrong.
    Neither to write none nor to write many is rewarded.

    Args:
        times: Of each window, the clips' borders and the time stamps that were written, in seconds.
    """
    right = total = 0
    for borders, written in times:
        found = sum(any(abs(border - each) <= NEAR_SECONDS for each in written) for border in borders)
        wrong = sum(all(abs(border - each) > NEAR_SECONDS for border in borders) for each in written)
        right, total = right + found, total + len(borders) + wrong
    return 100.0 * right / max(1, total)


def _percent(values: Iterable[bool]) -> float:
    """Return the share of what is true."""
    listed = list(values)
    return 100.0 * sum(listed) / max(1, len(listed))


def gather(trainer: Trainer, rows: list[Any]) -> list[Any]:
    """Join the rows of all ranks."""
    if trainer.world_size == 1:
        return rows
    gathered: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(gathered, rows)
    return [row for rank in gathered for row in rank]
