"""What whisper.cpp and openai-whisper take for granted of a model."""

from __future__ import annotations

from typing import Any

from whisper_lightning.audio.constants import MAX_SECONDS, POSITIONS_PER_SECOND
from whisper_lightning.errors import UserError
from whisper_lightning.model.module import WhisperModule

FULL_POSITIONS = int(MAX_SECONDS * POSITIONS_PER_SECOND)


def refuse_other(module: WhisperModule, name: str, client: str) -> None:
    """Refuse a model that a client would load and then misread.

    Raises:
        UserError: With the format's name, and what of the model is otherwise.
    """
    found = difference(module)
    if found is not None:
        raise UserError(
            f"{name}: {client} assumes the published models' vocabulary and context, and this model has {found}; "
            "export it to hf and ct2"
        )


def difference(module: WhisperModule) -> str | None:
    """Say in what a model differs from what all published multilingual Whispers have in common, if it does."""
    config = module.whisper.config
    if config.vocab_size not in (51865, 51866):
        return f"a vocabulary of {config.vocab_size} tokens, not 51865 or 51866"
    token = _other_token(module.processor.tokenizer, config.vocab_size)
    if token is not None:
        return f"another vocabulary: {token}"
    if config.max_source_positions != FULL_POSITIONS:
        return f"{config.max_source_positions / POSITIONS_PER_SECOND:g} s of context, not 30"
    if config.num_mel_bins not in (80, 128):
        return f"{config.num_mel_bins} mel bins, not 80 or 128"
    if {config.encoder_ffn_dim, config.decoder_ffn_dim} != {4 * config.d_model}:
        return "feed-forward layers that are not four times the width"
    return None


def _other_token(tokenizer: Any, vocab_size: int) -> str | None:
    """Name the first token whose id is not the published one."""
    from whisper.tokenizer import get_tokenizer

    encoding = get_tokenizer(True, num_languages=vocab_size - 51765 - 1).encoding
    own = token_bytes(tokenizer)
    for i in range(encoding.eot_token):
        if own.get(i) != encoding.decode_single_token_bytes(i):
            return f"token {i} is {own.get(i)!r}, not {encoding.decode_single_token_bytes(i)!r}"
    ids = tokenizer.get_vocab()
    for name in encoding.special_tokens_set:
        # The same token had two names; timestamps are not in every tokenizer.
        if name in ids and ids[name] != encoding.encode_single_token(name):
            return f"{name} is {ids[name]}, not {encoding.encode_single_token(name)}"
    return None


def token_bytes(tokenizer: Any) -> dict[int, bytes]:
    """Return the bytes of each text token, by id; what a byte-level BPE could not have written is left out."""
    letters = _letters()
    texts = set(tokenizer.get_vocab()) - set(tokenizer.get_added_vocab())
    written = [token for token in texts if letters.keys() >= set(token)]
    ids = tokenizer.convert_tokens_to_ids(written)
    return {i: bytes(letters[letter] for letter in token) for i, token in zip(ids, written, strict=True)}


def _letters() -> dict[str, int]:
    """Return the byte that each letter of a byte-level vocabulary stands for.

    Bytes that are visible Latin-1 characters stand for themselves; the others, in order, are moved to 256 and up
    (Radford et al. 2019, GPT-2).
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(moved)}
