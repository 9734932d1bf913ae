"""From transcripts to everything that a report says of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from importlib.metadata import version
from itertools import combinations, compress, pairwise

from tqdm import tqdm

from whisper_lightning.report.results import (
    DataSummary,
    Flagged,
    ModelDifference,
    ModelResults,
    Results,
    Scores,
    Scoring,
    Slice,
    SlicedColumn,
    TranscriptResults,
    UtteranceResults,
)
from whisper_lightning.report.scores import (
    MOMENT_SECONDS,
    Compared,
    Flags,
    ScoredTranscript,
    confusions,
    score_model,
)
from whisper_lightning.report.transcripts import Decode, ReferenceUtterance, Transcripts
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
"""Errors and length of one utterance, for each rate of `Scores`."""


def evaluate(transcripts: Transcripts, *, progress: bool = True) -> tuple[Results, list[list[ScoredTranscript]]]:
    """Score every model and compare each pair.

    Args:
        transcripts: What the models heard.
        progress: Show progress where it takes more than a moment.

    Returns:
        What the report says, and for each model its scored transcripts.
    """
    names, utterances = transcripts.models, transcripts.utterances
    pairs = zip(names, transcripts.hypotheses, strict=True)
    scored = [score_model(name, utterances, hypotheses, progress=progress) for name, hypotheses in pairs]
    bar = tqdm(scored, desc="intervals", delay=MOMENT_SECONDS, disable=not progress)
    described = zip(names, bar, transcripts.decodes, strict=True)
    seconds = sum(each.seconds for each in utterances)
    results = Results(
        data=DataSummary(transcripts.source, len(utterances), seconds, transcripts.rejected),
        versions={name: version(name) for name in ("whisper-lightning", "torch", "transformers", "jiwer")},
        scorings=[Scoring(name, (f.__doc__ or "").split("\n")[0]) for name, f in SCORINGS.items()],
        models=[_model(name, rows, decode) for name, rows, decode in described],
        differences=_differences(names, scored),
        slices=[
            SlicedColumn(column, [_slice(value, members, scored) for value, members in values.items()])
            for column, values in _slices(utterances).items()
        ],
        utterances=[_utterance(*each) for each in zip(utterances, zip(*scored, strict=True), strict=True)],
    )
    return results, scored


def _counts(rows: Sequence[ScoredTranscript], scoring: str, rate: str) -> Iterator[tuple[int, ...]]:
    """Return the errors and the lengths of the utterances."""
    return zip(*(RATES[rate](row.texts[scoring]) for row in rows), strict=True)


def _estimate(rows: Sequence[ScoredTranscript], scoring: str, rate: str) -> Estimate:
    return estimate_rate(*_counts(rows, scoring, rate))


def _model(name: str, rows: Sequence[ScoredTranscript], decode: Decode) -> ModelResults:
    flags = zip(Flags._fields, zip(*(row.flags for row in rows), strict=True), strict=True)
    return ModelResults(
        name,
        scores={scoring: _scores(rows, scoring) for scoring in SCORINGS},
        punctuation_f1=_f1([row.punctuation for row in rows]),
        capitalisation_f1=_f1([row.capitalisation for row in rows]),
        flags={flag: Flagged(sum(raised), estimate_rate(raised, [1] * len(rows))) for flag, raised in flags},
        confusions={scoring: confusions([row.texts[scoring] for row in rows]) for scoring in SCORINGS},
        decode=decode,
    )


def _scores(rows: Sequence[ScoredTranscript], scoring: str) -> Scores:
    counts = reduce(EditCounts.plus, (row.texts[scoring].words for row in rows))
    return Scores(**{rate: _estimate(rows, scoring, rate) for rate in RATES}, counts=counts)


def _f1(counts: Sequence[MarkCounts]) -> Estimate | None:
    """Return a corpus-level F1; None where the references have no marks, or no capitals: there is nothing to find."""
    totals = [each.expected + each.given for each in counts]
    return estimate_rate([2 * each.found for each in counts], totals) if any(each.expected for each in counts) else None


def _differences(names: Sequence[str], scored: Sequence[Sequence[ScoredTranscript]]) -> list[ModelDifference]:
    """Compare each pair of models, in each scoring, by WER and CER."""
    found = []
    for (first, ours), (second, theirs) in combinations(zip(names, scored, strict=True), 2):
        for scoring in SCORINGS:
            for rate in ("wer", "cer"):
                errors, lengths = _counts(ours, scoring, rate)
                other_errors, same = _counts(theirs, scoring, rate)
                assert lengths == same, "not the same references"
                figures = paired_difference(errors, other_errors, lengths)
                found.append(ModelDifference(first, second, scoring, rate, figures))
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


def _slice(value: str, members: list[int], scored: Sequence[Sequence[ScoredTranscript]]) -> Slice:
    rows = [[each[i] for i in members] for each in scored]
    return Slice(value, members, {scoring: [_estimate(each, scoring, "wer") for each in rows] for scoring in SCORINGS})


def _utterance(utterance: ReferenceUtterance, rows: Sequence[ScoredTranscript]) -> UtteranceResults:
    return UtteranceResults(
        utterance.row,
        utterance.audio,
        None if utterance.path is None else str(utterance.path),
        round(utterance.seconds, 3),
        utterance.columns,
        references=[rows[0].texts[scoring].reference for scoring in SCORINGS],
        models=[
            TranscriptResults(
                [row.texts[scoring].hypothesis for scoring in SCORINGS],
                [row.texts[scoring].alignment for scoring in SCORINGS],
                round(row.speed, 2),
                list(compress(Flags._fields, row.flags)),
            )
            for row in rows
        ],
    )
