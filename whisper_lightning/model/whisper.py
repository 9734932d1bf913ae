"""Whisper with a silence that is sampled, and its loss on the tokens that count."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration
from transformers.cache_utils import EncoderDecoderCache
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from whisper_lightning.errors import UserError
from whisper_lightning.hub import first_line, load_config
from whisper_lightning.model.depth import leave_out
from whisper_lightning.model.tail import Encoded, Sample, encode
from whisper_lightning.model.weights import load_weights
from whisper_lightning.text import LabelEncoder, Task


def load_whisper(
    checkpoint: str, encoder: LabelEncoder, *, random_weights: bool, suppress: bool
) -> WhisperForConditionalGeneration:
    """Load a Whisper by hub name or local folder, in float32.

    Args:
        checkpoint: Hub name, or folder in Hugging Face layout.
        encoder: Language, task and special tokens; they go into the generation config.
        random_weights: Take the configuration alone.
        suppress: Never generate the tokens that the checkpoint suppresses.

    Raises:
        UserError: No model there, no weights, or weights of another model.
    """
    config = load_config(checkpoint)
    config.encoder_layerdrop = config.decoder_layerdrop = 0.0  # ours is of this training, and in no model's folder
    whisper = WhisperForConditionalGeneration(config) if random_weights else load_weights(checkpoint, config)
    whisper.generation_config = greedy_config(checkpoint, config, encoder, suppress=suppress)
    return whisper


def greedy_config(checkpoint: str, config: WhisperConfig, encoder: LabelEncoder, *, suppress: bool) -> GenerationConfig:
    """Return the generation config with which other programs decode as we do: greedily.

    What is missing in an older folder, or the whole file, follows from the tokenizer.

    Raises:
        UserError: The file is damaged.
    """
    path = Path(checkpoint) / "generation_config.json"
    try:
        generation = GenerationConfig.from_pretrained(checkpoint)
    except Exception as error:  # of a damaged file: the libraries name no common kind
        if path.is_file():
            raise UserError(f"{path} cannot be read ({first_line(error)}); delete it, or copy it again") from None
        generation = GenerationConfig(
            begin_suppress_tokens=[encoder.vocabulary["Ġ"], encoder.end], return_timestamps=False
        )
    for name in ("begin_suppress_tokens", "suppress_tokens"):
        tokens = getattr(generation, name) or []
        if not isinstance(tokens, list) or not all(token in range(config.vocab_size) for token in tokens):
            raise UserError(f"{path}: {name} {tokens!r} are no tokens of this model; delete the file")
    suppressed = (generation.suppress_tokens or []) if suppress else []
    if generation.max_length is None:
        generation.max_length = config.max_target_positions
    ours: dict[str, Any] = {"forced_decoder_ids": None, "suppress_tokens": suppressed, "num_beams": 1}
    ours |= _special_ids(encoder)
    if encoder.is_multilingual:
        ours |= {"language": encoder.language, "task": encoder.task}
    for name, value in ours.items():
        setattr(generation, name, value)
    return generation


def _special_ids(encoder: LabelEncoder) -> dict[str, Any]:
    """Return what a generation config says of the vocabulary."""
    vocabulary = encoder.vocabulary
    ids: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), encoder.end)
    ids |= {"decoder_start_token_id": encoder.prompt[0], "no_timestamps_token_id": encoder.prompt[-1]}
    if encoder.is_multilingual:
        languages = (f"<|{code}|>" for code in LANGUAGES)
        ids["lang_to_id"] = {name: vocabulary[name] for name in languages if name in vocabulary}
        tasks = [task for task in get_args(Task) if f"<|{task}|>" in vocabulary]
        ids["task_to_id"] = {task: vocabulary[f"<|{task}|>"] for task in tasks}
    return ids | {"is_multilingual": encoder.is_multilingual}


def decoder_states(
    whisper: WhisperForConditionalGeneration,
    encoded: Encoded,
    decoder_input_ids: torch.Tensor,
    cache: EncoderDecoderCache | None = None,
) -> torch.Tensor:
    """Run the decoder over tokens that follow those of a cache; without one, over whole transcripts.

    Args:
        whisper: The model.
        encoded: What it attends to.
        decoder_input_ids: `(B, L)`, padded on the right with any token; with a filled cache, L is 1.
        cache: Keys and values of the tokens before, to which these are added.

    Returns:
        `(B, L, D)`.
    """
    assert whisper.config._attn_implementation == "sdpa", "others are not causal without a mask"
    decoder = whisper.model.decoder
    start = 0 if cache is None else cache.get_seq_length()
    positions = decoder.embed_positions.weight[start : start + decoder_input_ids.shape[1]]
    states = decoder.embed_tokens(decoder_input_ids) + positions
    states = F.dropout(states, p=decoder.dropout, training=decoder.training)
    for layer in decoder.layers:
        # By position: transformers 5.24 gave the cache another name. Without a mask attention is causal.
        after = layer(states, None, encoded.states, encoded.log_weights, cache)
        states = leave_out(states, after, decoder.layerdrop, training=decoder.training)
    return cast("torch.Tensor", decoder.layer_norm(states))


def training_states(
    whisper: WhisperForConditionalGeneration,
    features: torch.Tensor,
    sample: Sample | None,
    decoder_input_ids: torch.Tensor,
    rows_at_once: int,
) -> torch.Tensor:
    """Run encoder and decoder over a batch, and keep the activations of a limited number of utterances only.

    Utterances do not depend on one another. So a batch that is too long for the memory goes through the model in
    parts, and the backward pass computes each part's activations again before it uses them.

    Args:
        whisper: The model.
        features: `(B, F, T)`.
        sample: The silence that follows them.
        decoder_input_ids: `(B, L)`.
        rows_at_once: Utterances whose activations are kept at once; B keeps them all and computes nothing twice.

    Returns:
        `(B, L, D)`.
    """

    def states(features: torch.Tensor, decoder_input_ids: torch.Tensor) -> torch.Tensor:
        return decoder_states(whisper, encode(whisper.model.encoder, features, sample), decoder_input_ids)

    if rows_at_once >= len(features):
        return states(features, decoder_input_ids)
    parts = zip(torch.split(features, rows_at_once), torch.split(decoder_input_ids, rows_at_once), strict=True)
    return torch.cat([checkpoint(states, *part, use_reentrant=False) for part in parts])


def label_loss(
    whisper: WhisperForConditionalGeneration,
    states: torch.Tensor,
    label_positions: torch.Tensor,
    label_tokens: torch.Tensor,
    smoothing: float = 0.0,
) -> torch.Tensor:
    """Sum the cross-entropy over label tokens, computing logits for these alone.

    transformers computes `(B, L, V)` logits, padding included; with V = 51,865 that is most of the loss's time.

    Args:
        whisper: The model.
        states: The decoder's, `(B, L, D)`.
        label_positions: `(K,)` positions in the flattened `(B * L)` decoder states.
        label_tokens: `(K,)` tokens expected there.
        smoothing: Share of each target that is spread over all tokens (Szegedy et al. 2016, arXiv:1512.00567).

    Returns:
        The sum, a scalar. Divide it by the number of tokens of everything that is averaged together.
    """
    counted = states.flatten(0, 1).index_select(0, label_positions)
    return F.cross_entropy(whisper.proj_out(counted), label_tokens, reduction="sum", label_smoothing=smoothing)


def save_whisper(
    whisper: WhisperForConditionalGeneration,
    processor: Any,
    folder: Path,
    weights: dict[str, torch.Tensor],
    dtype: torch.dtype,
) -> None:
    """Write a Hugging Face folder that `WhisperForConditionalGeneration.from_pretrained` and `pipeline` load.

    Args:
        whisper: The model.
        processor: Its tokenizer and feature extractor.
        folder: Where.
        weights: By name; they are emptied.
        dtype: Of the weights in the file. `config.json` says float32 all the same, and so they are loaded.
    """
    weights.pop("proj_out.weight", None)  # the token embedding once more
    whisper.save_pretrained(folder, state_dict={name: tensor.to(dtype) for name, tensor in weights.items()})
    for path in folder.glob("*.safetensors"):  # safetensors 0.8 writes for the user alone
        path.chmod((folder / "config.json").stat().st_mode)
    processor.save_pretrained(folder)
    # transformers 5 leaves this file out, and other clients look for it.
    processor.feature_extractor.save_pretrained(folder)
