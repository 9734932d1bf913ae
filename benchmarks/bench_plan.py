"""Measure planning on synthetic indexes: what an epoch costs before its first batch, however large the corpus.

Prints a Markdown table. No audio is made: an index of the real format, beside empty shards, is all that a plan reads.
Each size runs in a process of its own, so that memory is its own; times are processor time (planning
runs on one core), the fastest of several. Linux only (/proc).

    python -m benchmarks.bench_plan --utterances 1000 100000 10000000
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from whisper_lightning.audio.constants import SAMPLE_RATE_HZ
from whisper_lightning.data.format import BLOCK_BYTES, FORMAT_VERSION, RECORD
from whisper_lightning.data.plan import Plan, PlannedBatch, PlanOptions
from whisper_lightning.data.shards import ShardIndex
from whisper_lightning.data.splits import Split
from whisper_lightning.terminal import read_command_line

SHARD_UTTERANCES = 500
MIB = 2**20


def write_index(folder: Path, num_utterances: int) -> None:
    """Write an index of utterances of 0.3 to 30 s, 5 s on average, and its shards, as long as it says but hollow."""
    rng = np.random.default_rng(0)
    seconds = rng.lognormal(np.log(5) - 0.08, 0.4, num_utterances).clip(0.3, 30)
    table = np.zeros(num_utterances, RECORD)
    table["num_samples"] = seconds * SAMPLE_RATE_HZ
    table["shard"], place = np.divmod(np.arange(num_utterances), SHARD_UTTERANCES)
    table["offset"] = BLOCK_BYTES + 4 * BLOCK_BYTES * place  # a header and a block each for the sound and the text
    table["flac_bytes"] = table["json_bytes"] = BLOCK_BYTES
    shard_bytes = 4 * BLOCK_BYTES * SHARD_UTTERANCES
    np.save(folder / "index.npy", table)
    names = [f"{number:06d}.tar" for number in range(int(table["shard"][-1]) + 1)]
    for name in names:
        with (folder / name).open("wb") as file:
            file.truncate(shard_bytes)
    shards = [{"name": name, "bytes": shard_bytes, "sha256": f"{number:064x}"} for number, name in enumerate(names)]
    info = {"version": FORMAT_VERSION, "num_utterances": num_utterances, "shards": shards}
    (folder / "index.json").write_text(json.dumps(info), encoding="utf-8")


def memory_mib(field: str) -> float:
    """Read this process's memory: VmHWM (the most so far, mapped files included) or RssAnon (its own, now)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    assert found
    return int(found[1]) / 1024


def fastest_seconds(call: Callable[[], object], repeats: int) -> float:
    """Take the processor time of a call, the least of several: other programs on the machine disturb it little."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        call()
        times.append(time.process_time() - begin)
    return min(times)


def padding_efficiency(plan: Plan, index: ShardIndex) -> float:
    """Speech over padded audio."""
    padded_samples = plan.sizes @ plan.num_samples.astype(np.int64)
    return float(index.num_samples[plan.indices].sum(dtype=np.int64) / padded_samples)


def measure(folder: Path, repeats: int) -> dict[str, str]:
    """Open the index, plan, and enter the epoch at three places, as a new process does after an interruption."""
    imported_mib, own_mib = memory_mib("VmHWM"), memory_mib("RssAnon")
    begin = time.process_time()
    index = ShardIndex.open(folder)
    split = Split(index, np.arange(len(index), dtype=np.int32), [])
    open_seconds = time.process_time() - begin
    index_mib = memory_mib("RssAnon") - own_mib

    def plan(world_size: int = 1) -> Plan:
        return split.plan(PlanOptions(batch_size=16), seed=42, epoch=0, world_size=world_size)

    def enter(start: int) -> PlannedBatch:
        return next(iter(plan()[start:]))

    one, peak_mib = plan(), memory_mib("VmHWM")
    eight = plan(world_size=8)
    plan_seconds = [fastest_seconds(partial(plan, world_size), repeats) for world_size in (1, 8)]
    enter_seconds = [fastest_seconds(partial(enter, start), repeats) for start in (0, len(one) // 2, len(one) - 1)]
    disk_mib = sum((folder / name).stat().st_size for name in ("index.npy", "index.json")) / MIB
    return {
        "utterances": f"{len(index):,}",
        "speech, h": f"{index.num_samples.sum(dtype=np.int64) / SAMPLE_RATE_HZ / 3600:,.0f}",
        "shards": f"{len(index.shards):,}",
        "index on disk (the table is mapped, not read), MiB": f"{disk_mib:,.1f}",
        "shards' names and members in memory, MiB": f"{index_mib:,.1f}",
        "opening the folder, s": f"{open_seconds:.2g}",
        "planning an epoch, s: alone; one of 8 ranks": "; ".join(f"{seconds:.2g}" for seconds in plan_seconds),
        "peak RSS, MiB: imports; after planning": f"{imported_mib:,.0f}; {peak_mib:,.0f}",
        "plan that a rank holds, MiB: alone; one of 8": f"{one.nbytes / MIB:.2f}; {eight.nbytes / MIB:.2f}",
        "resuming at the first batch; half; last, planning included, s": "; ".join(
            f"{seconds:.2g}" for seconds in enter_seconds
        ),
        "padding efficiency": f"{padding_efficiency(one, index):.3f}",
    }


def main(args: list[str] | None = None) -> int:
    """Measure each size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, nargs="+", default=[1_000, 100_000, 10_000_000], help="sizes")
    parser.add_argument("--repeats", type=int, default=3, help="the fastest of so many is printed")
    options = read_command_line(parser, args)
    columns = []
    for num_utterances in options.utterances:
        with tempfile.TemporaryDirectory() as folder:
            write_index(Path(folder), num_utterances)
            # A spawned process, because a forked one starts with this one's memory.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                columns.append(pool.submit(measure, Path(folder), options.repeats).result())
    for number, name in enumerate(columns[0]):
        print("|", " | ".join([name, *(column[name] for column in columns)]), "|")
        if number == 0:
            print("|---" * (len(columns) + 1) + "|")
    return 0


if __name__ == "__main__":
    sys.exit(main())
