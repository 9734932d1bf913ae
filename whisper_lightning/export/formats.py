"""The one table of formats: what each is called, what it needs, how it is written and read back."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from whisper_lightning.errors import UserError
from whisper_lightning.export import ct2, ggml, hf, openai
from whisper_lightning.export.ct2 import Quantization
from whisper_lightning.export.decoding import Client, Decoding
from whisper_lightning.export.hardwired import refuse_other
from whisper_lightning.export.hf import Precision
from whisper_lightning.files import replacing
from whisper_lightning.model.module import WhisperModule


class Rounding(NamedTuple):
    """What weights are rounded to.

    Attributes:
        precision: Of hf and openai.
        quantization: Of ct2.
    """

    precision: Precision = "fp32"
    quantization: Quantization = "float16"


class Format(NamedTuple):
    """A form of the model for another program.

    Attributes:
        file: Name in the output folder.
        packages: What must be installed to write it and to read it back.
        rounding: What its weights are rounded to.
        write: Writes a model to a path.
        open: Opens what was written; gives the client and its name.
        hardwired: The program that assumes the published models' vocabulary and context; empty if none.
    """

    file: str
    packages: tuple[str, ...]
    rounding: Callable[[Rounding], str]
    write: Callable[[WhisperModule, Path, Rounding], None]
    open: Callable[[WhisperModule, Path, Decoding], tuple[Client, str]]
    hardwired: str = ""


def _open_ct2(module: WhisperModule, path: Path, decoding: Decoding) -> tuple[Client, str]:
    program = ct2.client(module)
    return ct2.open_client(path, decoding, program), program


FORMATS: dict[str, Format] = {
    "hf": Format(
        file="hf",
        packages=("whisper",),
        rounding=lambda rounding: rounding.precision,
        write=lambda module, path, rounding: hf.write(module, path, rounding.precision),
        open=lambda _, path, decoding: (hf.open_client(path, decoding), "transformers"),
    ),
    "ct2": Format(
        file="ct2",
        packages=("whisper", "ctranslate2", "faster_whisper"),
        rounding=lambda rounding: rounding.quantization,
        write=lambda module, path, rounding: ct2.write(module, path, rounding.quantization),
        open=_open_ct2,
    ),
    "ggml": Format(
        file="ggml-model.bin",
        packages=("whisper", "pywhispercpp"),
        rounding=lambda _: "fp16",
        write=lambda module, path, _: ggml.write(module, path),
        open=lambda _, path, decoding: (ggml.open_client(path, decoding), "whisper.cpp"),
        hardwired="whisper.cpp",
    ),
    "openai": Format(
        file="openai.pt",
        packages=("whisper",),
        rounding=lambda rounding: rounding.precision,
        write=lambda module, path, rounding: openai.write(module, path, rounding.precision),
        open=lambda _, path, decoding: (openai.open_client(path, decoding), "openai-whisper"),
        hardwired="openai-whisper",
    ),
}


def check_request(module: WhisperModule, folder: Path, formats: Sequence[str]) -> None:
    """Refuse what cannot be written, before anything is.

    Raises:
        UserError: An unknown format, an absent package, a model that the format's client would misread, a used place.
    """
    for name in formats:
        if name not in FORMATS:
            raise UserError(f"--formats: there is no format {name!r}; choose from {','.join(FORMATS)}")
        form = FORMATS[name]
        absent = [package for package in form.packages if importlib.util.find_spec(package) is None]
        if absent:
            raise UserError(
                f"{name}: the package {absent[0]} is not installed; pip install 'whisper-lightning[export]'"
            )
        if (folder / form.file).exists():
            raise UserError(f"{folder / form.file} exists already; delete it, or choose another folder")
        if form.hardwired:
            refuse_other(module, name, form.hardwired)


def write(module: WhisperModule, name: str, folder: Path, rounding: Rounding) -> Path:
    """Write one format into a folder, whole or not at all; return where."""
    path = folder / FORMATS[name].file
    with replacing(path) as fresh:
        FORMATS[name].write(module, fresh, rounding)
    return path
