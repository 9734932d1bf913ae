"""A test set as models hear it: the decoding of `python -m whisper_lightning test`, collected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from whisper_lightning.addresses import without_keys
from whisper_lightning.audio.constants import SAMPLE_RATE_HZ
from whisper_lightning.batch import Decoded
from whisper_lightning.data.datamodule import SpeechDataModule
from whisper_lightning.data.format import Rejected
from whisper_lightning.data.manifest import read_manifest
from whisper_lightning.data.splits import Split
from whisper_lightning.errors import UserError
from whisper_lightning.model.module import WhisperModule


@dataclass(frozen=True)
class ReferenceUtterance:
    """One utterance of the test set.

    Attributes:
        row: Row in a spreadsheet.
        audio: Audio path as the CSV has it.
        path: Where that is on this machine; None where only shards are known.
        seconds: Its length.
        reference: What was said.
        columns: Further columns of the CSV.
    """

    row: int
    audio: str
    path: Path | None
    seconds: float
    reference: str
    columns: dict[str, str]


@dataclass(frozen=True)
class Decode:
    """How a model was decoded.

    Attributes:
        num_beams: Transcripts followed at once; 1 is greedy.
        never_written: Texts of the tokens that are suppressed.
    """

    num_beams: int
    never_written: list[str]


@dataclass(frozen=True)
class Transcripts:
    """The utterances that every model could take, and what each model made of them.

    Attributes:
        source: CSV or folder of shards.
        utterances: In the order of the CSV.
        models: Names, all different.
        hypotheses: For each model a transcript of each utterance.
        rejected: Rows that are not scored, and why.
        decodes: How each model was decoded.
    """

    source: str
    utterances: list[ReferenceUtterance]
    models: list[str]
    hypotheses: list[list[str]]
    rejected: list[Rejected]
    decodes: list[Decode]


@dataclass(frozen=True)
class DataOptions:
    """Where the test set is and how it is read; the words of `SpeechDataModule`.

    Attributes:
        source: CSV or folder of shards.
        audio_root: Folder that audio paths are relative to.
        columns: Names of the columns with audio and sentence.
        batch_size: Utterances that are decoded together.
        num_workers: Processes that read audio; 0 reads in this one.
    """

    source: str
    audio_root: str | None = None
    columns: list[str] | None = None
    batch_size: int = 16
    num_workers: int = 2


def transcribe_test_set(
    models: Sequence[str],
    open_one: Callable[[str], WhisperModule],
    names: Sequence[str],
    data: DataOptions,
    folder: Path,
) -> Transcripts:
    """Decode a test set with each model in turn.

    Args:
        models: Run folders, checkpoints, folders or hub names.
        open_one: Opens one of them; only one is in memory at a time.
        names: What each model is called.
        data: The test set.
        folder: Where `rejected.csv` goes.

    Raises:
        UserError: A model or the test set cannot be used, or no utterance is left that all models take.
    """
    transcripts: list[dict[int, str]] = []
    rejected: dict[tuple[int, str], Rejected] = {}
    decodes: list[Decode] = []
    for model in models[1:]:
        open_one(model)  # so that a wrong name is not found after an hour of decoding
    for model in models:
        module = open_one(model)
        decoded, split = _decode(module, data, folder)
        decodes.append(describe_decode(module))
        del module
        transcripts.append(decoded)
        rejected |= {(each.row, each.reason): each for each in split.rejected}
    root = None if data.audio_root is None else Path(data.audio_root)
    described = describe_utterances(split, data.source, root, data.columns)
    utterances = [each for each in described if all(each.row in decoded for decoded in transcripts)]
    if not utterances:
        raise UserError(f"{data.source}: no utterance is left that all models take; see {folder / 'rejected.csv'}")
    hypotheses = [[decoded[each.row] for each in utterances] for decoded in transcripts]
    # An utterance too long for one model is left out of all, or their figures would not be about the same speech.
    source = without_keys(data.source)
    left_out = [rejected[key] for key in sorted(rejected)]
    return Transcripts(source, utterances, list(names), hypotheses, left_out, decodes)


def describe_decode(module: WhisperModule) -> Decode:
    """Say how a module decodes."""
    texts = {text.strip() for text in module.never_written().values()}
    return Decode(module.whisper.generation_config.num_beams, sorted(texts))


class _Collect(Callback):
    """Keeps the transcripts of a test epoch."""

    def __init__(self) -> None:
        self.transcripts: dict[int, str] = {}

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        assert isinstance(outputs, Decoded)
        self.transcripts |= {int(k): text for k, text in zip(batch.keys, outputs.hypotheses, strict=True)}


def _decode(module: WhisperModule, data: DataOptions, folder: Path) -> tuple[dict[int, str], Split]:
    """Return the transcript of each row that the model takes, and the split."""
    speech = SpeechDataModule(
        val=data.source,
        test=data.source,
        audio_root=data.audio_root,
        columns=data.columns,
        eval_batch_size=data.batch_size,
        num_workers=data.num_workers,
        max_rejected_fraction=1.0,  # they are counted and named in the report
    )
    collect = _Collect()
    trainer = Trainer(
        accelerator="auto",
        devices=1,
        logger=False,
        callbacks=[collect],
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.test(module, datamodule=speech, verbose=False)
    return collect.transcripts, speech.splits["test"]


def describe_utterances(
    split: Split, source: str, audio_root: Path | None, columns: list[str] | None
) -> list[ReferenceUtterance]:
    """Read what is known of each utterance of a split besides its sound, in the order of the CSV.

    Args:
        split: The utterances.
        source: CSV or folder of shards that they are from.
        audio_root: Folder that audio paths are relative to.
        columns: Names of the columns with audio and sentence.
    """
    paths: dict[tuple[int, str], Path] = {}
    if Path(source).is_file():
        # By the name too: a CSV that has changed since may have another clip in that row.
        members = set(split.index.table["row"][split.members].tolist())
        rows = read_manifest(Path(source), audio_root, columns)
        paths = {(row.row, row.audio): Path(row.path) for row in rows if row.row in members}
    described = []
    for i in split.members.tolist():
        text = split.index.read_text(i)
        extra = text.extra if isinstance(text.extra, dict) else {}  # of shards that somebody else may have written
        described.append(
            ReferenceUtterance(
                text.row,
                text.audio,
                paths.get((text.row, text.audio)),
                int(split.index.num_samples[i]) / SAMPLE_RATE_HZ,
                text.sentence,
                {str(name): str(value) for name, value in extra.items()},
            )
        )
    return sorted(described, key=lambda each: each.row)
