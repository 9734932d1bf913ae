"""What stands beside a Whisper's weights: its configuration, its tokenizer, and the languages that it knows."""

from __future__ import annotations

import math
from pathlib import Path

from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperProcessor, WhisperTokenizer
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from whisper_lightning.audio.constants import POSITIONS_PER_SECOND
from whisper_lightning.errors import UserError


def load_config(checkpoint: str) -> WhisperConfig:
    """Read the configuration of a Whisper by hub name or local folder.

    Raises:
        UserError: Nothing is there, it cannot be read, or it is not a Whisper.
    """
    # No hub name has a colon: it is a URL or a command, neither of which any library shall try to open.
    if ":" in checkpoint and not Path(checkpoint).is_dir():
        raise UserError(f"model.checkpoint: {checkpoint!r} is neither a folder nor a hub name (openai/whisper-base)")
    if (Path(checkpoint) / "adapter_config.json").is_file():
        raise UserError(adapter_message(checkpoint))  # beside a whole model it would be left out without a word
    try:
        values, _ = WhisperConfig.get_config_dict(checkpoint)
        if not values:  # `from_pretrained` would make a Whisper of its own
            raise FileNotFoundError("there is no config.json, or nothing in it")
        config = WhisperConfig.from_dict(values)
    except Exception as error:  # of a damaged file: the libraries name no common kind
        raise UserError(_not_found(checkpoint, error)) from None
    if config.model_type != "whisper":
        raise UserError(f"model.checkpoint: {checkpoint} holds a {config.model_type} model, not a Whisper")
    return config


def load_processor(checkpoint: str) -> WhisperProcessor:
    """Load the tokenizer of a Whisper by hub name or local folder, and make the feature extractor that it needs.

    The feature extractor follows from `config.json`. A `preprocessor_config.json` may be absent, or another model's.

    Raises:
        UserError: Nothing is there, or the tokenizer's files are missing, damaged or another model's.
    """
    config = load_config(checkpoint)
    try:
        tokenizer = WhisperTokenizer.from_pretrained(checkpoint)
    except Exception as error:  # of a damaged file: the libraries name no common kind
        raise UserError(_not_found(checkpoint, error)) from None
    vocabulary = tokenizer.get_vocab()
    # Without its files transformers gives a tokenizer that knows special tokens alone, under wrong ids.
    if vocabulary.keys() <= tokenizer.get_added_vocab().keys():
        raise UserError(
            f"model.checkpoint: no tokenizer in {checkpoint!r} (tokenizer.json, or vocab.json and merges.txt); copy "
            "the tokenizer's files of the model that it was trained from, such as openai/whisper-base"
        )
    if max(vocabulary.values()) >= config.vocab_size:
        raise UserError(
            f"model.checkpoint: the tokenizer in {checkpoint!r} has ids up to {max(vocabulary.values())} and the model "
            f"{config.vocab_size} tokens; copy the tokenizer's files of the model that it was trained from"
        )
    seconds = math.ceil(config.max_source_positions / POSITIONS_PER_SECOND)
    return WhisperProcessor(WhisperFeatureExtractor(config.num_mel_bins, chunk_length=seconds), tokenizer)


def adapter_message(checkpoint: str) -> str:
    """Say that a checkpoint is an adapter, and what makes a model of it."""
    return (
        f"model.checkpoint: {checkpoint!r} holds a PEFT adapter, not a whole model; merge it into its base model: "
        "PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)"
    )


def _not_found(checkpoint: str, error: Exception) -> str:
    return (
        f"model.checkpoint: cannot load {checkpoint!r}; give a hub name such as openai/whisper-base "
        f"or a folder with config.json and the tokenizer's files ({first_line(error)})"
    )


def first_line(error: Exception) -> str:
    """Return what an error says, as far as it fits into a line."""
    return (str(error).strip() or type(error).__name__).split("\n")[0]


def language_code(language: str) -> str:
    """Return the two- or three-letter code of a Whisper language, named by code or in English ("es", "Spanish").

    Raises:
        UserError: Whisper does not know the language.
    """
    name = language.strip().lower()
    code = name if name in LANGUAGES else TO_LANGUAGE_CODE.get(name)
    if code is None:
        raise UserError(
            f"model.language: Whisper has no language {language!r}; use a code such as es, ca, gl, eu or pt"
        )
    return str(code)
