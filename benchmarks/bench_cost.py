"""What a training step costs: time and peak memory, beside what a rehearsal without any memory says of it.

Each measurement has a process of its own: two steps of AdamW on random weights and noise. On a CPU the peak is that
of the process above what it had before the model was made (Linux), with the C library told to give large blocks back
when they are freed, because it would keep several times as much; on a GPU, what torch allocated.

    python -m benchmarks.bench_cost --sizes tiny base
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from transformers import WhisperConfig

from benchmarks.bench import SHAPES
from whisper_lightning.model.rehearsal import Load, Mode, Rehearsal
from whisper_lightning.terminal import read_command_line

MIB = 2**20
NUM_TOKENS = 27
MODES = {
    "all weights": Mode("32-true"),
    "decoder alone": Mode("32-true", freeze_encoder=True),
    "LoRA, rank 32": Mode("32-true", lora_rank=32),
    "DoRA, rank 32": Mode("32-true", lora_rank=32, dora=True),
}


def take_steps(size: str, mode: Mode, load: Load) -> tuple[float, float, float]:
    """Return the most that two steps needed, what the rehearsal says, in bytes, and the seconds of the second."""
    rehearsal = Rehearsal(WhisperConfig(**SHAPES[size]), mode)
    expected = rehearsal.training_bytes(load)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rehearsal.seconds(replace(load, rows=1, rows_at_once=1, seconds=0.1), device)  # what is loaded once
    before = 0 if device.type == "cuda" else _resident_bytes("VmRSS")
    if device.type == "cpu":
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forgets the peak
    seconds = rehearsal.seconds(load, device)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else _resident_bytes("VmHWM") - before
    return peak, expected, seconds


def _resident_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def main(args: list[str] | None = None) -> int:
    """Measure and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", choices=SHAPES, default=["tiny", "base"], help="to measure")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--mixed", action="store_true", help="bf16 autocast")
    given = read_command_line(parser, args)
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(MIB)  # for the processes that are started
    heading = f"{'bf16' if given.mixed else 'fp32'}, batch of {given.batch_size}"
    print(f"| {heading} | step, s | peak, MiB | by the rehearsal, MiB | error |")
    print("|---|---|---|---|---|")
    rows = given.batch_size
    loads = {f"{seconds:g} s": Load(rows, seconds, NUM_TOKENS, rows) for seconds in (5.0, 30.0)}
    loads["30 s, in parts"] = Load(rows, 30.0, NUM_TOKENS, max(1, rows // 4))
    for size in given.sizes:
        for way, mode in MODES.items():
            chosen = replace(mode, precision="bf16-mixed") if given.mixed else mode
            for name, load in loads.items():
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                    peak, expected, seconds = pool.submit(take_steps, size, chosen, load).result()
                cells = [f"{seconds:.2f}", f"{peak / MIB:,.0f}", f"{expected / MIB:,.0f}"]
                print(f"| {size}, {way}, {name} | {' | '.join(cells)} | {expected / peak - 1:+.0%} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
