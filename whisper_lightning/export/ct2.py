"""CTranslate2, for faster-whisper."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from whisper_lightning.export import hf
from whisper_lightning.export.decoding import Client, Decoding
from whisper_lightning.export.hardwired import difference
from whisper_lightning.model.module import WhisperModule

Quantization = Literal["int8", "float16", "float32"]
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
        suppress_tokens=[],
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
        suppress_tokens=[],
        suppress_blank=decoding.suppress_blank,
        max_length=_max_length(decoding),
    )
    return str(model.hf_tokenizer.decode(result.sequences_ids[0])).strip()


def _max_length(decoding: Decoding) -> int:
    """CTranslate2 generates at most half of its `max_length`."""
    return 2 * decoding.max_tokens
