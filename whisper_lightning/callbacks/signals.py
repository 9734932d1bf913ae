"""Signals that ask a run to stop: noted at once, acted on when every rank knows."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

import torch
from torch import distributed

from whisper_lightning.stop import EXIT_CODES, give_back, take_over


class StopRequest:
    """Notes a signal in its handler, and tells all ranks of it at their next common point.

    A handler that saved or communicated would do so in the middle of anything. Ranks agree through a group of their
    own on the CPU, whose result is read one call later: nobody waits for the others, or for a GPU.
    """

    def __init__(self) -> None:
        self._code = 0
        self._previous: dict[int, Any] = {}
        self._group: Any = None
        self._pending: tuple[Any, torch.Tensor] | None = None

    def install(self) -> None:
        """Take the handlers over; once more has no effect. Every rank must call it."""
        if self._previous or threading.current_thread() is not threading.main_thread():
            return
        self._previous = take_over(self._note)
        if distributed.is_available() and distributed.is_initialized():
            self._group = distributed.new_group(backend="gloo")

    def restore(self) -> None:
        """Give the handlers back."""
        give_back(self._previous)
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        code = EXIT_CODES[signal.Signals(number).name]
        if number == signal.SIGINT:
            if self._code == code:
                raise KeyboardInterrupt
            os.write(2, b"\nstopping after this step; Ctrl-C once more stops at once\n")
        self._code = max(self._code, code)

    def agreed(self) -> int:
        """Return the exit code that all ranks agree on, 0 while none was asked to stop. Every rank must call it."""
        if self._group is None:
            return self._code
        code = self.settle()
        mine = torch.tensor(self._code)
        self._pending = (distributed.all_reduce(mine, distributed.ReduceOp.MAX, self._group, async_op=True), mine)
        return code

    def settle(self) -> int:
        """Wait for what was last sent, which has mostly arrived long ago, and give what the ranks agreed on."""
        if self._pending is None:
            return 0
        (work, code), self._pending = self._pending, None
        work.wait()
        return int(code)
