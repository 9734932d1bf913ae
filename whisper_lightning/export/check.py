"""Write exports, have each one's own program read it, and compare what it hears with our decode."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from tqdm import tqdm

from whisper_lightning.audio.constants import SAMPLE_RATE_HZ
from whisper_lightning.export.decoding import Decoding
from whisper_lightning.export.formats import FORMATS, Rounding, check_request, write
from whisper_lightning.model.module import WhisperModule
from whisper_lightning.scoring.edits import EditCounts, word_edits
from whisper_lightning.scoring.intervals import Difference, paired_difference
from whisper_lightning.scoring.normalize import normalize

Verdict = Literal["agrees", "undecided", "DIFFERS"]
INT8_POINTS = 1.0
"""Points of WER that rounding to eight bits may cost; the other formats may change no text."""
INT8_WORDS_PERCENT = 10.0
"""Words that it may change where no references tell better from worse: a small Whisper guesses many of them."""


class Clip(NamedTuple):
    """An utterance to compare on.

    Attributes:
        name: What people find it by.
        waveform: `(N,)` at 16 kHz.
        sentence: What is said; empty if nobody has written it down.
    """

    name: str
    waveform: torch.Tensor
    sentence: str


@dataclass(frozen=True)
class Check:
    """How one export was read by its own program.

    Attributes:
        format: Name and precision.
        client: The program.
        path: The export.
        size_mib: Of all its files.
        seconds_per_second: Seconds of computing per second of audio, without loading the model.
        edits: Words of the client's texts against ours.
        rounds: Whether the format rounds so much that texts may change.
        words: Words of the client's texts against ours, but for case and punctuation.
        difference: Normalized WER of the client minus ours, where there are references.
        differences: Clip, our text, the client's; of all clips that differ.
        num_clips: Clips compared.
    """

    format: str
    client: str
    path: Path
    size_mib: float
    seconds_per_second: float
    edits: EditCounts
    rounds: bool
    words: EditCounts
    difference: Difference | None
    differences: list[tuple[str, str, str]]
    num_clips: int

    @property
    def verdict(self) -> Verdict:
        """Whether the client hears what we do, but for what the format's rounding may cost.

        `undecided` has too few clips to tell: the interval of the difference reaches beyond what is tolerated.
        """
        if not self.differences:
            return "agrees"
        if not self.rounds:
            return "DIFFERS"
        if self.difference is None:
            return "agrees" if self.words.percent <= INT8_WORDS_PERCENT else "DIFFERS"
        value, low, high, _ = self.difference
        if (value if high is None else high) <= INT8_POINTS:
            return "agrees"
        return "DIFFERS" if low is None or low > INT8_POINTS else "undecided"


def export(
    module: WhisperModule,
    folder: Path,
    formats: Sequence[str],
    clips: Sequence[Clip],
    rounding: Rounding,
) -> list[Check]:
    """Write a model in some formats and check each.

    Args:
        module: The model, on the CPU, as `load` gives it.
        folder: Where the exports go, each under its format's name.
        formats: Some of `FORMATS`.
        clips: Utterances to compare on, each at most as long as the model's context.
        rounding: What weights are rounded to.

    Raises:
        UserError: As `check_request`.
        OSError: It cannot be written; torch and safetensors raise their own errors for a full disk. What was not
            finished is gone.
    """
    check_request(module, folder, formats)
    folder.mkdir(parents=True, exist_ok=True)
    decoding = Decoding.of(module)
    waveforms = [clip.waveform for clip in clips]
    ours = module.transcribe(waveforms, max_new_tokens=decoding.max_tokens, progress="our decode")
    checks = []
    for name in formats:
        path = write(module, name, folder, rounding)
        client, program = FORMATS[name].open(module, path, decoding)
        start = time.perf_counter()
        theirs = [client(clip.waveform) for clip in tqdm(clips, desc=program, unit="clip", leave=False)]
        seconds = time.perf_counter() - start
        pairs = list(zip(ours, theirs, strict=True))
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        rounded = FORMATS[name].rounding(rounding)
        check = Check(
            format=f"{name} {rounded}",
            client=program,
            path=path,
            size_mib=sum(file.stat().st_size for file in files) / 2**20,
            seconds_per_second=seconds * SAMPLE_RATE_HZ / max(1, sum(len(clip.waveform) for clip in clips)),
            edits=_sum(word_edits(*pair) for pair in pairs),
            rounds=rounded == "int8",
            words=_sum(word_edits(normalize(own), normalize(other)) for own, other in pairs),
            difference=_difference(clips, pairs),
            differences=[(clip.name, *pair) for clip, pair in zip(clips, pairs, strict=True) if pair[0] != pair[1]],
            num_clips=len(clips),
        )
        checks.append(check)
    return checks


def _sum(edits: Iterable[EditCounts]) -> EditCounts:
    return reduce(EditCounts.plus, edits, EditCounts())


def _difference(clips: Sequence[Clip], texts: Sequence[tuple[str, str]]) -> Difference | None:
    """Compare the client's texts and ours with the references, where every clip has one."""
    references = [normalize(clip.sentence) for clip in clips]
    if not all(references):
        return None
    ours, theirs = [
        [word_edits(reference, normalize(text[client])) for reference, text in zip(references, texts, strict=True)]
        for client in (0, 1)
    ]
    lengths = [edits.reference_length for edits in ours]
    return paired_difference([edits.errors for edits in theirs], [edits.errors for edits in ours], lengths)
