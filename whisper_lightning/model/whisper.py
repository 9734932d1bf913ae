"""Whisper with a context as long as the batch, and its loss on the tokens that count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from whisper_lightning.errors import UserError
from whisper_lightning.text import Task, language_code, load_config


class VariableLengthEncoder(WhisperEncoder):
    """Whisper's encoder for any even number of frames up to the full context.

    It has the parameters of transformers' encoder under the same names and computes the same at full context; only
    the check for 30 s is gone, and a shorter input uses the first positions.
    """

    def forward(self, input_features: torch.Tensor, attention_mask: None = None, **kwargs: Any) -> BaseModelOutput:
        """Encode `(B, F, T)` log-mel frames into `(B, S, D)` states, with S = T / 2."""
        assert input_features.shape[-1] % 2 == 0, "an odd number of frames"
        states = F.gelu(self.conv1(input_features))
        states = F.gelu(self.conv2(states)).transpose(1, 2)
        states = states + self.embed_positions.weight[: states.shape[1]]
        states = F.dropout(states, p=self.dropout, training=self.training)
        for layer in self.layers:
            states = layer(states, None)
        return BaseModelOutput(last_hidden_state=self.layer_norm(states))


class VariableLengthWhisper(WhisperForConditionalGeneration):
    """`WhisperForConditionalGeneration` with `VariableLengthEncoder`; the state dictionary has the same keys."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__(config)
        # An encoder made here anew would miss its sinusoidal positions, which transformers 5 fills in only from the
        # outermost class; the class differs in `forward` alone, so the initialised one takes it on.
        self.model.encoder.__class__ = VariableLengthEncoder


def load_whisper(checkpoint: str, *, random_weights: bool, language: str, task: Task) -> VariableLengthWhisper:
    """Load a Whisper by hub name or local folder, in float32, ready to train and to decode.

    As the usual recipe has it: no forced decoder ids, no suppressed tokens, language and task in the generation
    config.

    Raises:
        UserError: No model there, or no weights in the folder.
    """
    config = load_config(checkpoint)
    # LayerDrop draws from torch's CPU generator in the middle of the forward pass; no published Whisper uses it.
    config.encoder_layerdrop = config.decoder_layerdrop = 0.0
    try:
        if random_weights:
            whisper = VariableLengthWhisper(config)
            whisper.generation_config = GenerationConfig.from_pretrained(checkpoint)
        else:
            whisper = VariableLengthWhisper.from_pretrained(checkpoint, config=config, dtype=torch.float32)
    except OSError as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"model.checkpoint: no weights or no generation_config.json in {checkpoint!r}; choose another checkpoint, "
            f"or set model.random_weights: true to start from scratch ({reason})"
        ) from None
    generation = whisper.generation_config
    generation.forced_decoder_ids = None
    generation.suppress_tokens = []
    generation.language = language_code(language)
    generation.task = task
    return whisper


def label_loss(
    whisper: WhisperForConditionalGeneration,
    encoder_states: torch.Tensor,
    decoder_input_ids: torch.Tensor,
    label_positions: torch.Tensor,
    label_tokens: torch.Tensor,
) -> torch.Tensor:
    """Sum the cross-entropy over label tokens, computing logits for these alone.

    transformers computes `(B, L, V)` logits, padding included; with V = 51,865 that is most of the loss's time.

    Args:
        whisper: The model.
        encoder_states: `(B, S, D)`.
        decoder_input_ids: `(B, L)`, padded on the right with any token.
        label_positions: `(K,)` positions in the flattened `(B * L)` decoder states.
        label_tokens: `(K,)` tokens expected there.

    Returns:
        The sum, a scalar. Divide it by the number of tokens of everything that is averaged together.
    """
    decoder = whisper.model.decoder
    states = decoder(input_ids=decoder_input_ids, encoder_hidden_states=encoder_states, use_cache=False)
    counted = states.last_hidden_state.flatten(0, 1).index_select(0, label_positions)
    return F.cross_entropy(whisper.proj_out(counted), label_tokens, reduction="sum")


def save_whisper(
    whisper: WhisperForConditionalGeneration, processor: Any, folder: Path, weights: dict[str, torch.Tensor]
) -> None:
    """Write a Hugging Face folder that `WhisperForConditionalGeneration.from_pretrained` and `pipeline` load."""
    whisper.save_pretrained(folder, state_dict=weights)
    processor.save_pretrained(folder)
    # transformers 5 leaves this file out, and other clients look for it.
    processor.feature_extractor.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["architectures"] = ["WhisperForConditionalGeneration"]
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
