"""Write exports, have each one's own program read it, and compare what it hears with our decode."""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from tqdm import tqdm

from whisper_lightning.audio.constants import SAMPLE_RATE_HZ
from whisper_lightning.errors import UserError
from whisper_lightning.export import ct2, ggml, hf, openai
from whisper_lightning.export.ct2 import Quantization
from whisper_lightning.export.decoding import Client, Decoding
from whisper_lightning.export.hardwired import refuse_other
from whisper_lightning.export.hf import Precision
from whisper_lightning.model.module import WhisperModule
from whisper_lightning.scoring.edits import EditCounts, word_edits
from whisper_lightning.scoring.intervals import Difference, paired_difference
from whisper_lightning.scoring.normalize import normalize

Verdict = Literal["agrees", "undecided", "DIFFERS"]
FORMATS = {"hf": "hf", "ct2": "ct2", "ggml": "ggml-model.bin", "openai": "openai.pt"}
"""The formats, and what each is called in the output folder."""
PACKAGES = {
    "hf": ("whisper",),
    "ct2": ("whisper", "ctranslate2", "faster_whisper"),
    "ggml": ("whisper", "pywhispercpp"),
    "openai": ("whisper",),
}
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


def check_request(module: WhisperModule, folder: Path, formats: Sequence[str]) -> None:
    """Refuse what cannot be written, before anything is.

    Raises:
        UserError: An unknown format, an absent package, a model that the format's client would misread, a used place.
    """
    for name in formats:
        if name not in FORMATS:
            raise UserError(f"--formats: there is no format {name!r}; choose from {','.join(FORMATS)}")
        absent = [package for package in PACKAGES[name] if importlib.util.find_spec(package) is None]
        if absent:
            raise UserError(f"{name}: the package {absent[0]} is not installed; pip install -e '.[export]'")
        if (folder / FORMATS[name]).exists():
            raise UserError(f"{folder / FORMATS[name]} exists already; delete it, or choose another folder")
    if "ggml" in formats:
        refuse_other(module, "ggml", "whisper.cpp")
    if "openai" in formats:
        refuse_other(module, "openai", "openai-whisper")


def export(
    module: WhisperModule,
    folder: Path,
    formats: Sequence[str],
    clips: Sequence[Clip],
    *,
    precision: Precision = "fp32",
    quantization: Quantization = "float16",
) -> list[Check]:
    """Write a model in some formats and check each.

    Args:
        module: The model, on the CPU, as `load` gives it.
        folder: Where the exports go, under the names in `FORMATS`.
        formats: Some of `FORMATS`.
        clips: Utterances to compare on, each at most as long as the model's context.
        precision: Of the weights of hf and openai; ggml has its own.
        quantization: Of the weights of ct2.

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
        path = folder / FORMATS[name]
        _write(module, name, path, precision, quantization)
        client, program = _open(module, name, path, decoding)
        start = time.perf_counter()
        theirs = [client(clip.waveform) for clip in tqdm(clips, desc=program, unit="clip", leave=False)]
        seconds = time.perf_counter() - start
        pairs = list(zip(ours, theirs, strict=True))
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        rounding = {"ct2": quantization, "ggml": "fp16"}.get(name, precision)
        check = Check(
            format=f"{name} {rounding}",
            client=program,
            path=path,
            size_mib=sum(file.stat().st_size for file in files) / 2**20,
            seconds_per_second=seconds * SAMPLE_RATE_HZ / max(1, sum(len(clip.waveform) for clip in clips)),
            edits=_sum(word_edits(*pair) for pair in pairs),
            rounds=rounding == "int8",
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


def _write(module: WhisperModule, name: str, path: Path, precision: Precision, quantization: Quantization) -> None:
    """Write one format; what has its final name is whole."""
    fresh = path.with_name(f"{path.name}.new")
    _remove(fresh)  # a kill's
    try:
        if name == "hf":
            hf.write(module, fresh, precision)
        elif name == "ct2":
            ct2.write(module, fresh, quantization)
        elif name == "ggml":
            ggml.write(module, fresh)
        else:
            openai.write(module, fresh, precision)
        fresh.replace(path)
    finally:
        _remove(fresh)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _open(module: WhisperModule, name: str, path: Path, decoding: Decoding) -> tuple[Client, str]:
    """Give the client that has opened an export, and its name."""
    if name == "hf":
        return hf.open_client(path, decoding), "transformers"
    if name == "ct2":
        program = ct2.client(module)
        return ct2.open_client(path, decoding, program), program
    if name == "ggml":
        return ggml.open_client(path, decoding), "whisper.cpp"
    return openai.open_client(path, decoding), "openai-whisper"
