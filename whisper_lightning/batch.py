"""What goes from the data to the model, and from the model to the callbacks."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Batch(NamedTuple):
    """What a training, validation or prediction step gets.

    Attributes:
        keys: Name of each utterance, for error messages and tables; a window has those of its utterances, with `+`.
        waveforms: `(B, N)` float32, 16 kHz, right-padded with zeros.
        decoder_input_ids: `(B, L)` int64: previous text, if any, prompt and text, padded with the end token.
        label_positions: `(K,)` int64: where in the flattened `(B * L)` decoder outputs a token is to be predicted.
        label_tokens: `(K,)` int64: the token to be predicted there.
        sentences: The reference transcript of each utterance, "" where there is none.
        audio: Path of each utterance as the CSV has it.
        audio_seconds: Speech in the batch without padding, but with the pauses of windows, in seconds.
        languages: Code of the language of each utterance, where they may differ: in a guard.
        timed: Whether every row has time stamps and is to be decoded with them.
    """

    keys: list[str]
    waveforms: torch.Tensor
    decoder_input_ids: torch.Tensor
    label_positions: torch.Tensor
    label_tokens: torch.Tensor
    sentences: list[str]
    audio: list[str]
    audio_seconds: float
    languages: list[str] | None = None
    timed: bool = False


class Decoded(NamedTuple):
    """What a validation, test or prediction step gives to the callbacks.

    Attributes:
        hypotheses: A transcript for each utterance.
        loss_sum: Cross-entropy summed over the label tokens, a scalar.
        num_tokens: Label tokens.
        languages: Codes of the languages that the model hears, of a guard's utterances.
        times: Time stamps of each row in seconds, those of its label and those of its transcript.
    """

    hypotheses: list[str]
    loss_sum: torch.Tensor
    num_tokens: int
    languages: list[str] | None = None
    times: list[tuple[list[float], list[float]]] | None = None
