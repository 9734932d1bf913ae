"""What the cost functions count, against what torch counts."""

from itertools import accumulate

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import WhisperConfig, WhisperForConditionalGeneration

from whisper_lightning.model.adapters import add_adapters, halve_frozen
from whisper_lightning.model.cost import rows_at_once, training_flops
from whisper_lightning.model.rehearsal import Load, Mode, Rehearsal
from whisper_lightning.model.whisper import label_loss, training_states


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


def test_operations() -> None:
    """With attention as plain matrix products, because torch does not count its fused kernel on a CPU."""
    config = make_config(256)
    whisper = WhisperForConditionalGeneration(config).train()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run_step(whisper, 2, 600, 20).backward()  # type: ignore[no-untyped-call]
    assert 2 * training_flops(config, 6.0, 20) == pytest.approx(counter.get_total_flops(), rel=0.03)


def exact_in_16_bits(whisper: WhisperForConditionalGeneration) -> None:
    """As OpenAI's weights are."""
    for weight in whisper.parameters():
        weight.data = weight.data.half().float()


def allocated_bytes(config: WhisperConfig, mode: Mode, load: Load) -> int:
    """What torch's profiler saw allocated at the peak of a real step, and what was there before."""
    torch.manual_seed(0)
    whisper = WhisperForConditionalGeneration(config).train()
    exact_in_16_bits(whisper)
    add_adapters(whisper, mode.lora_rank, None, dora=mode.dora)
    if mode.freeze_encoder:
        whisper.model.encoder.requires_grad_(False)
    if "mixed" in mode.precision:
        halve_frozen(whisper)
    held = sum(weight.numel() * (weight.element_size() + 8 * weight.requires_grad) for weight in whisper.parameters())
    features = torch.randn(load.rows, whisper.config.num_mel_bins, int(100 * load.seconds))
    ids = torch.zeros(load.rows, load.num_tokens, dtype=torch.long)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        with torch.autocast("cpu", torch.bfloat16, enabled="mixed" in mode.precision):
            states = training_states(whisper, features, None, ids, load.rows_at_once)
            loss = label_loss(whisper, states, torch.arange(ids.numel()), ids.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
    events = [each for each in profiled.profiler.kineto_results.events() if each.name() == "[memory]"]
    changes = [size for _, size in sorted((each.start_ns(), each.nbytes()) for each in events)]
    return int(held + features.nbytes + max(accumulate(changes)))


@pytest.mark.parametrize(
    "mode",
    [
        Mode("32-true"),
        Mode("bf16-mixed"),
        Mode("bf16-mixed", lora_rank=8),
        Mode("32-true", lora_rank=8, dora=True),
        Mode("bf16-mixed", freeze_encoder=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("load", [Load(4, 4.0, 20, 4), Load(8, 8.0, 20, 2)], ids=["at once", "in parts"])
def test_a_rehearsal_takes_the_memory_of_a_step(mode: Mode, load: Load) -> None:
    """As torch's own profiler counts it; the vocabulary is as large as to make the logits count."""
    config = make_config(128, 2, vocab_size=20_000)
    rehearsal = Rehearsal(config, mode)
    assert rehearsal.training_bytes(load) == pytest.approx(allocated_bytes(config, mode, load), rel=0.05)
    assert rehearsal.training_bytes(load) == rehearsal.training_bytes(load), "nothing stays behind"


def test_a_validation_keeps_no_activations() -> None:
    rehearsal = Rehearsal(make_config(256), Mode("32-true"))
    short, long = (rehearsal.validation_bytes(Load(16, seconds, 20, 16)) for seconds in (4.0, 8.0))
    states = 16 * 4 * 50 * 256 * 4
    caches = 2 * 3 * states  # keys and values of three decoder layers
    assert caches + states < long - short < caches + 12 * states


def test_frozen_matrices_are_held_in_half_where_nothing_is_lost() -> None:
    """A step in mixed precision has the same loss and gradients, to the bit."""
    losses, gradients = [], []
    for halved in (False, True):
        torch.manual_seed(0)
        whisper = WhisperForConditionalGeneration(make_config(128)).train()
        exact_in_16_bits(whisper)
        odd = whisper.model.decoder.layers[1].fc1.weight
        odd.data += 1e-5
        add_adapters(whisper, 4, None, dora=False)
        for name, weight in whisper.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.02)
        if halved:
            halve_frozen(whisper)
            kinds = {name: weight.dtype for name, weight in whisper.named_parameters()}
            assert kinds["model.encoder.layers.0.fc1.base_layer.weight"] == torch.float16
            assert kinds["model.decoder.layers.1.fc1.base_layer.weight"] == torch.float32, "it would lose something"
            assert kinds["model.encoder.layers.0.fc1.lora_A.default.weight"] == torch.float32, "it is trained"
            assert kinds["model.decoder.embed_tokens.weight"] == torch.float32
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            loss = run_step(whisper, 2, 400, 12)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.item())
        gradients.append([weight.grad for weight in whisper.parameters() if weight.grad is not None])
    assert losses[0] == losses[1]
    assert len(gradients[0]) == len(gradients[1]) > 0
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("batch_size", "seconds", "limit", "rows"), [(16, 5.0, 120.0, 16), (16, 30.0, 120.0, 4), (16, 30.0, 10.0, 1)]
)
def test_rows_at_once(batch_size: int, seconds: float, limit: float, rows: int) -> None:
    assert rows_at_once(batch_size, seconds, limit) == rows
