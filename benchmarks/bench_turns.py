"""Let programs run in turn, stage by stage, so that a stage of one is timed beside the same stage of another.

A busy machine slows whatever runs at the time. Two whole runs, one after the other, would be compared at different
times; here every step of one has a step of the other next to it, and only one program runs at a time.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """What both sides are given.

    Attributes:
        folder: Where the side keeps everything it writes.
        train: CSV of the training utterances.
        test: CSV of the utterances that each evaluation goes over.
        model: Folder of the model to start from.
        batch_size: Utterances per training batch.
        max_steps: Optimizer steps.
        eval_every: Steps between evaluations.
        max_tokens: Tokens that are generated per utterance, without the prompt.
        bf16: Train in bf16 autocast instead of float32.
        tail: The silence behind the speech (ours): `model.tail`.
    """

    folder: Path
    train: Path
    test: Path
    model: Path
    batch_size: int
    max_steps: int
    eval_every: int
    max_tokens: int
    bf16: bool
    tail: str


@dataclass(frozen=True)
class Stage:
    """One turn of a program.

    Attributes:
        name: What it did.
        seconds: Wall time.
        utterances: Utterances that it worked on; 0 where that means nothing.
        peak_mib: Most memory of the program and the processes it started, in MiB; what files back is not counted.
    """

    name: str
    seconds: float
    utterances: int
    peak_mib: float


class Turns:
    """A program's side: it works only while it has its turn."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._connection.recv()
        self._since = time.perf_counter()

    def done(self, name: str, utterances: int = 0) -> None:
        """End a stage, and wait for the next turn."""
        self._connection.send((name, time.perf_counter() - self._since, utterances))
        self._connection.recv()
        self._since = time.perf_counter()


def _play(program: str, job: Job, connection: Connection, log: Path) -> None:
    with log.open("wb") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    turns = Turns(connection)
    module, _, function = program.rpartition(".")
    getattr(importlib.import_module(module), function)(turns, job)


@dataclass
class Program:
    """The other side: a program in a process of its own, what it says in a file, and the stages it went through."""

    name: str
    log: Path
    stages: list[Stage] = field(default_factory=list)

    def start(self, program: str, job: Job) -> None:
        """Start the process; it waits for its first turn, in which it imports `program`, a "module.function"."""
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_play, args=(program, job, theirs, self.log))
        self._process.start()
        theirs.close()

    def take_turn(self) -> bool:
        """Let it run to the end of its next stage; False when the program has ended.

        Raises:
            RuntimeError: It ended with an error.
        """
        peak_mib = 0.0
        try:
            self._connection.send(None)
            while not self._connection.poll(0.2):
                peak_mib = max(peak_mib, _tree_mib(self._process.pid))
            name, seconds, utterances = self._connection.recv()
        except (EOFError, BrokenPipeError):
            self._process.join()
            if self._process.exitcode:
                raise RuntimeError(f"{self.name} failed; see {self.log}") from None
            return False
        self.stages.append(Stage(name, seconds, utterances, max(peak_mib, _tree_mib(self._process.pid))))
        return True

    def stop(self) -> None:
        """End it, wherever it is."""
        self._process.kill()
        self._process.join()


def take_turns(programs: list[Program], after: Callable[[], None]) -> None:
    """Run programs in turn until all have ended.

    Args:
        programs: Started ones.
        after: Called after each round.
    """
    running = list(programs)
    try:
        while running:
            running = [program for program in running if program.take_turn()]
            after()
    finally:
        for program in programs:
            program.stop()


def _tree_mib(pid: int | None) -> float:
    """Memory of a process and its descendants that no file backs, shared pages counted once (Linux)."""
    assert pid is not None
    kilobytes, waiting = 0, [pid]
    while waiting:
        process = Path("/proc") / str(waiting.pop())
        try:
            lines = (process / "smaps_rollup").read_text().splitlines()
            waiting += [int(c) for t in (process / "task").iterdir() for c in (t / "children").read_text().split()]
        except (OSError, ValueError):
            continue  # it has just ended
        kilobytes += sum(int(line.split()[1]) for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
    return kilobytes / 1024
