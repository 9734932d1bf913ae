"""Text for Whisper and from it: label ids with one start token, and the normal form that is scored.

Spawned loader workers import this, so it needs nothing of transformers: 3 s and 200 MB for each of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple

from whisper_lightning.errors import UserError

ENGLISH_END = 50256
"""The id of `<|endoftext|>` in the English models (`.en`), whose text tokens are GPT-2's."""
WITHOUT_BLANKS = {"zh", "yue", "ja", "th", "lo", "my"}
"""Languages that are written without blanks between words, as openai/whisper's tokenizer.py lists them."""
Task = Literal["transcribe", "translate"]

if TYPE_CHECKING:
    from transformers import WhisperTokenizer


class Segment(NamedTuple):
    """A sentence and where it stands, in encoder positions: 20 ms, the step of Whisper's time stamps."""

    begin: int
    sentence: str
    end: int


class LabelEncoder:
    """Sentences to label ids, for one language and task.

    The ids are built token by token, `<|startoftranscript|><|es|><|transcribe|><|notimestamps|> text <|endoftext|>`,
    so that nothing depends on what a tokenizer adds by itself: the widespread collator compares the first label with
    `bos_token_id`, which in Whisper is `<|endoftext|>`, and thereby trains with two start tokens.

    The English models (`.en`) have neither language nor task in their prompt.

    Args:
        tokenizer: Its fast part alone is kept.
        language: Code of the language.
        task: What the decoder is asked for.

    Attributes:
        language: Code of the language.
        task: What the decoder is asked for.
        is_multilingual: Whether the prompt names them.
        prompt: The ids that every decoding starts from, without the text.
        end: The id of `<|endoftext|>`, which pads as well.
        previous: The id of `<|startofprev|>`, None where the tokenizer has none.
        time_zero: The id of `<|0.00|>`, which those of the later time stamps follow, None where there is none.
    """

    def __init__(self, tokenizer: WhisperTokenizer, language: str = "es", task: Task = "transcribe") -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        self.language, self.task = language, task
        vocabulary = self.vocabulary
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
        self._blank = vocabulary.get("Ġ")
        self.previous: int | None = vocabulary.get("<|startofprev|>")
        self.time_zero: int | None = vocabulary.get("<|0.00|>")

    @property
    def vocabulary(self) -> dict[str, int]:
        """Every token, special ones included, with its id."""
        return dict(self._tokenizer.get_vocab(with_added_tokens=True))

    def prompt_in(self, language: str) -> list[int]:
        """Return the prompt of a language that the model knows, by its code."""
        if language == self.language:
            return self.prompt
        assert self.knows(language)
        return [self.prompt[0], self._tokenizer.token_to_id(f"<|{language}|>"), *self.prompt[2:]]

    def knows(self, language: str) -> bool:
        """Say whether the model can be asked for a language, by its code."""
        known = self.is_multilingual and self._tokenizer.token_to_id(f"<|{language}|>") is not None
        return language == self.language or known

    def encode(self, sentence: str, language: str | None = None) -> list[int]:
        """Return prompt, text and end token of one sentence, which may be in another language.

        The text begins with a blank, as all that a published Whisper was trained on. The usual recipe leaves it out,
        and its first steps go into unlearning how sentences begin. A blank that would be a token of its own is left
        out: decoding never begins with that one.

        What a sentence has of special tokens (`<|0.00|>`, `<|endoftext|>`) is encoded as the characters that it is
        written with: a tokenizer would make the tokens of it.
        """
        language = language or self.language
        written = "en" if self.task == "translate" else language
        text = self._text(sentence if written in WITHOUT_BLANKS else f" {sentence.strip()}")
        if text and text[0] == self._blank:
            del text[0]
        return [*self.prompt_in(language), *text, self.end]

    def encode_times(self, segments: Sequence[Segment]) -> list[int]:
        """Return prompt, time stamps and texts, and end token: `<|0.00|> text<|2.44|><|2.90|> text<|6.10|>`."""
        ids = self.prompt[:-1]  # all but <|notimestamps|>
        for segment in segments:
            ids += self.encode_segment(segment)
        return [*ids, self.end]

    def encode_segment(self, segment: Segment) -> list[int]:
        """Return one text between its two time stamps."""
        assert self.time_zero is not None
        text = self._text(f" {segment.sentence.strip()}")
        return [self.time_zero + segment.begin, *text, self.time_zero + segment.end]

    def encode_previous(self, sentence: str, max_tokens: int) -> list[int]:
        """Return `<|startofprev|>` and the end of what was said before, at most `max_tokens` in all; [] for no text."""
        assert self.previous is not None
        text = self._text(f" {sentence.strip()}")[-max(1, max_tokens - 1) :]
        return [self.previous, *text] if max_tokens > 1 and sentence.strip() else []

    def times(self, ids: Sequence[int]) -> list[float]:
        """Return the time stamps among ids, in seconds."""
        zero = self.time_zero
        return [] if zero is None else [(token - zero) / 50 for token in ids if token >= zero]

    def has_times(self, last: int) -> bool:
        """Say whether there are time stamps from `<|0.00|>` to that of position `last`, with consecutive ids."""
        vocabulary, zero = self.vocabulary, self.time_zero
        return zero is not None and all(
            vocabulary.get(f"<|{position // 50}.{position % 50 * 2:02}|>") == zero + position
            for position in range(last + 1)
        )

    def _text(self, text: str) -> list[int]:
        parts = re.split(r"(?<=<)(?=\|)", text)
        return [token for part in parts for token in self._tokenizer.encode(part, add_special_tokens=False).ids]


def marks(text: str) -> set[str]:
    """Return what a text has beside letters, digits and blanks: each mark, and each two characters with a mark."""
    parts = {*text, *(first + second for first, second in pairwise(text))}
    return {part for part in parts if not all(letter.isalnum() or letter.isspace() for letter in part)}
