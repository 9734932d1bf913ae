"""Signals and deaths in which nothing can be saved: one line, and the exit code that says what to do."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import quick_arguments

PROCESSES = Path("/proc")


def catches(pid: int, number: int) -> bool:
    """Say whether a process has a handler for a signal."""
    status = (PROCESSES / str(pid) / "status").read_text(encoding="utf-8")
    (mask,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.mark.skipif(not PROCESSES.is_dir(), reason="it cannot be seen when handlers are there")
@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGTERM, "imports"),
        (signal.SIGINT, "imports"),
        pytest.param(signal.SIGUSR1, "preparations", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, "preparations", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "the last test", marks=pytest.mark.slow),
    ],
)
def test_a_signal_before_there_is_anything_to_save(
    number: signal.Signals, moment: str, corpus: Path, tmp_path: Path
) -> None:
    run_folder = tmp_path / "run"
    sign = {"preparations": run_folder / "run.json", "the last test": run_folder / "best"}.get(moment)
    command = [sys.executable, "-m", "whisper_lightning", *quick_arguments(corpus, run_folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, encoding="utf-8")
    while not catches(process.pid, signal.SIGUSR1) or (sign and not sign.exists()):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else 75), error
    assert "Traceback" not in error
    assert len([line for line in error.splitlines() if line.startswith("stopped")]) == 1
    assert not (run_folder / "run.json").exists()
