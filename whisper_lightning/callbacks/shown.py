"""Transcripts for a person to see at each validation: the worst and some others, on the terminal and in W&B."""

from __future__ import annotations

import io
import random
import sys

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from rich.console import Console
from rich.table import Table
from rich.text import Text

from whisper_lightning.audio.constants import SAMPLE_RATE_HZ
from whisper_lightning.scoring.utterance import ScoredUtterance
from whisper_lightning.terminal import show


def render(title: str, rows: list[ScoredUtterance], number: int) -> str:
    """Return a table of the worst utterances and of as many others."""
    return _render(title, _choose(rows, number))


def log_transcripts(trainer: Trainer, stage: str, rows: list[ScoredUtterance], number: int) -> None:
    """Add the transcripts to W&B, and the audio of those that are shown on the terminal."""
    for each in trainer.loggers:
        if isinstance(each, WandbLogger):
            data = [[r.key, r.reference, r.hypothesis, r.words.percent] for r in rows[:1000]]
            each.log_table(f"{stage}/transcripts", ["key", "reference", "hypothesis", "wer"], data)
            _log_audio(trainer, each, stage, _choose(rows, number))


def _log_audio(trainer: Trainer, logger: WandbLogger, stage: str, rows: list[ScoredUtterance]) -> None:
    """Add what is shown on the terminal to W&B, to be listened to; read from the shards once more, a few clips."""
    import wandb  # a second, which only those pay who log there

    data = trainer.datamodule  # type: ignore[attr-defined]
    split = data.splits["val" if stage == "val" or "test" not in data.splits else "test"]
    table = []
    for row in rows:
        # The key is the number of the row in the CSV, or in the tars; few clips, so they are looked for one by one.
        position = next(i for i in split.members.tolist() if split.index.read_text(i).key == row.key)
        audio = wandb.Audio(split.index.read(position).waveform.numpy(), sample_rate=SAMPLE_RATE_HZ)
        table.append([row.key, audio, row.reference, row.hypothesis, row.words.percent])
    logger.log_table(f"{stage}/shown", ["key", "audio", "reference", "hypothesis", "wer"], table)


def _choose(rows: list[ScoredUtterance], number: int) -> list[ScoredUtterance]:
    """Return the worst utterances and as many others; the same others each time, so that progress shows."""
    worst = sorted(rows, key=lambda row: -row.words.errors)[:number]
    rest = [row for row in rows if row not in worst]
    return worst + random.Random(0).sample(rest, min(number, len(rest)))


def _render(title: str, rows: list[ScoredUtterance]) -> str:
    table = Table(title=title, title_justify="left", show_lines=False)
    table.add_column("WER %", justify="right")
    table.add_column("reference")
    table.add_column("hypothesis")
    for row in rows:
        texts = (Text(show(text)) for text in (row.reference, row.hypothesis))  # no markup, and :smile: stays text
        table.add_row(f"{row.words.percent:.0f}", *texts)
    # With lines that the terminal's encoding has.
    out = io.TextIOWrapper(io.BytesIO(), sys.stdout.encoding or "utf-8", errors="backslashreplace")
    Console(file=out, width=120).print(table, markup=False)
    out.seek(0)
    return out.read()
