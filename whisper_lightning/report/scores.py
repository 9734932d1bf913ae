"""One transcript against its reference, in every scoring."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from whisper_lightning.report.oddities import characters_per_second, is_loop, is_unlikely_speed, speed_limits
from whisper_lightning.report.transcripts import ReferenceUtterance
from whisper_lightning.scoring.edits import EditCounts, character_edits
from whisper_lightning.scoring.spanish import (
    SCORINGS,
    MarkCounts,
    align_words,
    aligned_pairs,
    capitalisation_counts,
    punctuation_counts,
)


@dataclass(frozen=True)
class Compared:
    """Reference and hypothesis in one scoring.

    Attributes:
        reference: Words that are compared.
        hypothesis: Words that are compared.
        alignment: As `align_words` gives it.
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


@dataclass(frozen=True)
class Scored:
    """What one model made of one utterance.

    Attributes:
        texts: By scoring.
        punctuation: Marks found.
        capitalisation: Capitals found.
        speed: Characters of the hypothesis per second.
        empty: Nothing was transcribed.
        loop: It repeats itself.
        speed_outlier: Nobody speaks this text in this time, as `is_unlikely_speed` has it.
    """

    texts: dict[str, Compared]
    punctuation: MarkCounts
    capitalisation: MarkCounts
    speed: float
    empty: bool
    loop: bool
    speed_outlier: bool


def score_model(name: str, utterances: Sequence[ReferenceUtterance], hypotheses: Sequence[str]) -> list[Scored]:
    """Score a model's transcripts; what is a believable speed, the references say."""
    limits = speed_limits([characters_per_second(each.reference, each.seconds) for each in utterances])
    scored = []
    pairs = zip(utterances, hypotheses, strict=True)
    for utterance, hypothesis in tqdm(pairs, desc=f"scoring {name}", total=len(utterances), unit="utterance"):
        speed = characters_per_second(hypothesis, utterance.seconds)
        scored.append(
            Scored(
                compare(utterance.reference, hypothesis),
                punctuation_counts(utterance.reference, hypothesis),
                capitalisation_counts(utterance.reference, hypothesis),
                speed,
                empty=not hypothesis.strip(),
                loop=is_loop(utterance.reference, hypothesis),
                speed_outlier=is_unlikely_speed(utterance.reference, hypothesis, utterance.seconds, limits),
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


def confusions(texts: Sequence[Compared], most: int = 40) -> dict[str, list[tuple[str, str, int]]]:
    """Give the most frequent substitutions (reference, hypothesis, count), lost words and inserted words."""
    counts: dict[str, Counter[tuple[str, str]]] = {"S": Counter(), "D": Counter(), "I": Counter()}
    for text in texts:
        reference, hypothesis = text.reference.split(), text.hypothesis.split()
        for step, i, j in aligned_pairs(text.alignment):
            if step != "=":
                pair = ("" if i is None else reference[i], "" if j is None else hypothesis[j])
                counts[step][pair] += 1
    names = {"substitutions": "S", "deletions": "D", "insertions": "I"}
    # Equal counts in the order of the alphabet, so that the report of the same models is the same file.
    ranked = {step: sorted(found.items(), key=lambda item: (-item[1], item[0])) for step, found in counts.items()}
    return {name: [(*pair, count) for pair, count in ranked[step][:most]] for name, step in names.items()}
