"""Text in and out of Whisper: label ids with one start token, transcripts, and the normal form that is scored."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from transformers import WhisperConfig, WhisperProcessor
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from whisper_lightning.errors import UserError

IGNORE_INDEX = -100
"""The label that a loss leaves out, as in PyTorch and transformers."""

Task = Literal["transcribe", "translate"]


def load_config(checkpoint: str) -> WhisperConfig:
    """Read the configuration of a Whisper by hub name or local folder.

    Raises:
        UserError: Nothing is there, or it is not a Whisper.
    """
    _refuse_address(checkpoint)
    try:
        config = WhisperConfig.from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        raise UserError(_not_found(checkpoint, error)) from None
    if config.model_type != "whisper" or not hasattr(config, "max_source_positions"):
        raise UserError(f"model.checkpoint: {checkpoint} holds a {config.model_type} model, not a Whisper")
    return config


def load_processor(checkpoint: str) -> WhisperProcessor:
    """Load tokenizer and feature extractor of a Whisper by hub name or local folder.

    Raises:
        UserError: Nothing is there, or the tokenizer's files are missing.
    """
    _refuse_address(checkpoint)
    try:
        return WhisperProcessor.from_pretrained(checkpoint)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(_not_found(checkpoint, error)) from None


def _refuse_address(checkpoint: str) -> None:
    # No hub name has a colon: it is a URL or a command, neither of which any library shall try to open.
    if ":" in checkpoint and not Path(checkpoint).is_dir():
        raise UserError(f"model.checkpoint: {checkpoint!r} is neither a folder nor a hub name (openai/whisper-base)")


def _not_found(checkpoint: str, error: Exception) -> str:
    first_line = str(error).strip().split("\n")[0]
    return (
        f"model.checkpoint: cannot load {checkpoint!r}; give a hub name such as openai/whisper-base "
        f"or a folder with config.json and the tokenizer's files ({first_line})"
    )


def language_code(language: str) -> str:
    """Give the two- or three-letter code of a Whisper language, named by code or in English ("es", "Spanish").

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


class LabelEncoder:
    """Sentences to label ids and back, for one language and task.

    The ids are built token by token, `<|startoftranscript|><|es|><|transcribe|><|notimestamps|> text <|endoftext|>`,
    so that nothing depends on what a tokenizer adds by itself: the widespread collator compares the first label with
    `bos_token_id`, which in Whisper is `<|endoftext|>`, and thereby trains with two start tokens.

    Attributes:
        prompt: The ids that every decoding starts from, without the text.
        end: The id of `<|endoftext|>`, which pads as well.
    """

    def __init__(self, tokenizer: Any, language: str = "es", task: Task = "transcribe") -> None:
        self._tokenizer = tokenizer
        code = language_code(language)
        names = ["<|startoftranscript|>", f"<|{code}|>", f"<|{task}|>", "<|notimestamps|>"]
        vocabulary = tokenizer.get_vocab()
        absent = [name for name in [*names, "<|endoftext|>"] if name not in vocabulary]
        if absent:
            raise UserError(f"model.language: the tokenizer of this checkpoint has no token {absent[0]}")
        self.prompt: list[int] = [vocabulary[name] for name in names]
        self.end: int = vocabulary["<|endoftext|>"]

    def encode(self, sentence: str) -> list[int]:
        """Give prompt, text and end token of one sentence.

        What a sentence has of special tokens (`<|0.00|>`, `<|endoftext|>`) is encoded as the characters that it is
        written with: a tokenizer would make the tokens of it.
        """
        parts = re.split(r"(?<=<)(?=\|)", sentence)
        text = [token for part in parts for token in self._tokenizer(part, add_special_tokens=False).input_ids]
        return [*self.prompt, *text, self.end]

    def decode(self, tokens: Sequence[int]) -> str:
        """Give the transcript of generated ids, without special tokens and outer blanks."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()


def normalize(text: str) -> str:
    """Give the words that `wer_normalized` compares: lower case, no punctuation, ñ, ü and accents kept.

    Everything that is no letter, digit or mark separates words; letters are composed (NFC) first, so that
    "n" + tilde and "ñ" are the same letter.
    """
    composed = unicodedata.normalize("NFC", text).lower()
    kept = (c if unicodedata.category(c)[0] in "LNM" else " " for c in composed)
    return " ".join("".join(kept).split())
