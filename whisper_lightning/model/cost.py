"""What a training step costs: operations, worked out from a model's shape, and what is computed at once.

Its memory: `rehearsal.py`.
"""

from __future__ import annotations

from transformers import WhisperConfig

from whisper_lightning.audio.constants import POSITIONS_PER_SECOND


def training_flops(config: WhisperConfig, seconds: float, num_tokens: int) -> float:
    """Count the floating-point operations of forward and backward pass for one utterance, without recomputation.

    A multiplication and an addition are two operations; the backward pass has twice the forward's. Only matrix
    products count, and of the logits only those of tokens that are predicted.

    Args:
        config: The model's shape.
        seconds: Length of the encoder's input.
        num_tokens: Tokens that the decoder predicts.
    """
    width, positions = config.d_model, POSITIONS_PER_SECOND * seconds
    stem = 2 * 3 * (2 * positions * config.num_mel_bins * width + positions * width**2)
    encoder_layer = 2 * positions * (4 * width**2 + 2 * width * config.encoder_ffn_dim) + 4 * positions**2 * width
    decoder_layer = 2 * num_tokens * (6 * width**2 + 2 * width * config.decoder_ffn_dim) + 4 * num_tokens**2 * width
    decoder_layer += 2 * positions * 2 * width**2 + 4 * num_tokens * positions * width  # cross-attention
    logits = 2 * num_tokens * width * config.vocab_size
    return float(3 * (stem + config.encoder_layers * encoder_layer + config.decoder_layers * decoder_layer + logits))


def rows_at_once(batch_size: int, seconds: float, activation_seconds: float) -> int:
    """Return how many utterances of a batch keep their activations at once; at least one."""
    return batch_size if batch_size * seconds <= activation_seconds else max(1, int(activation_seconds // seconds))
