"""A report's folder: everything that is said of some transcripts, to look at, to print and to compute with."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd

from whisper_lightning.report.evaluate import evaluate
from whisper_lightning.report.history import Training
from whisper_lightning.report.page import write_page
from whisper_lightning.report.results import Results, as_json
from whisper_lightning.report.scores import write_table
from whisper_lightning.report.tables import make_tables, to_latex, to_markdown
from whisper_lightning.report.transcripts import Transcripts


def write_report(
    transcripts: Transcripts, folder: Path, *, training: Training | None = None, progress: bool = True
) -> Results:
    """Score transcripts and write the report into a folder that is there; the page comes last.

    Args:
        transcripts: What the models heard.
        folder: Where the files go; those of the same names are replaced.
        training: Of the run that the models are from.
        progress: Show progress where it takes more than a moment.

    Returns:
        What the report says.

    Raises:
        UserError: A package for a scoring is missing.
        OSError: A file cannot be written.
    """
    results, scored = evaluate(transcripts, progress=progress)
    results = replace(results, training=training)
    write_table(transcripts, scored, folder / "results.csv")
    rejected = pd.DataFrame(map(asdict, results.data.rejected), columns=["row", "value", "reason", "detail"])
    rejected.to_csv(folder / "rejected.csv", index=False, encoding="utf-8")
    text = json.dumps(as_json(results), ensure_ascii=False, indent=1)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8", newline="\n")
    tables = make_tables(results)
    (folder / "table.md").write_text(to_markdown(tables), encoding="utf-8", newline="\n")
    (folder / "table.tex").write_text(to_latex(tables), encoding="utf-8", newline="\n")
    write_page(results, folder / "index.html")
    return results
