"""A run's report: before against after, from the transcripts that the run has made, and how it was trained."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whisper_lightning.addresses import without_keys
from whisper_lightning.data.datamodule import SpeechDataModule
from whisper_lightning.data.splits import read_from
from whisper_lightning.errors import UserError
from whisper_lightning.model.module import WhisperModule
from whisper_lightning.report.folder import write_report
from whisper_lightning.report.history import read_training
from whisper_lightning.report.transcripts import Transcripts, describe_decode, describe_utterances
from whisper_lightning.scoring.utterance import read_transcripts

logger = logging.getLogger(__name__)


@dataclass
class ReportOptions:
    """The run's report.

    Attributes:
        enabled: Write `report/` at the end: before against after, the curves and the settings.
    """

    enabled: bool = True


def report_run(
    folder: Path,
    data: SpeechDataModule,
    module: WhisperModule,
    *,
    best_step: int,
    best: str,
    remarks: Sequence[str],
    defaults: Callable[[], Mapping[str, Any]],
    progress: bool,
) -> None:
    """Write `report/` into a run's folder and name it, or say in a line why there is none: the model is there.

    Args:
        folder: The run's folder, with the transcripts of its test.
        data: What was tested on.
        module: What was tested.
        best_step: The best step of the training.
        best: What is in `best/`, in a few words.
        remarks: What is to be known before the figures are believed.
        defaults: Gives the tree of options that config.yaml would hold if nothing had been set.
        progress: Show progress where it takes more than a moment.
    """
    report = folder / "report"
    try:
        training = read_training(folder, best_step=best_step, remarks=remarks, defaults=defaults())
        transcripts = _read_transcripts(folder, data, module, f"after (best: {best})")
        report.mkdir(exist_ok=True)
        write_report(transcripts, report, training=training, progress=progress)
    except (UserError, OSError) as error:
        logger.warning("Report: %s cannot be written whole (%s); the model is not touched by it", report, error)
    except Exception:  # a mistake of ours is no reason to call a run of days failed
        logger.warning("Report: %s cannot be written; the model is not touched by it", report, exc_info=True)
    else:
        logger.info("Report: %s", report / "index.html")


def _read_transcripts(folder: Path, data: SpeechDataModule, module: WhisperModule, name: str) -> Transcripts:
    """Read what the best and the starting model made of the test utterances; the latter only where it heard the same.

    The model after training comes first: the page shows it first, and the difference has the sign of the last lines.
    """
    texts = folder / "transcripts"
    tables = {name: read_transcripts(texts / "test.csv").sort_values("key")}
    (after,) = tables.values()
    if (texts / "before.csv").is_file():
        before = read_transcripts(texts / "before.csv").sort_values("key")
        if before[["key", "reference"]].to_numpy().tolist() == after[["key", "reference"]].to_numpy().tolist():
            tables["before"] = before
    split, source = data.splits["test"], read_from(data.sources, "test")
    rows = [int(key) for key in after["key"]]  # ascending, as the utterances are
    described = describe_utterances(split, source, data.audio_root, data.columns)
    heard = set(rows)
    utterances = [each for each in described if each.row in heard]
    assert [each.row for each in utterances] == rows, "the transcripts are of other utterances"
    share = data.sources["test"]
    named = source if isinstance(share, str) else f"{source} (held out: {share:g})"
    return Transcripts(
        without_keys(named),
        utterances,
        list(tables),
        [table["hypothesis"].tolist() for table in tables.values()],
        split.rejected,
        [describe_decode(module)] * len(tables),
    )
