"""What is never written: the marks that a published Whisper suppresses, without those that the training data have."""

from __future__ import annotations

from transformers import GenerationConfig, WhisperTokenizer

from whisper_lightning.text import marks


def never_written(config: GenerationConfig, tokenizer: WhisperTokenizer) -> dict[int, str]:
    """Return the tokens that are suppressed, but for special ones, and their texts."""
    special = tokenizer.added_tokens_decoder
    return {token: tokenizer.decode([token]) for token in config.suppress_tokens if token not in special}


def let_write(config: GenerationConfig, tokenizer: WhisperTokenizer, written: set[str] | None) -> None:
    """Take out of the suppressed tokens, in place, those all of whose marks are written.

    Args:
        config: Has the list.
        tokenizer: Knows the texts.
        written: Marks of some text, as `marks` gives them; None takes out every token that is no special one.
    """
    texts = never_written(config, tokenizer)
    let = {token for token, text in texts.items() if written is None or marks(text) <= written}
    config.suppress_tokens = [token for token in config.suppress_tokens if token not in let]
