"""The one decode function: batched greedy search with a key/value cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import WhisperForConditionalGeneration
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from whisper_lightning.model.tail import Encoded
from whisper_lightning.model.whisper import decoder_states

TOKENS_BETWEEN_CHECKS = 4
"""How often finished rows are looked for: each look waits for the device."""


@torch.no_grad()
def greedy_decode(
    whisper: WhisperForConditionalGeneration, encoded: Encoded, prompt: Sequence[int], max_tokens: int
) -> list[list[int]]:
    """Generate the most probable token after token for a batch of encoded utterances.

    Gives the tokens of transformers' `generate(num_beams=1, max_length=max_tokens)` with this generation config, in
    less time: the encoder's states come from the caller, and rows that have ended leave the batch.

    Args:
        whisper: The model, in evaluation mode.
        encoded: The utterances.
        prompt: Start, language, task and no-timestamps tokens.
        max_tokens: Longest transcript, without the prompt, in tokens.

    Returns:
        For each utterance its text tokens, without prompt and end token.
    """
    end = whisper.generation_config.eos_token_id
    batch_size, device = len(encoded.states), encoded.states.device
    limit = min(len(prompt) + max_tokens, whisper.config.max_target_positions)
    generated = torch.full((batch_size, limit), end, device=device)
    rows = torch.arange(batch_size, device=device)
    finished = torch.zeros(batch_size, dtype=torch.bool, device=device)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    inputs = torch.tensor([list(prompt)], device=device).expand(batch_size, -1)
    always, at_first = _suppressed(whisper, device)
    for position in range(len(prompt), limit):
        logits = whisper.proj_out(decoder_states(whisper, encoded, inputs, cache)[:, -1])
        logits = logits.index_fill(1, torch.cat([always, at_first]) if position == len(prompt) else always, -torch.inf)
        tokens = logits.argmax(dim=1)
        generated[rows, position] = tokens
        finished = finished | (tokens == end)
        if (position - len(prompt)) % TOKENS_BETWEEN_CHECKS == 0:
            alive = (~finished).nonzero().squeeze(1)
            if len(alive) == 0:
                break
            if len(alive) < len(rows):
                cache.batch_select_indices(alive)
                rows, finished, tokens = rows[alive], finished[alive], tokens[alive]
                encoded = encoded._replace(states=encoded.states[alive])
        inputs = tokens[:, None]
    return [_until(row, end) for row in generated[:, len(prompt) :].tolist()]


def _suppressed(whisper: WhisperForConditionalGeneration, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the tokens that are never generated, and those that never come first."""
    config = whisper.generation_config
    always = torch.tensor(config.suppress_tokens or [], dtype=torch.long, device=device)
    at_first = torch.tensor(config.begin_suppress_tokens or [], dtype=torch.long, device=device)
    return always, at_first


def _until(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens
