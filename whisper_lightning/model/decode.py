"""The decode: greedy search or beams, batched, with a key/value cache."""

from __future__ import annotations

import torch
from transformers import WhisperForConditionalGeneration
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.generation.logits_process import LogitsProcessor, WhisperTimeStampLogitsProcessor

from whisper_lightning.model.tail import Encoded
from whisper_lightning.model.whisper import decoder_states

TOKENS_BETWEEN_CHECKS = 4
"""How often finished rows are looked for: each look waits for the device."""


def decode(
    whisper: WhisperForConditionalGeneration,
    encoded: Encoded,
    prompts: torch.Tensor,
    max_tokens: int,
    num_beams: int = 1,
    *,
    timestamps: bool = False,
) -> list[list[int]]:
    """Generate a transcript for each of a batch of encoded utterances.

    Gives the tokens of transformers' `generate` with as many beams and this generation config, in less time: the
    encoder's states come from the caller, and rows that have ended leave the batch.

    Args:
        whisper: The model, in evaluation mode.
        encoded: The utterances.
        prompts: `(B, P)` or `(1, P)`: start, language, task and no-timestamps tokens.
        max_tokens: Longest transcript, without the prompt, in tokens.
        num_beams: Transcripts of each utterance that are followed at once; 1 takes the most probable token each time.
        timestamps: Whether time stamps are generated, greedily; the prompts end without the no-timestamps token.

    Returns:
        For each utterance its text tokens, without prompt and end token.
    """
    if timestamps:
        rules = WhisperTimeStampLogitsProcessor(whisper.generation_config, prompts.shape[1])
        longest = min(max_tokens, whisper.config.max_target_positions - prompts.shape[1])
        rows = greedy_decode(whisper, encoded, prompts, longest, rules)
        return [_finished(row, longest, rules.timestamp_begin) for row in rows]
    if num_beams == 1:
        return greedy_decode(whisper, encoded, prompts, max_tokens)
    return beam_decode(whisper, encoded, prompts, max_tokens, num_beams)


@torch.no_grad()
def greedy_decode(
    whisper: WhisperForConditionalGeneration,
    encoded: Encoded,
    prompts: torch.Tensor,
    max_tokens: int,
    rules: LogitsProcessor | None = None,
) -> list[list[int]]:
    """Take the most probable token each time, of those that rules admit; the rest is as in `decode`."""
    end = whisper.generation_config.eos_token_id
    batch_size, device = len(encoded.states), encoded.states.device
    start = prompts.shape[1]
    limit = min(start + max_tokens, whisper.config.max_target_positions)
    generated = torch.full((batch_size, limit), end, device=device)
    rows = torch.arange(batch_size, device=device)
    finished = torch.zeros(batch_size, dtype=torch.bool, device=device)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    inputs = prompts.expand(batch_size, -1)
    always, at_first = _suppressed(whisper, device)
    for position in range(start, limit):
        logits = whisper.proj_out(decoder_states(whisper, encoded, inputs, cache)[:, -1])
        logits = logits.index_fill(1, torch.cat([always, at_first]) if position == start else always, -torch.inf)
        if rules is not None:
            logits = rules(generated[rows, :position], logits.float())
        tokens = logits.argmax(dim=1)
        generated[rows, position] = tokens
        finished = finished | (tokens == end)
        if (position - start) % TOKENS_BETWEEN_CHECKS == 0:
            alive = (~finished).nonzero().squeeze(1)
            if len(alive) == 0:
                break
            if len(alive) < len(rows):
                cache.batch_select_indices(alive)
                rows, finished, tokens = rows[alive], finished[alive], tokens[alive]
                encoded = encoded._replace(states=encoded.states[alive])
        inputs = tokens[:, None]
    return [_until(row, end) for row in generated[:, start:].tolist()]


@torch.no_grad()
def beam_decode(
    whisper: WhisperForConditionalGeneration, encoded: Encoded, prompts: torch.Tensor, max_tokens: int, num_beams: int
) -> list[list[int]]:
    """Follow several transcripts of each utterance; arguments and result are those of `decode`.

    A transcript's score is the mean log-probability of its tokens. An utterance is done when it has as many complete
    transcripts as beams, and the best incomplete one scores no better than the last of these (transformers' rule).
    """
    end = whisper.generation_config.eos_token_id
    batch_size, device = len(encoded.states), encoded.states.device
    longest = min(max_tokens, whisper.config.max_target_positions - prompts.shape[1])
    best = torch.full((batch_size, longest), end, device=device)
    rows = torch.arange(batch_size, device=device)
    going = torch.ones(batch_size, dtype=torch.bool, device=device)
    complete = torch.full((batch_size, num_beams), -torch.inf, device=device)  # scores
    scores = torch.zeros(batch_size, 1, device=device)  # summed; of one beam, which is the prompt
    said = torch.empty(batch_size, 1, 0, dtype=torch.long, device=device)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    inputs = prompts.expand(batch_size, -1)
    always, at_first = _suppressed(whisper, device)
    for length in range(1, longest + 1):
        logits = whisper.proj_out(decoder_states(whisper, encoded, inputs, cache)[:, -1])
        suppressed = torch.cat([always, at_first]) if length == 1 else always
        log_probs = logits.float().log_softmax(dim=1).index_fill(1, suppressed, -torch.inf)
        candidates = scores[:, :, None] + log_probs.view(*scores.shape, -1)
        totals, choices = candidates.flatten(1).topk(2 * num_beams)  # as many go on, even if all of the first ones end
        beams, tokens = choices // log_probs.shape[1], choices % log_probs.shape[1]
        grown = torch.cat([said.gather(1, beams[:, :, None].expand(-1, -1, length - 1)), tokens[:, :, None]], dim=2)
        ended = (tokens == end) | (length == longest)
        means = (totals / length).masked_fill(~ended | ~going[:, None], -torch.inf)[:, :num_beams]
        top, which = means.max(dim=1)
        better = top > complete[:, 0]
        best[rows, :length] = torch.where(
            better[:, None], grown[torch.arange(len(rows), device=device), which], best[rows, :length]
        )
        complete = torch.cat([complete, means], dim=1).topk(num_beams).values
        scores, kept = totals.masked_fill(ended, -torch.inf).topk(num_beams)
        going = going & (scores[:, 0] / length > complete[:, -1])
        beams, said = beams.gather(1, kept), grown.gather(1, kept[:, :, None].expand(-1, -1, length))
        state_rows = beams + torch.arange(len(rows), device=device)[:, None] * (1 if length == 1 else num_beams)
        if (length - 1) % TOKENS_BETWEEN_CHECKS == 0:
            alive = going.nonzero().squeeze(1)
            if len(alive) == 0:
                break
            if length == 1 or len(alive) < len(rows):
                rows, going, complete, scores, said, state_rows = (
                    each[alive] for each in (rows, going, complete, scores, said, state_rows)
                )
                cache.cross_attention_cache.batch_select_indices(state_rows.flatten())  # the same for all its beams
        cache.self_attention_cache.batch_select_indices(state_rows.flatten())
        inputs = said[:, :, -1].flatten()[:, None]
    return [_until(row, end) for row in best.tolist()]


@torch.no_grad()
def detect_languages(whisper: WhisperForConditionalGeneration, encoded: Encoded) -> list[str]:
    """Return the code of the language that a multilingual model hears in each encoded utterance."""
    config, device = whisper.generation_config, encoded.states.device
    names, ids = zip(*config.lang_to_id.items(), strict=True)
    start = torch.full((len(encoded.states), 1), config.decoder_start_token_id, device=device)
    logits = whisper.proj_out(decoder_states(whisper, encoded, start)[:, -1])
    chosen = logits[:, torch.tensor(ids, device=device)].argmax(dim=1).tolist()
    return [names[i].strip("<|>") for i in chosen]


def _suppressed(whisper: WhisperForConditionalGeneration, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tokens that are never generated, and those that never come first."""
    config = whisper.generation_config
    always = torch.tensor(config.suppress_tokens or [], dtype=torch.long, device=device)
    at_first = torch.tensor(config.begin_suppress_tokens or [], dtype=torch.long, device=device)
    return always, at_first


def _finished(tokens: list[int], max_tokens: int, time_zero: int) -> list[int]:
    """Return a transcript up to its last time stamp if it has not ended: other programs go on from there."""
    if len(tokens) < max_tokens:
        return tokens
    last = max((i for i, token in enumerate(tokens) if token >= time_zero), default=-1)
    return tokens[: last + 1]


def _until(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens
