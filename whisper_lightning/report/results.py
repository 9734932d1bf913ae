"""Everything that a report says: results.json, the page and the tables are views of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from whisper_lightning.data.format import Rejected
from whisper_lightning.report.history import Training
from whisper_lightning.report.scores import Confusions
from whisper_lightning.report.transcripts import Decode
from whisper_lightning.scoring.edits import EditCounts
from whisper_lightning.scoring.intervals import Difference, Estimate


@dataclass(frozen=True)
class DataSummary:
    """The test set.

    Attributes:
        source: CSV or folder of shards.
        num_utterances: Utterances that are scored.
        seconds: Their length together.
        rejected: Rows that are not scored, and why.
    """

    source: str
    num_utterances: int
    seconds: float
    rejected: list[Rejected]


@dataclass(frozen=True)
class Scoring:
    """A way to compare two texts.

    Attributes:
        name: As in `SCORINGS`.
        meaning: What counts in it, and what does not, in one line.
    """

    name: str
    meaning: str


@dataclass(frozen=True)
class Scores:
    """Errors of one model in one scoring, over the whole test set.

    Attributes:
        wer: Word error rate, in percent of the references' words.
        cer: Character error rate, in percent of the references' characters.
        substitutions: Substituted words, in percent of the references' words.
        deletions: Lost words, in percent of the references' words.
        insertions: Inserted words, in percent of the references' words.
        counts: Word edits.
    """

    wer: Estimate
    cer: Estimate
    substitutions: Estimate
    deletions: Estimate
    insertions: Estimate
    counts: EditCounts


@dataclass(frozen=True)
class Flagged:
    """Transcripts of one model with one of the `Flags`.

    Attributes:
        count: How many they are.
        share: In percent of the utterances.
    """

    count: int
    share: Estimate


@dataclass(frozen=True)
class ModelResults:
    """What is said of one model.

    Attributes:
        name: What the report calls it.
        scores: By scoring.
        punctuation_f1: In percent; None where the references have no marks.
        capitalisation_f1: In percent; None where the references have no capitals.
        flags: By the names of `Flags`.
        confusions: By scoring.
        decode: How it was decoded.
    """

    name: str
    scores: dict[str, Scores]
    punctuation_f1: Estimate | None
    capitalisation_f1: Estimate | None
    flags: dict[str, Flagged]
    confusions: dict[str, Confusions]
    decode: Decode


@dataclass(frozen=True)
class ModelDifference:
    """Two models compared by one rate in one scoring.

    Attributes:
        first: Name of a model.
        second: Name of the model that is subtracted.
        scoring: Name of the scoring.
        rate: `wer` or `cer`.
        figures: The difference, in percentage points.
    """

    first: str
    second: str
    scoring: str
    rate: str
    figures: Difference


@dataclass(frozen=True)
class Slice:
    """The utterances with one value in a column.

    Attributes:
        value: The value, or what stands for several.
        utterances: Their positions.
        wer: By scoring, of each model, in percent.
    """

    value: str
    utterances: list[int]
    wer: dict[str, list[Estimate]]


@dataclass(frozen=True)
class SlicedColumn:
    """A column of the CSV, or the duration, whose values group the utterances.

    Attributes:
        column: Its name.
        values: A slice for each value; every utterance is in one of them.
    """

    column: str
    values: list[Slice]


@dataclass(frozen=True)
class TranscriptResults:
    """What one model made of one utterance.

    Attributes:
        hypotheses: Words that are compared, in each scoring.
        alignments: In each scoring, as `align_words` returns it.
        characters_per_second: How fast the transcript would have been spoken.
        flags: Names of its `Flags`.
    """

    hypotheses: list[str]
    alignments: list[str]
    characters_per_second: float
    flags: list[str]


@dataclass(frozen=True)
class UtteranceResults:
    """One utterance and what each model made of it.

    Attributes:
        row: Row in a spreadsheet.
        audio: Audio path as the CSV has it.
        path: Where that is on this machine; None where only shards are known.
        seconds: Its length.
        columns: Further columns of the CSV.
        references: Words that are compared, in each scoring.
        models: Of each model its transcript.
    """

    row: int
    audio: str
    path: str | None
    seconds: float
    columns: dict[str, str]
    references: list[str]
    models: list[TranscriptResults]


@dataclass(frozen=True)
class Results:
    """What a report says.

    Attributes:
        data: The test set.
        versions: Of the packages that the figures depend on, by name.
        scorings: From the strictest on; lists of one entry for each scoring are in this order.
        models: In the order of the command line; lists of one entry for each model are in this order.
        differences: Of each pair of models, in each scoring, in WER and CER.
        slices: By duration, and by each column that has groups.
        utterances: In the order of the CSV.
        training: Of the run that the models are from; None where models of anybody are compared.
    """

    data: DataSummary
    versions: dict[str, str]
    scorings: list[Scoring]
    models: list[ModelResults]
    differences: list[ModelDifference]
    slices: list[SlicedColumn]
    utterances: list[UtteranceResults]
    training: Training | None = None


def as_json(results: Results) -> dict[str, Any]:
    """Return what results.json and the page hold: everything by its name, but estimates and confusions as lists."""
    return asdict(results, dict_factory=_by_name)


def _by_name(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for name, value in fields:
        if isinstance(value, Difference):  # its figures stand beside what is compared
            named |= value._asdict()
        else:
            named[name] = value._asdict() if isinstance(value, EditCounts) else value
    return named
