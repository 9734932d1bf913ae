"""CTranslate2, for faster-whisper."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import torch
from huggingface_hub.constants import HF_HOME

from whisper_lightning.errors import UserError
from whisper_lightning.export import hf
from whisper_lightning.export.decoding import Client, Decoding
from whisper_lightning.export.hardwired import difference
from whisper_lightning.files import replacing
from whisper_lightning.model.load import find_run, load, model_files, tells_times
from whisper_lightning.model.module import WhisperModule
from whisper_lightning.terminal import say

Quantization = Literal["int8", "float16", "float32"]
NOTE = "made_from.json"
"""Which weights the form was made from, and what the model was trained for."""
CLIENT_FILES = ["preprocessor_config.json", "tokenizer.json"]
"""What faster-whisper reads beside the model; without it, it asks the hub."""


def write(module: WhisperModule, folder: Path, quantization: Quantization = "float16") -> None:
    """Convert the model with CTranslate2's own converter.

    Args:
        module: The model.
        folder: Where.
        quantization: Of the weights. `int8` quantises matrices row by row and leaves the rest in float32.
    """
    from ctranslate2.converters import TransformersConverter

    with TemporaryDirectory(dir=folder.parent) as scratch:
        # From full precision whatever the other formats get, so that weights are rounded once.
        hf.write(module, Path(scratch))
        TransformersConverter(scratch, copy_files=CLIENT_FILES).convert(str(folder), quantization=quantization)


class Form(NamedTuple):
    """A model as CTranslate2 reads it, and what it was trained for.

    Attributes:
        folder: Where it is.
        language: Code of the language.
        suppress_tokens: What it never writes; empty where it may write all.
        tells_times: It tells when a text begins and ends. Who is fine-tuned on sentences alone forgets it.
    """

    folder: Path
    language: str
    suppress_tokens: list[int]
    tells_times: bool


def converted(source: str) -> Form:
    """Return a model in CTranslate2's form: the one made before, or one made now if the weights are others.

    It is kept in the run's folder, or in the user's cache where there is no run or it may not be written to.

    Args:
        source: As `load` takes it.

    Raises:
        UserError: There is no such model, or faster-whisper would misread it.
    """
    files = model_files(source)
    made_from = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    run = find_run(source)
    name = hashlib.sha256(str(made_from[0][0]).encode()).hexdigest()[:16]
    cache = Path(HF_HOME).expanduser() / "whisper_lightning" / name
    own = run and run / ("ct2" if Path(source).is_dir() else f"ct2-{Path(source).stem}")
    for folder in filter(None, (own, cache)):
        with suppress(OSError, ValueError, KeyError):
            told = json.loads((folder / NOTE).read_text(encoding="utf-8"))
            if told["made_from"] == made_from:
                return Form(folder, str(told["language"]), list(told["suppress_tokens"]), bool(told["tells_times"]))
    module = load(source)
    found = difference(module)
    if found is not None:
        raise UserError(
            f"{source}: faster-whisper assumes the published models' vocabulary and context, and this model has "
            f"{found}; transcribe its clips with python -m whisper_lightning predict"
        )
    suppressed = list(module.whisper.generation_config.suppress_tokens)
    told = {
        "language": module.encoder.language,
        "suppress_tokens": suppressed,
        "tells_times": tells_times(source),
    }
    note = {"made_from": made_from, **told}
    say(f"converting {source} for faster-whisper, once")
    if own is not None:
        with suppress(PermissionError):
            return Form(_keep(module, own, note), **told)
    try:
        return Form(_keep(module, cache, note), **told)
    except OSError as error:
        raise UserError(
            f"{cache}: cannot be written ({error.strerror or error}); set HF_HOME to another place"
        ) from None


def _keep(module: WhisperModule, folder: Path, note: dict[str, Any]) -> Path:
    """Write the form and what it was made from; what has its final name is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder, str(os.getpid())) as fresh:
        write(module, fresh)
        (fresh / NOTE).write_text(json.dumps(note) + "\n", encoding="utf-8", newline="\n")
    return folder


def client(module: WhisperModule) -> str:
    """Say which program can read this model: faster-whisper assumes the published models' vocabulary and context."""
    return "faster-whisper" if difference(module) is None else "ctranslate2"


def open_client(folder: Path, decoding: Decoding, program: str) -> Client:
    """Open the folder with faster-whisper, or with CTranslate2's own `Whisper` where faster-whisper would misread."""
    from faster_whisper import WhisperModel

    model = WhisperModel(str(folder), device="cpu", local_files_only=True)
    return partial(_with_faster_whisper if program == "faster-whisper" else _with_ctranslate2, model, decoding)


def _with_faster_whisper(model: Any, decoding: Decoding, waveform: torch.Tensor) -> str:
    # The waveform is padded: faster-whisper itself pads features with zeros, which is not what silence looks like.
    segments, _ = model.transcribe(
        decoding.pad(waveform).numpy(),
        language=decoding.language,
        task=decoding.task,
        beam_size=1,
        temperature=0.0,
        without_timestamps=True,
        condition_on_previous_text=False,
        vad_filter=False,
        suppress_tokens=list(decoding.suppress_tokens),
        suppress_blank=decoding.suppress_blank,
        compression_ratio_threshold=None,
        log_prob_threshold=None,
        no_speech_threshold=None,
        max_new_tokens=_max_length(decoding) - len(decoding.prompt),
    )
    return "".join(segment.text for segment in segments).strip()


def _with_ctranslate2(model: Any, decoding: Decoding, waveform: torch.Tensor) -> str:
    from ctranslate2 import StorageView

    features = model.feature_extractor(decoding.pad(waveform).numpy(), padding=0)[None]
    (result,) = model.model.generate(
        StorageView.from_array(features),
        [list(decoding.prompt)],
        beam_size=1,
        suppress_tokens=list(decoding.suppress_tokens),
        suppress_blank=decoding.suppress_blank,
        max_length=_max_length(decoding),
    )
    return str(model.hf_tokenizer.decode(result.sequences_ids[0])).strip()


def _max_length(decoding: Decoding) -> int:
    """CTranslate2 generates at most half of its `max_length`."""
    return 2 * decoding.max_tokens
