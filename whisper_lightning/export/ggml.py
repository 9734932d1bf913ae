"""The ggml file of whisper.cpp."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from whisper_lightning.export.decoding import Client, Decoding
from whisper_lightning.export.hardwired import token_bytes
from whisper_lightning.export.openai import dimensions, renamed_state
from whisper_lightning.model.module import WhisperModule

MAGIC = 0x67676D6C
"""The letters "ggml"."""
HEADER = (
    "n_vocab",
    "n_audio_ctx",
    "n_audio_state",
    "n_audio_head",
    "n_audio_layer",
    "n_text_ctx",
    "n_text_state",
    "n_text_head",
    "n_text_layer",
    "n_mels",
)
FLOAT32, FLOAT16 = 0, 1
SHORTEST_SAMPLES = 17_600
"""whisper.cpp leaves clips of less than a second out; 1.1 s."""


def write(module: WhisperModule, path: Path) -> None:
    """Write sizes, mel filters, vocabulary and tensors, as `whisper_model_load` of whisper.cpp reads them.

    All numbers are little-endian. Matrices and convolutions are in float16, as in the published files: whisper.cpp
    stops at a convolution in float32 on a processor. Biases, norms and positions are in float32. The special tokens
    and timestamps are not in the vocabulary: whisper.cpp knows their ids from its size.

    Source: src/whisper.cpp of github.com/ggml-org/whisper.cpp.

    Args:
        module: The model, with the published vocabulary.
        path: The file.
    """
    sizes = dimensions(module)
    filters = module.get_buffer("filters").numpy().astype("<f4")
    tokens = token_bytes(module.processor.tokenizer)
    end = module.encoder.end
    with path.open("wb") as file:
        file.write(struct.pack("<12i", MAGIC, *(sizes[name] for name in HEADER), FLOAT16))
        file.write(struct.pack("<2i", *filters.shape) + filters.tobytes())
        file.write(struct.pack("<i", end))
        for i in range(end):
            file.write(struct.pack("<i", len(tokens[i])) + tokens[i])
        for name, tensor in renamed_state(module).items():
            _write_tensor(file, name, tensor)


def _write_tensor(file: BinaryIO, name: str, tensor: torch.Tensor) -> None:
    """Write dimensions (the innermost first), name and values of one tensor."""
    half = tensor.dim() >= 2 and not name.endswith("positional_embedding")
    # whisper.cpp adds a convolution's bias to columns of frames.
    shaped = tensor[:, None] if name in ("encoder.conv1.bias", "encoder.conv2.bias") else tensor
    encoded = name.encode()
    file.write(struct.pack("<3i", shaped.dim(), len(encoded), FLOAT16 if half else FLOAT32))
    file.write(struct.pack(f"<{shaped.dim()}i", *reversed(shaped.shape)))
    file.write(encoded)
    file.write(np.ascontiguousarray(shaped.detach().cpu().numpy(), dtype="<f2" if half else "<f4").tobytes())


def open_client(path: Path, decoding: Decoding) -> Client:
    """Open the file with whisper.cpp, through pywhispercpp."""
    from pywhispercpp.model import Model

    # Even an empty pattern is matched with every token of the vocabulary at every step.
    suppressed: dict[str, Any] = {"suppress_regex": decoding.suppress_regex} if decoding.suppress_regex else {}
    model = Model(
        str(path),
        redirect_whispercpp_logs_to=None,
        context_params={"use_gpu": False, "flash_attn": False},
        print_progress=False,
        language=decoding.language,
        translate=decoding.task == "translate",
        no_context=True,
        no_timestamps=True,
        single_segment=True,
        suppress_blank=decoding.suppress_blank,
        **suppressed,
        greedy={"best_of": 1},
        temperature=0.0,
        temperature_inc=0.0,  # no second try where the first one looks bad by one of these thresholds:
        entropy_thold=-1.0,
        logprob_thold=-1e9,
        no_speech_thold=2.0,
        max_tokens=decoding.max_tokens - 1,  # counted from 0
    )

    def transcribe(waveform: torch.Tensor) -> str:
        """Transcribe `(N,)` at 16 kHz."""
        padded = np.pad(waveform.numpy(), (0, max(0, SHORTEST_SAMPLES - len(waveform))))
        return " ".join(segment.text.strip() for segment in model.transcribe(padded)).strip()

    return transcribe
