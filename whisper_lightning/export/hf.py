"""The Hugging Face folder, with the files that older clients read."""

from __future__ import annotations

import importlib.resources
import json
from pathlib import Path
from typing import Any, Literal

import torch

from whisper_lightning.audio.constants import SAMPLE_RATE_HZ
from whisper_lightning.export.decoding import Client, Decoding
from whisper_lightning.model.module import WhisperModule

Precision = Literal["fp32", "fp16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16}


def write(module: WhisperModule, folder: Path, precision: Precision = "fp32") -> None:
    """Write weights, configuration and tokenizer so that transformers 4 and 5 and their relatives load them.

    transformers 5 writes tokenizer and feature extractor into files of its own. The published Whispers have
    `preprocessor_config.json`, `vocab.json`, `merges.txt`, `added_tokens.json`, `special_tokens_map.json` and
    `normalizer.json` beside them, and it is these that other programs look for.

    Args:
        module: The model; mel bins, language and task are its own.
        folder: Where.
        precision: Of the weights.
    """
    dtype = DTYPES[precision]
    module.save_pretrained(folder, dtype=dtype)
    _edit(folder / "config.json", {"dtype": str(dtype).removeprefix("torch.")})
    generation = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    if not generation.get("suppress_tokens"):
        generation.pop("suppress_tokens", None)  # older versions of transformers 4 fail on an empty list
        _dump(folder / "generation_config.json", generation)
    # The feature extractor stands in it a second time, where transformers 4 takes it for an unknown option.
    (folder / "processor_config.json").unlink(missing_ok=True)
    _edit(folder / "preprocessor_config.json", {"processor_class": "WhisperProcessor"})
    _write_tokenizer(module.processor.tokenizer, folder)


def _write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer's files of transformers 4 from `tokenizer.json`."""
    contents = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary: dict[str, int] = contents["model"]["vocab"]
    added: list[dict[str, Any]] = contents["added_tokens"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in contents["model"]["merges"]]
    # Pairs are lists since tokenizers 0.20. As "a b", as no token has a blank, older versions read them too.
    contents["model"]["merges"] = merges
    _dump(folder / "tokenizer.json", contents)
    _dump(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8", newline="\n")
    _dump(folder / "added_tokens.json", {t["content"]: t["id"] for t in added if t["content"] not in vocabulary})
    special = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    special = {name: str(token or tokenizer.eos_token) for name, token in special.items()}
    more = {"additional_special_tokens": [t["content"] for t in added if t["special"]]}
    _dump(folder / "special_tokens_map.json", special | more)
    # transformers 4 fails on the list that transformers 5 calls `extra_special_tokens`.
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for name in ("extra_special_tokens", "is_local", "local_files_only", "backend"):  # the rest is of this machine
        config.pop(name, None)
    config |= (
        special | more | {"added_tokens_decoder": {str(t["id"]): {k: t[k] for k in t if k != "id"} for t in added}}
    )
    _dump(path, config)
    _dump(folder / "normalizer.json", tokenizer.english_spelling_normalizer or _english_spellings())


def _english_spellings() -> Any:
    """Return the British spellings of English words, which every published Whisper's normalizer.json lists."""
    return json.loads(importlib.resources.files("whisper").joinpath("normalizers/english.json").read_text("utf-8"))


def _edit(path: Path, changes: dict[str, Any]) -> None:
    _dump(path, json.loads(path.read_text(encoding="utf-8")) | changes)


def _dump(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


def open_client(folder: Path, decoding: Decoding) -> Client:
    """Open the folder with `transformers.pipeline`, in float32: on a processor, half precision is only slower."""
    from transformers import pipeline
    from transformers.utils import logging

    recognize = pipeline("automatic-speech-recognition", model=str(folder), dtype=torch.float32, device="cpu")
    # What is not said here is in the generation config that was written: language, task, one beam.
    options = {"max_new_tokens": decoding.max_tokens}

    def transcribe(waveform: torch.Tensor) -> str:
        """Transcribe `(N,)` at 16 kHz."""
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # else it warns at each clip that max_new_tokens goes before max_length
        try:
            heard = recognize({"raw": waveform.numpy(), "sampling_rate": SAMPLE_RATE_HZ}, generate_kwargs=options)
        finally:
            logging.set_verbosity(verbosity)
        return str(heard["text"]).strip()

    return transcribe
