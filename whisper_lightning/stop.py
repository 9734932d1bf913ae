"""Signals that ask a process to stop while it has nothing to save: taken over before any work, imports included."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from whisper_lightning.errors import Interrupted

EXIT_CODES = {"SIGTERM": 75, "SIGUSR1": 75, "SIGINT": 130}
"""75 is EX_TEMPFAIL of sysexits.h: try again later. SLURM sends SIGUSR1 (`sbatch --signal`) or SIGTERM."""


def take_over(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Let a function handle these signals; return the handlers before it, to be given back."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    numbers = [getattr(signal, name) for name in EXIT_CODES if hasattr(signal, name)]  # Windows has no SIGUSR1
    return {number: signal.signal(number, handler) for number in numbers}


def give_back(handlers: dict[int, Any]) -> None:
    """Install what `take_over` replaced."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


def stop_at_once(number: int, frame: FrameType | None) -> None:
    """End the process: for imports, which may swallow an exception and have nothing to tidy up."""
    os.write(2, b"\nstopped\n")
    os._exit(EXIT_CODES[signal.Signals(number).name])


def stop_in_order(number: int, frame: FrameType | None) -> None:
    """Raise `Interrupted`, so that whoever is at work tidies up; a second signal does not wait for that."""
    take_over(stop_at_once)
    raise Interrupted(
        "stopped while there was nothing to save; start it again, with --ckpt_path last where the folder holds a run",
        EXIT_CODES[signal.Signals(number).name],
    )
