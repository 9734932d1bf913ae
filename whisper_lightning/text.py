"""Text in and out of Whisper: label ids with one start token, transcripts, and the normal form that is scored."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperProcessor, WhisperTokenizer
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from whisper_lightning.errors import UserError

IGNORE_INDEX = -100
"""The label that a loss leaves out, as in PyTorch and transformers."""
ENGLISH_END = 50256
"""The id of `<|endoftext|>` in the English models (`.en`), whose text tokens are GPT-2's."""
POSITIONS_PER_SECOND = 50

Task = Literal["transcribe", "translate"]


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
    """Give what an error says, as far as it fits into a line."""
    return (str(error).strip() or type(error).__name__).split("\n")[0]


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

    The English models (`.en`) have neither language nor task in their prompt.

    Attributes:
        language: Code of the language.
        task: What the decoder is asked for.
        is_multilingual: Whether the prompt names them.
        prompt: The ids that every decoding starts from, without the text.
        end: The id of `<|endoftext|>`, which pads as well.
    """

    def __init__(self, tokenizer: Any, language: str = "es", task: Task = "transcribe") -> None:
        self._tokenizer = tokenizer
        self.language, self.task = language_code(language), task
        vocabulary = tokenizer.get_vocab()
        self.is_multilingual = vocabulary.get("<|endoftext|>") != ENGLISH_END
        if not self.is_multilingual and (self.language, task) != ("en", "transcribe"):
            raise UserError(
                f"model.language: this model knows English alone, not {task} {self.language}; choose language en, or "
                "a checkpoint without .en in its name"
            )
        asked = [f"<|{self.language}|>", f"<|{task}|>"] if self.is_multilingual else []
        names = ["<|startoftranscript|>", *asked, "<|notimestamps|>"]
        absent = [name for name in [*names, "<|endoftext|>"] if name not in vocabulary]
        if absent:
            raise UserError(f"model.language: the tokenizer of this checkpoint has no token {absent[0]}")
        self.prompt: list[int] = [vocabulary[name] for name in names]
        self.end: int = vocabulary["<|endoftext|>"]

    def blanks(self) -> list[int]:
        """Give what no transcript begins with: a blank and the end."""
        return [*self._tokenizer.convert_tokens_to_ids(["Ġ"]), self.end]

    def special_ids(self) -> dict[str, Any]:
        """Give what a generation config says of the vocabulary."""
        vocabulary = self._tokenizer.get_vocab()
        ids: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), self.end)
        ids |= {"decoder_start_token_id": self.prompt[0], "no_timestamps_token_id": self.prompt[-1]}
        if self.is_multilingual:
            languages = (f"<|{code}|>" for code in LANGUAGES)
            ids["lang_to_id"] = {name: vocabulary[name] for name in languages if name in vocabulary}
            tasks = [task for task in get_args(Task) if f"<|{task}|>" in vocabulary]
            ids["task_to_id"] = {task: vocabulary[f"<|{task}|>"] for task in tasks}
        return ids | {"is_multilingual": self.is_multilingual}

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
