"""What a training step costs: operations, and memory."""

from __future__ import annotations

from transformers import WhisperConfig

POSITIONS_PER_SECOND = 50


def training_flops(config: WhisperConfig, seconds: float, num_tokens: int) -> float:
    """Count the floating-point operations of forward and backward pass for one utterance, without recomputation.

    A multiplication and an addition are two operations; the backward pass has twice the forward's. Only matrix
    products count, and of the vocabulary only the tokens that are predicted.

    Args:
        config: The model's shape.
        seconds: Length of the encoder's input.
        num_tokens: Tokens that the decoder predicts.

    Returns:
        Operations.
    """
    width, positions = config.d_model, POSITIONS_PER_SECOND * seconds
    stem = 2 * 3 * (2 * positions * config.num_mel_bins * width + positions * width**2)
    encoder_layer = 2 * positions * (4 * width**2 + 2 * width * config.encoder_ffn_dim) + 4 * positions**2 * width
    decoder_layer = 2 * num_tokens * (6 * width**2 + 2 * width * config.decoder_ffn_dim)  # cross-attention's q and out
    decoder_layer += 4 * num_tokens**2 * width
    decoder_layer += 2 * positions * 2 * width**2 + 4 * num_tokens * positions * width  # its keys and values
    vocabulary = 2 * num_tokens * width * config.vocab_size
    forward = stem + config.encoder_layers * encoder_layer + config.decoder_layers * decoder_layer + vocabulary
    return float(3 * forward)
