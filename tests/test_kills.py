"""Killed at any moment, workers and ranks and builds of shards included: nothing is lost, and nothing stays behind."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import read_rows
from tests.record import start, start_ranks
from tests.test_resume import arguments, differences, interrupt, material, record, resume

__all__ = ["material"]  # the fixture

pytestmark = pytest.mark.slow
KILLS = 4
"""In each test."""
MARK = "WHISPER_LIGHTNING_TEST"


def marked(mark: str) -> list[int]:
    """Return the processes that have been started with a mark in their environment, which children inherit."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{MARK}={mark}\0".encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            pass
    return found


def wait_for(ended: Callable[[], bool], seconds: float = 90) -> bool:
    end = time.monotonic() + seconds
    while not ended() and time.monotonic() < end:
        time.sleep(0.05)
    return ended()


def strike(
    command: list[str], num_ranks: int, temporary: Path, draw: random.Random, seconds: float, number: int = 9
) -> bool:
    """Run a command and kill or signal one of its ranks after a while; say whether it was still running.

    Whatever it has started must end by itself, and leave nothing in the folder for temporary files.
    """
    mark = f"{os.getpid()}-{draw.random()}"
    temporary.mkdir()
    environment = {MARK: mark, "TMPDIR": str(temporary)}
    ranks = start_ranks(command, num_ranks, environment) if num_ranks > 1 else [start(command, environment)]
    time.sleep(draw.uniform(0, seconds))
    victim = draw.choice(ranks)
    running = victim.is_alive()
    if running:
        os.kill(victim.pid or 0, number)
    assert wait_for(lambda: not any(rank.is_alive() for rank in ranks)), "a rank waits for the one that was killed"
    assert number == signal.SIGKILL or not running or ranks[0].exitcode in (0, 75)
    assert wait_for(lambda: marked(mark) == []), f"orphans: {marked(mark)}"
    assert [path.name for path in temporary.rglob("*")] == []
    shutil.rmtree(temporary)
    return running


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_killed_at_random_moments_with_loader_workers(num_ranks: int, material: Path, tmp_path: Path) -> None:
    options = ["--data.num_workers=2", "--model.spec_augment=true", "--data.augment=true"]
    straight = tmp_path / "straight"
    begun = time.monotonic()
    _finish(material, straight, options, num_ranks)
    seconds = time.monotonic() - begun
    draw, killed = random.Random(num_ranks), 0
    for number in range(3 * KILLS):
        if killed == KILLS:
            break
        broken = tmp_path / f"broken-{number}"
        command = [*arguments(material, broken, options), *record(broken)]
        killed += strike(command, num_ranks, tmp_path / "temporary", draw, seconds)
        _finish(material, broken, options, num_ranks)
        found = [line for rank in range(num_ranks) for line in differences(straight, broken, rank)]
        assert found == [], number
    assert killed == KILLS, "most runs had ended before they were killed: the test shows little"


def _finish(material: Path, folder: Path, options: list[str], num_ranks: int) -> None:
    """Run to the end, from wherever it was."""
    if num_ranks == 1:
        interrupt(material, folder, options, [])
        return
    ranks = start_ranks([*arguments(material, folder, options), *record(folder), *resume(folder)], num_ranks)
    assert wait_for(lambda: not any(rank.is_alive() for rank in ranks), 200)
    assert [rank.exitcode for rank in ranks] == [0] * num_ranks


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_stopped_at_random_moments_while_shards_are_built(
    number: signal.Signals, material: Path, tmp_path: Path
) -> None:
    """A CSV of more rows than a shard holds, so that processes build its shards."""
    rows = read_rows(material / "corpus" / "train.csv")
    corpus = tmp_path / "corpus"
    shutil.copytree(material / "corpus" / "audio", corpus / "audio")
    lines = [f"{row['audio']},{row['sentence']}\n" for row in rows] * (-(-1200 // len(rows)))
    (corpus / "train.csv").write_text("audio,sentence\n" + "".join(lines), encoding="utf-8")
    options = [f"--data.train={corpus / 'train.csv'}", "--trainer.max_steps=2", "--trainer.val_check_interval=2"]
    begun = time.monotonic()
    interrupt(material, tmp_path / "whole", options, [])
    seconds = time.monotonic() - begun
    expected = tars(corpus)
    assert len(expected) == 3
    draw, stopped = random.Random(number), 0
    for attempt in range(3 * KILLS):
        if stopped == KILLS:
            break
        shutil.rmtree(corpus / "train.shards")
        run = tmp_path / f"stopped-{attempt}"
        command = [*arguments(material, run, options), *record(run)]
        stopped += strike(command, 1, tmp_path / "temporary", draw, seconds, number)
        interrupt(material, run, options, [])
        assert tars(corpus) == expected
    assert stopped == KILLS, "most runs had ended before they were stopped: the test shows little"


def tars(corpus: Path) -> dict[str, bytes]:
    """Return the shards beside a CSV, of which there is one build."""
    return {path.name: path.read_bytes() for path in (corpus / "train.shards").rglob("*.tar")}
