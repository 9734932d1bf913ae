"""A callback that writes down what a run does, batch by batch, and kills its process where it is told to."""

import json
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp._common_utils import clean_tensor_name

import whisper_lightning.commands.training  # noqa: F401  (which the command line imports late: once for all runs)
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
        command = ["kill", f"-{self._number}", "--", f"-{os.getpgrp()}"]

        def send() -> None:
            if self._rank < 0:  # workers obey the main process, which must not be the sender
                subprocess.run(command, start_new_session=True, check=True)
            else:
                os.kill(os.getpid(), self._number)

        if self._delay_seconds:
            threading.Timer(self._delay_seconds, send).start()
        else:
            send()

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


class CpuFSDP(FSDPStrategy):
    """FSDP on CPUs, which torch can do and Lightning does not offer."""

    def _setup_model(self, model: Any) -> Any:
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Gather by hand: torch 2.12 crashes where it drops the gathered weights of a CPU."""
        assert self.model is not None
        with FullyShardedDataParallel.summon_full_params(self.model, writeback=False):
            state = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        tied = "whisper.model.decoder.embed_tokens.weight"
        return {clean_tensor_name(name): value for name, value in state.items()} | {
            "whisper.proj_out.weight": {clean_tensor_name(name): value for name, value in state.items()}[tied]
        }


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a record; a kill may have cut the last one."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def start(arguments: list[str], environment: Mapping[str, str] | None = None) -> ForkServerProcess:
    """Start the command line in a process of its own, in a process group of its own."""
    process = CONTEXT.Process(target=_run, args=(arguments, dict(environment or {})))
    process.start()
    return process


def run(arguments: list[str], environment: Mapping[str, str] | None = None, timeout_seconds: float = 200) -> int:
    """Run the command line in a process of its own; return its exit code, negative for a signal."""
    process = start(arguments, environment)
    process.join(timeout_seconds)
    if process.exitcode is None:
        os.killpg(process.pid or 0, signal.SIGKILL)
        raise TimeoutError(f"still running after {timeout_seconds} s: {arguments}")
    return process.exitcode


def start_ranks(
    arguments: list[str], num_ranks: int, environment: Mapping[str, str] | None = None, strategy: str = "ddp"
) -> list[ForkServerProcess]:
    """Start the command line as several ranks, as `torchrun` and SLURM do, in one process group."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_ranks), "NODE_RANK": "0"}
    shared |= environment or {}
    arguments = [*arguments, f"--trainer.strategy={strategy}", f"--trainer.devices={num_ranks}"]
    processes: list[ForkServerProcess] = []
    for rank in range(num_ranks):
        group = {"GROUP": str(processes[0].pid)} if rank else {}
        processes.append(start(arguments, shared | {"LOCAL_RANK": str(rank)} | group))
    return processes


def run_ranks(arguments: list[str], num_ranks: int, timeout_seconds: float = 200, strategy: str = "ddp") -> list[int]:
    """Run the command line as several ranks.

    Returns:
        The exit codes, negative for a signal, 1000 for one that hung.
    """
    processes = start_ranks(arguments, num_ranks, strategy=strategy)
    end = time.monotonic() + timeout_seconds
    for process in processes:
        process.join(max(0, end - time.monotonic()))
    codes = [process.exitcode for process in processes]
    if None in codes:
        os.killpg(processes[0].pid or 0, signal.SIGKILL)
    return [code if code is not None else 1000 for code in codes]


def _run(arguments: list[str], environment: dict[str, str]) -> None:
    while True:
        try:
            os.setpgid(0, int(environment.get("GROUP", "0")))
            break
        except PermissionError:  # the first rank has not made its group yet
            time.sleep(0.01)
    if "ERRORS" in environment:
        os.dup2(os.open(environment["ERRORS"], os.O_WRONLY | os.O_CREAT), 2)
    if "LARGEST_FILE_BYTES" in environment:
        sys.dont_write_bytecode = True  # Python leaves what it compiles cut at the limit
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(environment["LARGEST_FILE_BYTES"]), resource.RLIM_INFINITY))
    os.environ.update({"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"} | environment)
    tempfile.tempdir = None  # it was looked for in another environment
    torch.set_num_threads(1)
    sys.exit(main(arguments))
