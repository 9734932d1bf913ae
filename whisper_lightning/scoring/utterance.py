"""Tables of transcripts in a run's folder: what was said, what was heard, the edits between, and their figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from whisper_lightning.scoring.edits import EditCounts, character_edits, word_edits
from whisper_lightning.scoring.intervals import Difference, Estimate, estimate_rate, paired_difference
from whisper_lightning.scoring.normalize import normalize

RATES = {"wer": "words", "wer_normalized": "normalized_words", "cer": "characters"}
"""Each error rate, and what its columns in a table of transcripts begin with."""


@dataclass(frozen=True)
class ScoredUtterance:
    """One utterance with its transcripts and errors."""

    key: str
    audio: str
    reference: str
    hypothesis: str
    words: EditCounts
    normalized_words: EditCounts
    characters: EditCounts


def score(key: str, audio: str, reference: str, hypothesis: str) -> ScoredUtterance:
    """Count the edits of one utterance: raw words, normalized words, characters."""
    return ScoredUtterance(
        key,
        audio,
        reference,
        hypothesis,
        word_edits(reference, hypothesis),
        word_edits(normalize(reference), normalize(hypothesis)),
        character_edits(reference, hypothesis),
    )


def transcripts_path(folder: Path, guard: str, name: str) -> Path:
    """Return the place of a table in a run's folder.

    Args:
        folder: The run's.
        guard: `guard/NAME`, or "" for the utterances of the validation and the test.
        name: `before`, `test`, `step-000025`.
    """
    return folder / "transcripts" / guard / f"{name}.csv"


def write_transcripts(rows: Sequence[ScoredUtterance], path: Path) -> None:
    """Write a table of transcripts, whole or not at all: a continued run takes `before.csv` for complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    records = []
    for row in rows:
        record = asdict(row)
        for name in RATES.values():
            counts: EditCounts = getattr(row, name)
            del record[name]
            record |= {f"{name}_{field}": value for field, value in counts._asdict().items()}
        records.append(record)
    fresh = path.with_name(path.name + ".new")
    pd.DataFrame(records).to_csv(fresh, index=False, encoding="utf-8")
    fresh.replace(path)


def read_transcripts(path: Path) -> pd.DataFrame:
    """Read what `write_transcripts` wrote; texts stay texts, whatever they look like."""
    texts = dict.fromkeys(("key", "audio", "reference", "hypothesis"), str)
    return pd.read_csv(path, dtype=texts, keep_default_na=False, encoding="utf-8")


def measure(table: pd.DataFrame, rate: str) -> Estimate:
    """Return one of `RATES` over a table of transcripts."""
    return estimate_rate(*errors_and_lengths(table, rate))


def measure_difference(first: pd.DataFrame, second: pd.DataFrame, rate: str) -> Difference | None:
    """Return the first table's rate minus the second's; None where they are not of the same utterances."""
    first, second = (table.sort_values("key", ignore_index=True) for table in (first, second))
    if not first[["key", "reference"]].equals(second[["key", "reference"]]):
        return None
    ours, lengths = errors_and_lengths(first, rate)
    return paired_difference(ours, errors_and_lengths(second, rate)[0], lengths)


def errors_and_lengths(table: pd.DataFrame, rate: str) -> tuple[list[int], list[int]]:
    """Return errors and reference length of each utterance."""
    kinds = ("hits", "substitutions", "deletions", "insertions")
    hits, substitutions, deletions, insertions = (table[f"{RATES[rate]}_{kind}"] for kind in kinds)
    return (substitutions + deletions + insertions).tolist(), (hits + substitutions + deletions).tolist()
