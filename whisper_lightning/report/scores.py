"""Transcripts against their references, one by one, in every scoring."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from tqdm import tqdm

from whisper_lightning.report.transcripts import ReferenceUtterance, Transcripts
from whisper_lightning.scoring.edits import EditCounts, character_edits
from whisper_lightning.scoring.oddities import characters_per_second, is_loop, is_unlikely_speed, speed_limits
from whisper_lightning.scoring.spanish import (
    SCORINGS,
    MarkCounts,
    align_words,
    aligned_pairs,
    capitalisation_counts,
    punctuation_counts,
)

MOMENT_SECONDS = 1.0
"""What takes longer has a bar."""


@dataclass(frozen=True)
class Compared:
    """Reference and hypothesis in one scoring.

    Attributes:
        reference: Words that are compared.
        hypothesis: Words that are compared.
        alignment: As `align_words` returns it.
        characters: Character edits.
    """

    reference: str
    hypothesis: str
    alignment: str
    characters: EditCounts

    @property
    def words(self) -> EditCounts:
        """Word edits."""
        return EditCounts(*(self.alignment.count(step) for step in "=SDI"))


class Flags(NamedTuple):
    """What is odd about a transcript.

    Attributes:
        empty: Nothing was transcribed.
        loop: It repeats itself, as `is_loop` has it.
        speed_outlier: Nobody speaks this text in this time, as `is_unlikely_speed` has it.
    """

    empty: bool
    loop: bool
    speed_outlier: bool


@dataclass(frozen=True)
class ScoredTranscript:
    """What one model made of one utterance.

    Attributes:
        texts: By scoring.
        punctuation: Marks found.
        capitalisation: Capitals found.
        speed: Characters of the hypothesis per second.
        flags: What is odd about it.
    """

    texts: dict[str, Compared]
    punctuation: MarkCounts
    capitalisation: MarkCounts
    speed: float
    flags: Flags


class Confusion(NamedTuple):
    """A word that was taken for another one, lost or inserted.

    Attributes:
        reference: What was said; empty where the word was inserted.
        hypothesis: What was heard; empty where the word was lost.
        times: How often.
    """

    reference: str
    hypothesis: str
    times: int


@dataclass(frozen=True)
class Confusions:
    """The words that a model gets wrong most often.

    Attributes:
        substitutions: Words taken for others, from the most frequent on.
        deletions: Lost words, from the most frequent on.
        insertions: Inserted words, from the most frequent on.
    """

    substitutions: list[Confusion]
    deletions: list[Confusion]
    insertions: list[Confusion]


def score_model(
    name: str, utterances: Sequence[ReferenceUtterance], hypotheses: Sequence[str], *, progress: bool = True
) -> list[ScoredTranscript]:
    """Score a model's transcripts; what is a believable speed, the references say."""
    limits = speed_limits([characters_per_second(each.reference, each.seconds) for each in utterances])
    scored = []
    bar = tqdm(
        zip(utterances, hypotheses, strict=True),
        desc=f"scoring {name}",
        total=len(utterances),
        unit="utterance",
        delay=MOMENT_SECONDS,
        disable=not progress,
    )
    for utterance, hypothesis in bar:
        flags = Flags(
            empty=not hypothesis.strip(),
            loop=is_loop(utterance.reference, hypothesis),
            speed_outlier=is_unlikely_speed(utterance.reference, hypothesis, utterance.seconds, limits),
        )
        scored.append(
            ScoredTranscript(
                compare(utterance.reference, hypothesis),
                punctuation_counts(utterance.reference, hypothesis),
                capitalisation_counts(utterance.reference, hypothesis),
                characters_per_second(hypothesis, utterance.seconds),
                flags,
            )
        )
    return scored


def compare(reference: str, hypothesis: str) -> dict[str, Compared]:
    """Align two texts in each scoring."""
    known: dict[tuple[str, str], Compared] = {}  # most texts have no numbers
    texts = {}
    for name, scoring in SCORINGS.items():
        pair = scoring(reference), scoring(hypothesis)
        if pair not in known:
            known[pair] = Compared(*pair, align_words(*pair), character_edits(*pair))
        texts[name] = known[pair]
    return texts


def confusions(texts: Sequence[Compared], most: int = 40) -> Confusions:
    """Return the most frequent substitutions, lost words and inserted words, at most so many of each."""
    counts: dict[str, Counter[tuple[str, str]]] = {"S": Counter(), "D": Counter(), "I": Counter()}
    for text in texts:
        reference, hypothesis = text.reference.split(), text.hypothesis.split()
        for step, i, j in aligned_pairs(text.alignment):
            if step != "=":
                pair = ("" if i is None else reference[i], "" if j is None else hypothesis[j])
                counts[step][pair] += 1
    # Equal counts in the order of the alphabet, so that the report of the same models is the same file.
    found = ([Confusion(*pair, times) for pair, times in counts[step].items()] for step in "SDI")
    return Confusions(*(sorted(each, key=lambda word: (-word.times, word))[:most] for each in found))


def write_table(transcripts: Transcripts, scored: Sequence[Sequence[ScoredTranscript]], path: Path) -> None:
    """Write results.csv: a row for each utterance of each model; the CSV's own columns begin with `csv.`."""
    records = []
    for name, hypotheses, rows in zip(transcripts.models, transcripts.hypotheses, scored, strict=True):
        for utterance, hypothesis, row in zip(transcripts.utterances, hypotheses, rows, strict=True):
            record: dict[str, object] = {"model": name, "row": utterance.row, "audio": utterance.audio}
            record |= {"seconds": utterance.seconds, "reference": utterance.reference, "hypothesis": hypothesis}
            for scoring, text in row.texts.items():
                counts = {"words": text.words.reference_length, "errors": text.words.errors}
                counts |= {key: value for key, value in text.words._asdict().items() if key != "hits"}
                counts |= {"characters": text.characters.reference_length, "character_errors": text.characters.errors}
                record |= {f"{scoring}.{key}": value for key, value in counts.items()}
            for kind, marks in (("punctuation", row.punctuation), ("capitalisation", row.capitalisation)):
                record |= {f"{kind}.{key}": value for key, value in marks._asdict().items()}
            record |= {"characters_per_second": row.speed} | row.flags._asdict()
            records.append(record | {f"csv.{key}": value for key, value in utterance.columns.items()})
    pd.DataFrame(records).to_csv(path, index=False, encoding="utf-8")
