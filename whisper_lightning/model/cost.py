"""What a training step costs: operations and memory, worked out from a model's shape."""

from __future__ import annotations

import math

from transformers import WhisperConfig

from whisper_lightning.audio.constants import POSITIONS_PER_SECOND


def num_parameters(config: WhisperConfig) -> int:
    """Count a Whisper's parameters; the output projection is the token embedding."""
    width: int = config.d_model
    bins: int = config.num_mel_bins
    attention = 4 * width**2 + 3 * width + 2 * width  # keys have no bias; with its layer norm

    def feed_forward(inner: int) -> int:
        return 2 * width * inner + inner + width + 2 * width

    stem = 3 * bins * width + 3 * width**2 + 2 * width + config.max_source_positions * width
    encoder = config.encoder_layers * (attention + feed_forward(config.encoder_ffn_dim)) + 2 * width
    embeddings = (config.vocab_size + config.max_target_positions) * width
    decoder = config.decoder_layers * (2 * attention + feed_forward(config.decoder_ffn_dim)) + 2 * width
    return int(stem + encoder + embeddings + decoder)


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


def activation_bytes(config: WhisperConfig, seconds: float, num_tokens: int, *, mixed: bool) -> float:
    """Count what autograd keeps from the forward pass for one utterance, but for the logits.

    A layer keeps per position the inputs of both layer norms, their outputs, queries, keys, values, the attention's
    output twice, and both sides of the activation function, which are four times as wide. In mixed precision the
    layer norms' inputs stay in float32, and each of queries, keys and values keeps a cast of its input of its own.

    Args:
        config: The model's shape, with feed-forward layers four times as wide as the rest.
        seconds: Padded length of the encoder's input.
        num_tokens: Tokens that the decoder reads.
        mixed: Autocast to a 16-bit type, or float32.
    """
    width, positions = config.d_model, POSITIONS_PER_SECOND * seconds
    per_layer, per_position, per_token = (42, 14, 54) if mixed else (68, 24, 88)
    stem = positions * (per_position * width + (4 if mixed else 8) * config.num_mel_bins)
    encoder = config.encoder_layers * positions * per_layer * width
    cross_attention = config.decoder_layers * positions * 8 * width
    decoder = config.decoder_layers * num_tokens * per_token * width
    return float(stem + encoder + cross_attention + decoder)


def training_memory_bytes(
    config: WhisperConfig,
    *,
    batch_size: int,
    seconds: float,
    num_tokens: int,
    mixed: bool,
    activation_seconds: float = math.inf,
) -> float:
    """Estimate the peak memory of a training step with AdamW.

    Weights, gradients and two moments in float32 (and 16-bit copies of the weights in mixed precision), activations,
    what the backward pass of a layer needs besides, and the logits of all tokens three times over.

    Args:
        config: The model's shape.
        batch_size: Utterances in the batch.
        seconds: Padded length of each, in seconds.
        num_tokens: Tokens of each transcript, prompt included.
        mixed: Autocast to a 16-bit type, or float32.
        activation_seconds: Padded seconds of audio whose activations are kept at once, as in `WhisperModule`.
    """
    rows = rows_at_once(batch_size, seconds, activation_seconds)
    weights = num_parameters(config) * (18 if mixed else 16)
    activations = rows * activation_bytes(config, seconds, num_tokens, mixed=mixed)
    backward = rows * POSITIONS_PER_SECOND * seconds * 2 * config.encoder_ffn_dim * (2 if mixed else 4)
    features = batch_size * 2 * POSITIONS_PER_SECOND * seconds * config.num_mel_bins * 4
    logits = batch_size * num_tokens * config.vocab_size * 12
    return float(weights + activations + backward + features + logits)


def rows_at_once(batch_size: int, seconds: float, activation_seconds: float) -> int:
    """Return how many utterances of a batch keep their activations at once; at least one."""
    return batch_size if batch_size * seconds <= activation_seconds else max(1, int(activation_seconds // seconds))
