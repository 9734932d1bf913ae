"""Train for thousands of steps and watch what the run holds: memory, descriptors and shared memory stay flat.

python -m tools.soak --steps 5000 --out soak

Linux alone: it looks into /proc.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from whisper_lightning.terminal import read_command_line


class Held(NamedTuple):
    """What a run and its processes hold: memory of their own in MB, descriptors, and shared memory in MB."""

    memory_mb: float
    descriptors: float
    shared_mb: float


def watch(pid: int) -> Held:
    """Add up a process and its descendants; what processes share is counted once."""
    family, memory, descriptors = [pid], 0.0, 0
    for member in family:
        process = Path(f"/proc/{member}")
        try:
            family += [int(child) for path in process.glob("task/*/children") for child in path.read_text().split()]
            fields = dict(line.split(":") for line in (process / "smaps_rollup").read_text().splitlines()[1:])
            memory += float(fields["Pss"].split()[0]) / 1024
            descriptors += len(list((process / "fd").iterdir()))
        except (OSError, KeyError):  # it has ended
            continue
    return Held(memory, descriptors, shutil.disk_usage("/dev/shm").used / 2**20)


def main() -> int:
    """Run, print what was held along the way; 1 where it grew, or the run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    options = read_command_line(parser)
    command = [sys.executable, "-m", "whisper_lightning", "fit", "--config=quickstart.yaml"]
    command += [f"--trainer.max_steps={options.steps}", f"--trainer.default_root_dir={options.out / 'run'}"]
    command += [f"--trainer.val_check_interval={options.steps // 20}", "--trainer.enable_progress_bar=false"]
    command += ["--data.num_workers=2", "--data.augment=true", "--model.spec_augment=true"]
    options.out.mkdir(parents=True)
    begun, seen = time.monotonic(), []
    with (options.out / "log.txt").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"WANDB_MODE": "offline"})
        while process.poll() is None:
            time.sleep(1)
            seen.append(watch(process.pid))
    seen = [held for held in seen if held.descriptors]
    seconds = time.monotonic() - begun
    print(f"{options.steps} steps, {seconds:.0f} s, exit {process.returncode}; medians of tenths of the run:")
    tenths = []
    for i in range(10):
        part = seen[i * len(seen) // 10 : (i + 1) * len(seen) // 10]
        tenths.append(Held(*(median(column) for column in zip(*part, strict=True))))
        print(f"{10 * i:3d} %  {tenths[i][0]:6.0f} MB  {tenths[i][1]:4.0f} descriptors  {tenths[i][2]:6.1f} MB shared")
    # Medians: a validation, and the test at the end, hold more for a while.
    growth = [late / max(1, early) for early, late in zip(tenths[2], tenths[9], strict=True)]
    print("the last tenth over the third: " + ", ".join(f"{ratio:.3f}" for ratio in growth))
    return int(process.returncode != 0 or max(growth) > 1.05)


if __name__ == "__main__":
    sys.exit(main())
