"""The `.pt` file of openai-whisper."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from whisper_lightning.export.decoding import Client, Decoding
from whisper_lightning.export.hf import DTYPES, Precision
from whisper_lightning.model.module import WhisperModule

RENAMED = (
    (r"^whisper\.model\.", ""),
    (r"\.layers\.(\d+)\.", r".blocks.\1."),
    (r"\.embed_positions\.weight$", ".positional_embedding"),
    (r"\.embed_tokens\.", ".token_embedding."),
    (r"^encoder\.layer_norm\.", "encoder.ln_post."),
    (r"^decoder\.layer_norm\.", "decoder.ln."),
    (r"\.encoder_attn_layer_norm\.", ".cross_attn_ln."),
    (r"\.self_attn_layer_norm\.", ".attn_ln."),
    (r"\.final_layer_norm\.", ".mlp_ln."),
    (r"\.fc1\.", ".mlp.0."),
    (r"\.fc2\.", ".mlp.2."),
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"\.self_attn\.", ".attn."),
    (r"\.q_proj\.", ".query."),
    (r"\.k_proj\.", ".key."),
    (r"\.v_proj\.", ".value."),
    (r"\.out_proj\.", ".out."),
)
"""transformers' names of the parameters, and openai-whisper's (whisper/model.py)."""


def dimensions(module: WhisperModule) -> dict[str, int]:
    """Return the sizes of a model under openai-whisper's names, in its order (`ModelDimensions`)."""
    config = module.whisper.config
    return {
        "n_mels": config.num_mel_bins,
        "n_audio_ctx": config.max_source_positions,
        "n_audio_state": config.d_model,
        "n_audio_head": config.encoder_attention_heads,
        "n_audio_layer": config.encoder_layers,
        "n_vocab": config.vocab_size,
        "n_text_ctx": config.max_target_positions,
        "n_text_state": config.d_model,
        "n_text_head": config.decoder_attention_heads,
        "n_text_layer": config.decoder_layers,
    }


def renamed_state(module: WhisperModule) -> dict[str, torch.Tensor]:
    """Return the weights under openai-whisper's names; the output layer is the embedding, and has none."""
    state = {}
    for name, tensor in module.state_dict().items():
        if name == "whisper.proj_out.weight":
            continue
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        state[name] = tensor
    return state


def write(module: WhisperModule, path: Path, precision: Precision = "fp32") -> None:
    """Write the sizes and weights that `whisper.load_model` reads.

    Args:
        module: The model, with the published vocabulary.
        path: The file.
        precision: Of the weights; openai-whisper computes in what it is told when it decodes.
    """
    state = {name: tensor.to(DTYPES[precision]) for name, tensor in renamed_state(module).items()}
    torch.save({"dims": dimensions(module), "model_state_dict": state}, path)


def open_client(path: Path, decoding: Decoding) -> Client:
    """Open the file with openai-whisper."""
    import whisper

    model = whisper.load_model(str(path), device="cpu")
    options = whisper.DecodingOptions(
        task=decoding.task,
        language=decoding.language,
        without_timestamps=True,
        fp16=False,
        suppress_tokens=list(decoding.suppress_tokens),
        suppress_blank=decoding.suppress_blank,
        sample_len=decoding.max_tokens,
    )

    def transcribe(waveform: torch.Tensor) -> str:
        """Transcribe `(N,)` at 16 kHz."""
        features = whisper.log_mel_spectrogram(whisper.pad_or_trim(waveform), n_mels=model.dims.n_mels)
        return str(whisper.decode(model, features, options).text).strip()

    return transcribe
