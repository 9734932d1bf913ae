"""The model that hears: faster-whisper's, on the GPU if it can be used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from whisper_lightning.errors import UserError
from whisper_lightning.export import ct2
from whisper_lightning.terminal import say

if TYPE_CHECKING:
    from faster_whisper import WhisperModel

CPU_COMPUTE_TYPE = "int8"
"""What a processor computes in by default."""

GPU_LIBRARIES = (
    ". CTranslate2 needs CUDA 12's cuBLAS and cuDNN 9, also beside a newer CUDA: pip install nvidia-cublas-cu12 "
    "nvidia-cudnn-cu12, and name their lib folders in LD_LIBRARY_PATH (Windows: bin, in PATH)"
)


@dataclass(frozen=True)
class Recognizer:
    """A model that faster-whisper has opened.

    Attributes:
        model: faster-whisper's.
        language: Code of the language that is spoken; None finds it by ear.
        suppress_tokens: Tokens that are never written.
        tells_times: The model tells times as well as text; one that was fine-tuned on sentences leaves out more then.
    """

    model: WhisperModel
    language: str | None
    suppress_tokens: list[int]
    tells_times: bool


def open_recognizer(source: str, *, language: str | None = None, compute_type: str = "default") -> Recognizer:
    """Open a model for recordings, on a GPU where there is one that CTranslate2 can use.

    Args:
        source: As `load` takes it.
        language: Code of the language; None for the model's own, `auto` to find it by ear.
        compute_type: As CTranslate2 names it; `default` is int8 on a processor, the weights' own on a GPU.

    Raises:
        UserError: There is no such model, language or type, or faster-whisper would misread the model.
    """
    import ctranslate2

    ctranslate2.set_random_seed(0)  # higher temperatures draw
    form = ct2.converted(source)
    if ctranslate2.get_cuda_device_count():
        model = _on_the_gpu(form.folder, compute_type) or _on_the_processor(form.folder, CPU_COMPUTE_TYPE)
    else:
        model = _on_the_processor(form.folder, compute_type)
    if language not in (None, "auto", *model.supported_languages):
        raise UserError(f"--language: there is no {language!r}; a code such as es, or auto")
    spoken = None if language == "auto" else language or form.language
    return Recognizer(model, spoken, form.suppress_tokens, form.tells_times)


def _on_the_gpu(folder: Path, compute_type: str) -> WhisperModel | None:
    """Open on a GPU; say so and give None where CTranslate2's libraries are missing."""
    from faster_whisper import WhisperModel

    try:
        model = WhisperModel(str(folder), device="cuda", compute_type=compute_type, local_files_only=True)
        model.encode(np.zeros((model.feature_extractor.mel_filters.shape[0], 3000), np.float32))  # asks for them
    except ValueError:
        raise _no_compute_type(compute_type, "cuda") from None
    except RuntimeError as error:
        remedy = GPU_LIBRARIES if "cannot be loaded" in str(error) else ""
        say(f"the GPU is not used ({error}); this goes on in int8 on the processor{remedy}", error=True)
        return None
    return model


def _on_the_processor(folder: Path, compute_type: str) -> WhisperModel:
    from faster_whisper import WhisperModel

    kind = CPU_COMPUTE_TYPE if compute_type == "default" else compute_type
    try:
        return WhisperModel(str(folder), device="cpu", compute_type=kind, local_files_only=True)
    except ValueError:
        raise _no_compute_type(compute_type, "cpu") from None


def _no_compute_type(given: str, device: str) -> UserError:
    import ctranslate2

    known = " ".join(sorted(ctranslate2.get_supported_compute_types(device)))
    return UserError(f"--compute_type: there is no {given!r} on this machine's {device}; choose from default {known}")
