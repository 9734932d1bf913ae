"""A callback that writes down what a run does, batch by batch, and kills its process where it is told to."""

import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from whisper_lightning.cli import main

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.record"])  # torch and transformers are imported once, not for each run


class Record(Callback):
    """Appends a line of JSON for each training batch and each validation.

    Args:
        path: File for the lines; each rank has its own, with the rank as suffix.
        at: Where to kill the process, or to send another signal: `train`, `validation` or `save`; "" for nowhere.
        count: At which of these, from 1.
        number: The signal; SIGKILL by default.
        rank: Whose process it is sent to; -1 for the whole process group.
        delay_seconds: Time after which it is sent: a save is an event that takes a while.
    """

    def __init__(
        self, path: str, at: str = "", count: int = 1, number: int = 9, rank: int = 0, delay_seconds: float = 0.0
    ) -> None:
        self._path = path
        self._at, self._left = at, count
        self._number, self._rank, self._delay_seconds = number, rank, delay_seconds

    def _write(self, trainer: Trainer, line: dict[str, Any]) -> None:
        with Path(f"{self._path}.{trainer.global_rank}").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _strike(self, trainer: Trainer, event: str) -> None:
        if event != self._at or trainer.sanity_checking or trainer.global_rank != max(0, self._rank):
            return
        self._left -= 1
        if self._left:
            return
        send = os.kill if self._rank >= 0 else os.killpg
        target = os.getpid() if self._rank >= 0 else os.getpgrp()
        if self._delay_seconds:
            threading.Timer(self._delay_seconds, send, (target, self._number)).start()
        else:
            send(target, self._number)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        line = {
            "batch": [trainer.fit_loop.epoch_progress.current.processed, batch_idx],  # type: ignore[attr-defined]
            "keys": batch.keys,
            "audio": float(batch.waveforms.double().sum()).hex(),
            "loss": float(outputs["loss"]).hex(),
            "learning_rate": float(trainer.optimizers[0].param_groups[0]["lr"]).hex(),
        }
        self._write(trainer, line)
        self._strike(trainer, "train")

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._strike(trainer, "validation")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            names = ("val/loss", "val/wer", "val/cer", "val/insertions")
            values = {name: float(trainer.callback_metrics[name]).hex() for name in names}
            self._write(trainer, {"validation": trainer.global_step} | values)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._strike(trainer, "save")


def read(path: Path) -> list[dict[str, Any]]:
    """Give the lines of a record; a kill may have cut the last one."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def start(arguments: list[str], environment: Mapping[str, str] | None = None) -> ForkServerProcess:
    """Start the command line in a process of its own, in a process group of its own."""
    process = CONTEXT.Process(target=_run, args=(arguments, dict(environment or {})))
    process.start()
    return process


def run(arguments: list[str], environment: Mapping[str, str] | None = None, timeout_seconds: float = 200) -> int:
    """Run the command line in a process of its own; give its exit code, negative for a signal."""
    process = start(arguments, environment)
    process.join(timeout_seconds)
    if process.exitcode is None:
        os.killpg(process.pid or 0, signal.SIGKILL)
        raise TimeoutError(f"still running after {timeout_seconds} s: {arguments}")
    return process.exitcode


def _run(arguments: list[str], environment: dict[str, str]) -> None:
    os.setpgid(0, int(environment.get("GROUP", "0")))
    os.environ.update({"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"} | environment)
    torch.set_num_threads(1)
    sys.exit(main(arguments))
