"""Everything that a report says, as one table of JSON: the page, the tables and results.json are views of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from whisper_lightning.report.scores import Compared, Scored, confusions, score_model
from whisper_lightning.report.transcripts import ReferenceUtterance, Transcripts
from whisper_lightning.scoring.edits import EditCounts
from whisper_lightning.scoring.intervals import Estimate, estimate_rate, paired_difference
from whisper_lightning.scoring.spanish import SCORINGS, MarkCounts

DURATION_EDGES_SECONDS = (0, 1, 2, 3, 4, 5, 7, 10, 15, 20, 25, 30)
MOST_VALUES = 40
"""Values of one column that are slices of their own; the rarer ones are one slice together."""
RATES: dict[str, Callable[[Compared], tuple[int, int]]] = {
    "wer": lambda text: (text.words.errors, text.words.reference_length),
    "cer": lambda text: (text.characters.errors, text.characters.reference_length),
    "substitutions": lambda text: (text.words.substitutions, text.words.reference_length),
    "deletions": lambda text: (text.words.deletions, text.words.reference_length),
    "insertions": lambda text: (text.words.insertions, text.words.reference_length),
}
"""Errors and length of one utterance; each rate is in percent of the reference's words, CER's of its characters."""
FLAGS = ("empty", "loop", "speed_outlier")


def evaluate(transcripts: Transcripts) -> tuple[dict[str, Any], list[list[Scored]]]:
    """Score every model and compare each pair.

    Returns:
        What results.json holds, and for each model its scored utterances.
    """
    pairs = zip(transcripts.models, transcripts.hypotheses, strict=True)
    scored = [score_model(name, transcripts.utterances, hypotheses) for name, hypotheses in pairs]
    described = zip(transcripts.models, tqdm(scored, desc="intervals"), transcripts.decodes, strict=True)
    models = [_model(name, rows) | {"decode": asdict(decode)} for name, rows, decode in described]
    results = {
        "data": {
            "source": transcripts.source,
            "num_utterances": len(transcripts.utterances),
            "seconds": sum(each.seconds for each in transcripts.utterances),
            "rejected": [asdict(row) for row in transcripts.rejected],
        },
        "versions": {name: version(name) for name in ("whisper-lightning", "torch", "transformers", "jiwer")},
        "scorings": [{"name": name, "meaning": (f.__doc__ or "").split("\n")[0]} for name, f in SCORINGS.items()],
        "models": models,
        "differences": _differences(transcripts.models, scored),
        "slices": [
            {"column": column, "values": [_slice(value, members, scored) for value, members in values.items()]}
            for column, values in _slices(transcripts.utterances).items()
        ],
        "utterances": [_utterance(i, each, scored) for i, each in enumerate(transcripts.utterances)],
    }
    return results, scored


def _estimate(rows: Sequence[Scored], scoring: str, rate: str) -> Estimate:
    errors, lengths = zip(*(RATES[rate](row.texts[scoring]) for row in rows), strict=True)
    return estimate_rate(errors, lengths)


def _model(name: str, rows: list[Scored]) -> dict[str, Any]:
    ones = [1] * len(rows)
    return {
        "name": name,
        "scores": {
            scoring: {rate: _estimate(rows, scoring, rate) for rate in RATES}
            | {"counts": _total([row.texts[scoring].words for row in rows])._asdict()}
            for scoring in SCORINGS
        },
        "punctuation_f1": _f1([row.punctuation for row in rows]),
        "capitalisation_f1": _f1([row.capitalisation for row in rows]),
        "flags": {
            flag: {"count": sum(getattr(row, flag) for row in rows)}
            | {"share": estimate_rate([int(getattr(row, flag)) for row in rows], ones)}
            for flag in FLAGS
        },
        "confusions": {scoring: confusions([row.texts[scoring] for row in rows]) for scoring in SCORINGS},
    }


def _total(counts: Sequence[EditCounts]) -> EditCounts:
    return EditCounts(*(sum(column) for column in zip(*counts, strict=True)))


def _f1(counts: Sequence[MarkCounts]) -> Estimate | None:
    """Give a corpus-level F1; None where the references have no marks, or no capitals: there is nothing to find."""
    totals = [each.expected + each.given for each in counts]
    return estimate_rate([2 * each.found for each in counts], totals) if any(each.expected for each in counts) else None


def _differences(names: Sequence[str], scored: Sequence[Sequence[Scored]]) -> list[dict[str, Any]]:
    """Compare each pair of models, in each scoring, by WER and CER."""
    found = []
    for (i, first), (j, second) in combinations(enumerate(scored), 2):
        for scoring in SCORINGS:
            for rate in ("wer", "cer"):
                count = RATES[rate]
                ours, lengths = zip(*(count(row.texts[scoring]) for row in first), strict=True)
                theirs, same = zip(*(count(row.texts[scoring]) for row in second), strict=True)
                assert lengths == same, "not the same references"
                pair = {"first": names[i], "second": names[j], "scoring": scoring, "rate": rate}
                found.append(pair | paired_difference(ours, theirs, lengths)._asdict())
    return found


def _slices(utterances: Sequence[ReferenceUtterance]) -> dict[str, dict[str, list[int]]]:
    """Group positions of utterances by duration, and by each column that has groups."""
    edges = list(pairwise(DURATION_EDGES_SECONDS))
    slices: dict[str, dict[str, list[int]]] = {"duration": {}}
    for low, high in edges:
        last = high == DURATION_EDGES_SECONDS[-1]
        members = [i for i, each in enumerate(utterances) if low <= each.seconds and (each.seconds < high or last)]
        if members:
            slices["duration"][f"{low}\u2013{high} s"] = members
    for column in dict.fromkeys(name for each in utterances for name in each.columns):
        values = [each.columns.get(column, "").strip() for each in utterances]
        common = Counter(values).most_common()
        # A column of one value has nothing to compare, one of names of files or sentences no groups.
        if len(common) == 1 or 2 * len(common) > len(values):
            continue
        kept = {value for value, _ in common[:MOST_VALUES]}
        groups: dict[str, list[int]] = {value or "(empty)": [] for value, _ in common[:MOST_VALUES]}
        for i, value in enumerate(values):
            name = (value or "(empty)") if value in kept else f"({len(common) - MOST_VALUES} others)"
            groups.setdefault(name, []).append(i)
        slices[column if column not in slices else f"{column} (CSV)"] = groups
    return slices


def _slice(value: str, members: list[int], scored: Sequence[Sequence[Scored]]) -> dict[str, Any]:
    rows = [[each[i] for i in members] for each in scored]
    wer = {scoring: [_estimate(each, scoring, "wer") for each in rows] for scoring in SCORINGS}
    return {"value": value, "utterances": members, "wer": wer}


def _utterance(i: int, utterance: ReferenceUtterance, scored: Sequence[Sequence[Scored]]) -> dict[str, Any]:
    rows = [each[i] for each in scored]
    return {
        "row": utterance.row,
        "audio": utterance.audio,
        "path": None if utterance.path is None else str(utterance.path),
        "seconds": round(utterance.seconds, 3),
        "columns": utterance.columns,
        "references": [rows[0].texts[scoring].reference for scoring in SCORINGS],
        "models": [
            {
                "hypotheses": [row.texts[scoring].hypothesis for scoring in SCORINGS],
                "alignments": [row.texts[scoring].alignment for scoring in SCORINGS],
                "characters_per_second": round(row.speed, 2),
                "flags": [flag for flag in FLAGS if getattr(row, flag)],
            }
            for row in rows
        ],
    }


def write_table(transcripts: Transcripts, scored: Sequence[Sequence[Scored]], path: Path) -> None:
    """Write results.csv: a row for each utterance of each model; the CSV's own columns begin with `csv.`."""
    records = []
    for name, hypotheses, rows in zip(transcripts.models, transcripts.hypotheses, scored, strict=True):
        for utterance, hypothesis, row in zip(transcripts.utterances, hypotheses, rows, strict=True):
            record: dict[str, Any] = {"model": name, "row": utterance.row, "audio": utterance.audio}
            record |= {"seconds": utterance.seconds, "reference": utterance.reference, "hypothesis": hypothesis}
            for scoring, text in row.texts.items():
                counts = {"words": text.words.reference_length, "errors": text.words.errors}
                counts |= {key: value for key, value in text.words._asdict().items() if key != "hits"}
                counts |= {"characters": text.characters.reference_length, "character_errors": text.characters.errors}
                record |= {f"{scoring}.{key}": value for key, value in counts.items()}
            for kind in ("punctuation", "capitalisation"):
                record |= {f"{kind}.{key}": value for key, value in getattr(row, kind)._asdict().items()}
            record |= {"characters_per_second": row.speed} | {flag: getattr(row, flag) for flag in FLAGS}
            records.append(record | {f"csv.{key}": value for key, value in utterance.columns.items()})
    pd.DataFrame(records).to_csv(path, index=False, encoding="utf-8")
