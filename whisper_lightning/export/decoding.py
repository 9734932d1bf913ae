"""How clips are decoded to compare clients: the same greedy search everywhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from whisper_lightning.model.module import WhisperModule
from whisper_lightning.text import Task

Client = Callable[[torch.Tensor], str]
"""A program that has opened an export: `(N,)` at 16 kHz to its transcript."""


@dataclass(frozen=True)
class Decoding:
    """What a client needs to be told.

    Attributes:
        language: Code of the language.
        task: What the decoder is asked for.
        prompt: Start, language, task and no-timestamps tokens.
        max_tokens: Longest transcript, without the prompt: the shortest limit of all clients, which is whisper.cpp's
            (half of the decoder's positions, less 4).
        num_samples: Samples of the full context.
        suppress_tokens: What is never written.
        suppress_regex: The same as a pattern of whole tokens' texts; empty if all may be written.
        suppress_blank: Neither a blank nor the end may come first.
    """

    language: str
    task: Task
    prompt: tuple[int, ...]
    max_tokens: int
    num_samples: int
    suppress_tokens: tuple[int, ...]
    suppress_regex: str
    suppress_blank: bool

    @classmethod
    def of(cls, module: WhisperModule) -> Decoding:
        """Return the decoding of a module's language and task."""
        whisper = module.whisper
        suppressed = tuple(whisper.generation_config.suppress_tokens)
        return cls(
            language=module.encoder.language,
            task=module.encoder.task,
            prompt=tuple(module.encoder.prompt),
            max_tokens=whisper.config.max_target_positions // 2 - 4,
            num_samples=module.full_samples,
            suppress_tokens=suppressed,
            suppress_regex=_pattern(set(module.never_written().values())),
            suppress_blank=bool(whisper.generation_config.begin_suppress_tokens),
        )

    def pad(self, waveform: torch.Tensor) -> torch.Tensor:
        """Return `(N,)` with silence up to the full context, as Whisper is trained."""
        return F.pad(waveform, (0, self.num_samples - len(waveform)))


def _pattern(texts: set[str]) -> str:
    """Match whole texts; marks of one character by classes, which whisper.cpp matches with its whole vocabulary."""
    marks = {text for text in texts if text.isascii() and len(text.removeprefix(" ")) == 1}
    bare, blank = marks & {text.strip() for text in marks}, {text[1:] for text in marks if text.startswith(" ")}
    classes = ((" ?", bare & blank), (" ", blank - bare), ("", bare - blank))
    parts = [f"{before}[{''.join(map(re.escape, sorted(chars)))}]" for before, chars in classes if chars]
    return "|".join([*parts, *(re.escape(text) for text in sorted(texts - marks) if "\ufffd" not in text)])
