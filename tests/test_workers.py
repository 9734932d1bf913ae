"""Processes that read or build: signalled, killed or short of memory, a run ends in one line and leaves nothing."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import quick_arguments
from tests.test_shards import make_corpus

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks at processes in /proc")
ROOT = Path(__file__).parent.parent


def children(pid: int, word: str = "spawn_main") -> list[int]:
    """Processes that Python has spawned for another one, by what stands in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = re.search(r"^PPid:\s+(\d+)", (path / "status").read_text(encoding="utf-8"), re.MULTILINE)
            if parent and int(parent[1]) == pid and word in (path / "cmdline").read_text(encoding="utf-8"):
                found.append(int(path.name))
        except OSError:  # it has ended
            continue
    return found


def wait_for_children(process: "subprocess.Popen[str]", count: int) -> list[int]:
    while len(found := children(process.pid)) < count and process.poll() is None:
        time.sleep(0.02)
    return found


def alive(pids: list[int]) -> list[int]:
    """Those of the processes that still run five seconds later."""
    end = time.monotonic() + 5
    while (left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]) and time.monotonic() < end:
        time.sleep(0.05)
    return left


def start(command: list[str], temporary: Path) -> "subprocess.Popen[str]":
    """Start a command in a process group of its own, with a folder of its own for temporary files."""
    temporary.mkdir()
    environment = os.environ | {"TMPDIR": str(temporary)}
    return subprocess.Popen(
        [sys.executable, *command],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )


FIRST_MASK = """
import multiprocessing, re, time
from pathlib import Path
from whisper_lightning.data.workers import starting_workers
if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,), daemon=True)
    with starting_workers():
        process.start()
    print(re.search(r"SigBlk:\\s+(\\w+)", Path(f"/proc/{process.pid}/status").read_text())[1])
    process.kill()
"""


def test_the_first_worker_starts_with_signals_blocked() -> None:
    """Python starts its resource tracker just before, and unblocks two signals afterwards."""
    done = subprocess.run([sys.executable, "-c", FIRST_MASK], capture_output=True, text=True, check=True)
    blocked = int(done.stdout, 16)
    names = ("SIGINT", "SIGTERM", "SIGUSR1")
    assert [name for name in names if not blocked >> (getattr(signal, name) - 1) & 1] == []


OWN_FOLDER = """
from multiprocessing.connection import Listener
from whisper_lightning.data.workers import starting_workers
with starting_workers():
    pass
with Listener(family="AF_UNIX") as own:
    print(own.address)
"""


def test_the_main_process_keeps_its_own_folder_for_sockets() -> None:
    """That of the workers is there only while they are, and others start processes here too."""
    done = subprocess.run([sys.executable, "-c", OWN_FOLDER], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pymp-" in done.stdout


WORKERS_END = """
import multiprocessing, os, signal, sys, time
from multiprocessing import resource_sharer
from whisper_lightning.data.workers import obey_the_main_process, starting_workers

def work(main, ready, kind):
    obey_the_main_process()
    resource_sharer.DupFd(0)  # a socket in the folder, as for a batch that is handed over
    ready.release()
    while kind == "after" and os.getppid() == main:
        pass
    if kind == "sent away":
        time.sleep(60)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    ready = context.Semaphore(0)
    with starting_workers():
        worker = context.Process(target=work, args=(os.getpid(), ready, sys.argv[1]), daemon=True)
        worker.start()
    ready.acquire()
    if sys.argv[1] == "sent away":
        worker.terminate()
    if sys.argv[1] != "after":
        worker.join()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["before", "sent away", "after"])
def test_workers_leave_no_folder_when_the_main_process_is_killed(kind: str, tmp_path: Path) -> None:
    """Killed after they have ended, or before: torch's end by themselves then, between two batches."""
    (tmp_path / "end.py").write_text(WORKERS_END, encoding="utf-8")
    process = start([str(tmp_path / "end.py"), kind], tmp_path / "temporary")
    workers = wait_for_children(process, 1)
    assert process.wait(timeout=60) == -signal.SIGKILL
    assert alive(workers) == []
    assert list((tmp_path / "temporary").glob("pymp-*")) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_to_the_group_while_the_first_workers_start(name: str, corpus: Path, tmp_path: Path) -> None:
    arguments = [*quick_arguments(corpus, tmp_path / "run"), "--data.num_workers=2"]
    process = start(["-m", "whisper_lightning", *arguments], tmp_path / "temporary")
    workers = wait_for_children(process, 1)
    os.killpg(process.pid, getattr(signal, name))
    error = process.communicate(timeout=300)[1]
    assert (process.returncode, "Traceback" in error) == (75, False), error
    assert alive(workers) == []
    assert list((tmp_path / "temporary").glob("pymp-*")) == []


BUILDS = {
    "SIGTERM": (signal.SIGTERM, False, 75),
    "SIGUSR1 to the group": (signal.SIGUSR1, True, 75),
    "Ctrl-C": (signal.SIGINT, True, 130),
    "SIGKILL": (signal.SIGKILL, False, -9),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDS)
def test_a_build_that_is_stopped_leaves_no_process_and_no_folder(name: str, tmp_path: Path) -> None:
    """The exit code tells a cluster to run it again; finished shards are kept."""
    number, group, expected = BUILDS[name]
    source, shards = make_corpus(tmp_path / "data", 1500), tmp_path / "shards"
    command = ["-m", "whisper_lightning", "shards", str(source), str(shards), "--num_workers=2"]
    process = start(command, tmp_path / "temporary")
    workers = wait_for_children(process, 2)
    while not list(shards.glob("*.new")) and process.poll() is None:
        time.sleep(0.02)
    (os.killpg if group else os.kill)(process.pid, number)
    error = process.communicate(timeout=300)[1]
    assert (process.returncode, "Traceback" in error) == (expected, False), error
    assert len(workers) == 2
    assert alive(workers) == []
    assert list((tmp_path / "temporary").glob("pymp-*")) == []
    if expected == 75:
        assert error.splitlines()[-1] == "stopped while shards were built; start again, finished ones are kept"
    assert not (shards / "index.json").exists()


FIT = """
import os, signal, sys, multiprocessing
from lightning.pytorch import Callback
from whisper_lightning.cli import main
from whisper_lightning.data.loader import EpochLoader

class Kill(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 2:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)

if __name__ == "__main__":
    if sys.argv[1] == "unchecked":
        EpochLoader._check_shared_memory = lambda *_: None
    sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_a_reader_that_is_killed_is_one_line_and_the_run_goes_on(corpus: Path, tmp_path: Path) -> None:
    """As the system does where memory runs out."""
    (tmp_path / "fit.py").write_text(FIT, encoding="utf-8")
    arguments = [*quick_arguments(corpus, tmp_path / "run"), "--data.num_workers=2", "--resume.every_n_steps=1"]
    command = [str(tmp_path / "fit.py"), "checked", *arguments, "--trainer.callbacks+=__main__.Kill"]
    process = start(command, tmp_path / "temporary")
    error = process.communicate(timeout=300)[1]
    assert (process.returncode, "Traceback" in error) == (75, False), error
    assert "a process that reads data was killed" in error
    process = start(["-m", "whisper_lightning", *arguments, "--ckpt_path=last"], tmp_path / "again")
    error = process.communicate(timeout=300)[1]
    assert process.returncode == 0, error


@pytest.mark.slow
@pytest.mark.parametrize("how", ["checked", "unchecked"])
def test_too_little_shared_memory_is_one_line(how: str, corpus: Path, tmp_path: Path) -> None:
    """Before any worker starts; and where the room is gone later, instead of waiting for a batch that never comes."""
    mine = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=500k tmpfs /dev/shm && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*mine, "true"], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    (tmp_path / "fit.py").write_text(FIT, encoding="utf-8")
    arguments = [*quick_arguments(corpus, tmp_path / "run"), "--data.num_workers=1"]
    command = [*mine, sys.executable, str(tmp_path / "fit.py"), how, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=300, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    (line,) = re.findall("error: .*", done.stderr)
    assert line.startswith("error: data.num_workers: too little shared memory")
    assert "--shm-size=8g), or set data.num_workers 0" in line
