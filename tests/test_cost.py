"""What the cost functions count, against what torch counts."""

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import WhisperConfig, WhisperForConditionalGeneration

from whisper_lightning.model.cost import (
    activation_bytes,
    num_parameters,
    rows_at_once,
    training_flops,
    training_memory_bytes,
)
from whisper_lightning.model.whisper import label_loss, training_states

LARGE_V3_TURBO = {"d_model": 1280, "encoder_layers": 32, "decoder_layers": 4, "num_mel_bins": 128, "vocab_size": 51_866}


def make_config(width: int = 128, layers: int = 3, **shape: int) -> WhisperConfig:
    names = ("encoder_attention_heads", "decoder_attention_heads", "encoder_ffn_dim", "decoder_ffn_dim")
    sizes = dict(zip(names, (width // 64, width // 64, 4 * width, 4 * width), strict=True))
    shape = {"d_model": width, "encoder_layers": layers, "decoder_layers": layers, "vocab_size": 1000, **sizes, **shape}
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0)
    return WhisperConfig(**shape, **tokens)


def run_step(
    whisper: WhisperForConditionalGeneration, rows: int, frames: int, tokens: int, rows_at_once: int = 99
) -> torch.Tensor:
    features, ids = torch.randn(rows, whisper.config.num_mel_bins, frames), torch.zeros(rows, tokens, dtype=torch.long)
    states = training_states(whisper, features, None, ids, rows_at_once)
    return label_loss(whisper, states, torch.arange(rows * tokens), ids.flatten())


@pytest.mark.parametrize("shape", [{}, {"num_mel_bins": 128, "decoder_layers": 1}, LARGE_V3_TURBO])
def test_parameters(shape: dict[str, int]) -> None:
    config = make_config(**shape)
    with torch.device("meta"):
        whisper = WhisperForConditionalGeneration(config)
    assert num_parameters(config) == sum(p.numel() for p in whisper.parameters())


def saved_bytes(whisper: WhisperForConditionalGeneration, mixed: bool, *size: int) -> int:
    """Bytes of what autograd keeps of a forward pass, each storage once, but for the model's own weights."""
    weights = {p.untyped_storage().data_ptr() for p in whisper.parameters()}
    kept: dict[int, torch.Tensor] = {}  # the tensors, because a freed one's place is used again

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), torch.autocast("cpu", enabled=mixed):
        run_step(whisper, *size)
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in weights)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(("width", "layers", "frames"), [(128, 3, 400), (192, 2, 1000)])
def test_activations(mixed: bool, width: int, layers: int, frames: int) -> None:
    """What one utterance more costs: so nothing that is kept once, like the weights' 16-bit copies, counts."""
    config, tokens = make_config(width, layers), 12
    whisper = WhisperForConditionalGeneration(config).train()
    three, two = (saved_bytes(whisper, mixed, rows, frames, tokens) for rows in (3, 2))
    logits = tokens * config.vocab_size * 4
    expected = activation_bytes(config, frames / 100, tokens, mixed=mixed)
    assert expected == pytest.approx(three - two - logits, rel=0.03)


def test_operations() -> None:
    """With attention as plain matrix products, because torch does not count its fused kernel on a CPU."""
    config = make_config(256)
    whisper = WhisperForConditionalGeneration(config).train()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run_step(whisper, 2, 600, 20).backward()  # type: ignore[no-untyped-call]
    assert 2 * training_flops(config, 6.0, 20) == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_parts_bound_the_memory() -> None:
    """The formula, and what is really saved, with all rows at once and one by one."""
    config = make_config(128, 4)
    whisper = WhisperForConditionalGeneration(config).train()
    assert saved_bytes(whisper, False, 8, 400, 12, 1) < saved_bytes(whisper, False, 8, 400, 12, 8) / 5
    options: dict[str, Any] = {"batch_size": 16, "num_tokens": 30, "mixed": True}
    turbo = make_config(1280, **{k: v for k, v in LARGE_V3_TURBO.items() if k != "d_model"})
    whole = training_memory_bytes(turbo, seconds=30.0, **options)
    parts = training_memory_bytes(turbo, seconds=30.0, activation_seconds=120.0, **options)
    short = training_memory_bytes(turbo, seconds=7.5, **options)
    assert parts < 0.6 * whole
    assert parts == pytest.approx(short, rel=0.02)


@pytest.mark.parametrize(
    ("batch_size", "seconds", "limit", "rows"), [(16, 5.0, 120.0, 16), (16, 30.0, 120.0, 4), (16, 30.0, 10.0, 1)]
)
def test_rows_at_once(batch_size: int, seconds: float, limit: float, rows: int) -> None:
    assert rows_at_once(batch_size, seconds, limit) == rows
