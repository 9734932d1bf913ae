"""Tables for a thesis: Markdown and LaTeX of the same rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from whisper_lightning.report.results import ModelDifference, ModelResults, Results, Scores
from whisper_lightning.scoring.intervals import MIN_UTTERANCES, Estimate

NO_INTERVAL = f"no interval where there are fewer than {MIN_UTTERANCES} utterances, or all are alike"
LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "\u2212": "$-$",
    "\u2013": "--",
}


class Table(NamedTuple):
    """A table of texts.

    Attributes:
        caption: What it shows, and in which unit.
        header: Names of the columns.
        rows: As long as the header each; the first column names the row.
    """

    caption: str
    header: list[str]
    rows: list[list[str]]


def _decode(models: Sequence[ModelResults]) -> str:
    beams = sorted({model.decode.num_beams for model in models})
    return "greedy" if beams == [1] else f"{' or '.join(map(str, beams))} beams"


def make_tables(results: Results) -> list[Table]:
    """Lay out the figures: error rates, other figures, differences, slices."""
    data, models = results.data, results.models
    about = f"{data.source}, {data.num_utterances:,} utterances, decoded at full context, {_decode(models)}"
    about = f"{about}; {NO_INTERVAL}"
    tables = [
        Table(
            f"Errors in % with 95 % intervals over utterances ({about})",
            ["Model", "Scoring", "WER", "CER", "Substitutions", "Deletions", "Insertions"],
            [[model.name, _words(name), *_rates(each)] for model in models for name, each in model.scores.items()],
        ),
        Table(
            "Punctuation and capitals (F1 in %; \u2013 where the references have none), shares of odd transcripts in "
            f"%, with 95 % intervals; {NO_INTERVAL}",
            ["Model", "Punctuation F1", "Capitals F1", "Empty", "Loops", "Unlikely speed"],
            [
                [model.name, _estimate(model.punctuation_f1), _estimate(model.capitalisation_f1)]
                + [_estimate(model.flags[flag].share) for flag in ("empty", "loop", "speed_outlier")]
                for model in models
            ],
        ),
    ]
    if results.differences:
        tables.append(
            Table(
                "Paired differences in WER (percentage points, paired bootstrap over utterances)",
                ["Models", "Scoring", "Difference", "95 % interval", "p"],
                [_difference(each) for each in results.differences if each.rate == "wer"],
            )
        )
    chosen = "normalized"
    for sliced in results.slices:
        rows = [
            [each.value, f"{len(each.utterances):,}", *(_estimate(wer) for wer in each.wer[chosen])]
            for each in sliced.values
        ]
        header = [_words(sliced.column), "Utterances", *(model.name for model in models)]
        tables.append(Table(f"WER in % by {_words(sliced.column)} ({chosen}; {NO_INTERVAL})", header, rows))
    return tables


def to_markdown(tables: Sequence[Table]) -> str:
    """Write the tables for a README or an issue."""
    parts = []
    for table in tables:
        lines = [table.header, ["---"] + ["---:"] * (len(table.header) - 1), *table.rows]
        # A cell's own bars and line ends would end the cell, and its HTML would be drawn.
        cells = [[_plain(text).replace("|", "\\|") for text in line] for line in lines]
        parts.append("\n".join([f"**{_plain(table.caption)}**", "", *(f"| {' | '.join(line)} |" for line in cells)]))
    return "\n\n".join(parts) + "\n"


def to_latex(tables: Sequence[Table]) -> str:
    r"""Write the tables for a thesis; they need `\usepackage{booktabs}`."""
    parts = ["% needs \\usepackage{booktabs}"]
    for table in tables:
        lines = [" & ".join(_escape(text) for text in row) + r" \\" for row in [table.header, *table.rows]]
        parts.append(
            "\n".join(
                [
                    r"\begin{table}",
                    r"\centering",
                    rf"\caption{{{_escape(table.caption)}}}",
                    rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
                    r"\toprule",
                    lines[0],
                    r"\midrule",
                    *lines[1:],
                    r"\bottomrule",
                    r"\end{tabular}",
                    r"\end{table}",
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


def write_p_value(p_value: float | None) -> str:
    """Write a p-value; no smaller one than 2,000 resampled corpora can show, and a dash where there is none."""
    if p_value is None:
        return "\u2013"
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _plain(text: str) -> str:
    return escape(re.sub(r"\s+", " ", text), quote=False)


def _escape(text: str) -> str:
    return "".join(LATEX.get(c, c) for c in re.sub(r"\s+", " ", text))


def _words(name: str) -> str:
    return name.replace("_", " ")


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "\u2212")


def _estimate(estimate: Estimate | None) -> str:
    return "\u2013" if estimate is None else estimate.write()


def _rates(scores: Scores) -> list[str]:
    rates = (scores.wer, scores.cer, scores.substitutions, scores.deletions, scores.insertions)
    return [_estimate(rate) for rate in rates]


def _difference(each: ModelDifference) -> list[str]:
    value, low, high, p_value = each.figures
    interval = "\u2013" if low is None or high is None else f"[{_signed(low)}, {_signed(high)}]"
    names = f"{each.first} \u2212 {each.second}"
    return [names, _words(each.scoring), _signed(value), interval, write_p_value(p_value)]
