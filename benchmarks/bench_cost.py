"""What a training step costs as batches grow: time and peak memory, beside what the cost functions say.

Each measurement has a process of its own: two steps of AdamW on random weights and noise. On a CPU the peak is that
of the process above what it had before the model was made (Linux), with the C library told to give large blocks back
when they are freed, because it would keep several times as much; on a GPU, what torch allocated.

    python -m benchmarks.bench_cost --sizes tiny base
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from benchmarks.bench import SHAPES
from whisper_lightning.model.cost import num_parameters, rows_at_once, training_memory_bytes
from whisper_lightning.model.optim import parameter_groups
from whisper_lightning.model.whisper import label_loss, training_states
from whisper_lightning.terminal import read_command_line

MIB, GIB = 2**20, 2**30
NUM_TOKENS = 27
LARGER = {
    "medium": {**SHAPES["small"], "d_model": 1024, "encoder_layers": 24, "decoder_layers": 24}
    | {"encoder_ffn_dim": 4096, "decoder_ffn_dim": 4096},
    "large-v3-turbo": {**SHAPES["small"], "d_model": 1280, "encoder_layers": 32, "decoder_layers": 4}
    | {"encoder_ffn_dim": 5120, "decoder_ffn_dim": 5120, "num_mel_bins": 128, "vocab_size": 51_866},
}
LENGTHS = [(2.5, math.inf), (5.0, math.inf), (10.0, math.inf), (30.0, math.inf)]
"""Padded seconds of each utterance, and the limit on activations."""
IN_PARTS = 60.0


def take_steps(
    size: str, batch_size: int, seconds: float, activation_seconds: float, mixed: bool
) -> tuple[float, float]:
    """Return the most memory that two steps needed, in bytes, and the seconds of the faster."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = 0 if device.type == "cuda" else _resident_bytes("VmRSS")
    whisper = WhisperForConditionalGeneration(WhisperConfig(**SHAPES[size])).to(device).train()
    optimizer = torch.optim.AdamW(parameter_groups(whisper.named_parameters(), 0.01), lr=1e-5, fused=True)
    features = torch.randn(batch_size, whisper.config.num_mel_bins, int(100 * seconds), device=device)
    tokens = torch.randint(0, 400, (batch_size, NUM_TOKENS), device=device)
    positions = torch.arange(tokens.numel(), device=device)
    rows = rows_at_once(batch_size, seconds, activation_seconds)
    durations = []
    for _ in range(2):
        begin = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            loss = label_loss(
                whisper, training_states(whisper, features, None, tokens, rows), positions, tokens.flatten()
            )
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        durations.append(time.perf_counter() - begin)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else _resident_bytes("VmHWM") - before
    return peak, min(durations)


def _resident_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def main(args: list[str] | None = None) -> int:
    """Measure, compare, and tabulate what cannot be measured here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", choices=SHAPES, default=["tiny", "base"], help="to measure")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--mixed", action="store_true", help="bf16 autocast")
    given = read_command_line(parser, args)
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(MIB)  # for the processes that are started
    heading = f"{'bf16' if given.mixed else 'fp32'}, batch of {given.batch_size}"
    print(f"| {heading} | step, s | ms per padded second | peak, MiB | by the function, MiB | error |")
    print("|---|---|---|---|---|---|")
    for size in given.sizes:
        for seconds, limit in [*LENGTHS, (30.0, IN_PARTS)]:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                job = pool.submit(take_steps, size, given.batch_size, seconds, limit, given.mixed)
                peak, step_seconds = job.result()
            expected = estimate(SHAPES[size], given.batch_size, seconds, limit, given.mixed)
            name = f"{size}, {seconds:g} s" + ("" if limit == math.inf else f", activation_seconds {limit:g}")
            cells = [f"{step_seconds:.2f}", f"{1000 * step_seconds / given.batch_size / seconds:.0f}"]
            cells += [f"{peak / MIB:,.0f}", f"{expected / MIB:,.0f}", f"{expected / peak - 1:+.0%}"]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print("\n| bf16-mixed, batch of 16, estimated GiB | parameters, M | 5 s | 30 s | 30 s, activation_seconds 120 |")
    print("|---|---|---|---|---|")
    for size, shape in {**SHAPES, **LARGER}.items():
        lengths = [(5.0, math.inf), (30.0, math.inf), (30.0, 120.0)]
        cells = [f"{estimate(shape, 16, seconds, limit, mixed=True) / GIB:.1f}" for seconds, limit in lengths]
        print(f"| {size} | {num_parameters(WhisperConfig(**shape)) / 1e6:.0f} | {' | '.join(cells)} |")
    return 0


def estimate(shape: dict[str, int], batch_size: int, seconds: float, activation_seconds: float, mixed: bool) -> float:
    """Ask the memory function, in bytes."""
    return training_memory_bytes(
        WhisperConfig(**shape),
        batch_size=batch_size,
        seconds=seconds,
        num_tokens=NUM_TOKENS,
        mixed=mixed,
        activation_seconds=activation_seconds,
    )


if __name__ == "__main__":
    sys.exit(main())
