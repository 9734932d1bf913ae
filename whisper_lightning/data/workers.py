"""Processes beside the main one: what stops a run reaches them through it alone, and they end when it does."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import process, resource_sharer, resource_tracker, util
from pathlib import Path

from whisper_lightning.errors import Interrupted, UserError

STOPPING = {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)}
"""What stops a run. The main process saves then, and needs its workers for it."""


@contextmanager
def starting_workers() -> Iterator[None]:
    """Block what stops a run, for processes started meanwhile; what arrives here is delivered afterwards."""
    with _one_temporary_folder():
        if not hasattr(signal, "sigwaitinfo"):
            yield
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        try:
            # Python starts this process before the first worker, and unblocks two of these signals when it has.
            resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


_temporary_folders: dict[int, str] = {}
"""The folder for the workers' sockets, by the process that starts them: a forked one has its parent's as well."""


@contextmanager
def _one_temporary_folder() -> Iterator[None]:
    """Return workers one folder for their sockets; one that each made for itself would stay when it is killed.

    Workers make it, as soon as they watch this process, and the last one removes it: nobody else would if this one
    were killed before or after. This process goes on with its own.
    """
    if os.getpid() not in _temporary_folders:
        folder = str(Path(tempfile.gettempdir()) / f"pymp-{secrets.token_hex(4)}")
        util.Finalize(None, shutil.rmtree, args=(folder, True), exitpriority=-100)
        _temporary_folders[os.getpid()] = folder
    inherited = process.current_process()._config  # type: ignore[attr-defined]
    mine = inherited.get("tempdir")
    inherited["tempdir"] = _temporary_folders[os.getpid()]
    try:
        yield
    finally:
        inherited["tempdir"] = mine


def obey_the_main_process() -> None:
    """Let nobody but the main process end this worker: a cluster signals every process of a job, workers included."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    folder = _folder_of_workers()
    while not (mine := folder / str(os.getpid())).exists():  # the last worker before may just remove the folder
        folder.mkdir(mode=0o700, exist_ok=True)
        with suppress(FileNotFoundError):
            mine.touch()
    # torch too ends a worker whose main process is gone, at times in the middle of what the first thread does then.
    util.Finalize(None, _clear_up, exitpriority=-100)
    threading.Thread(target=_end_with_the_main_process, daemon=True).start()
    if hasattr(signal, "sigwaitinfo"):  # Linux
        threading.Thread(target=_wait_for_its_signal, daemon=True).start()


def end_workers() -> None:
    """End processes that read data, also such as are just starting: they would complain that this one has gone."""
    for worker in multiprocessing.active_children():
        if worker.daemon:
            worker.kill()
            worker.join()


def no_shared_memory(what: str) -> UserError:
    """Say that workers cannot hand over their batches, and what helps."""
    return UserError(
        f"data.num_workers: too little shared memory for the batches of processes that read data ({what}); give the "
        "container more (docker run --shm-size=8g), or set data.num_workers 0 or a smaller batch size"
    )


def death_of_a_worker(error: BaseException) -> BaseException | None:
    """Say what it means that a worker of a DataLoader has died; None where the error is another one."""
    text = str(error)
    if not isinstance(error, RuntimeError) or "DataLoader worker" not in text:
        return None
    if "Bus error" in text or "shared memory" in text:
        return no_shared_memory("a process was killed for it")
    return Interrupted(
        "stopped: a process that reads data was killed, for want of memory it may be (fewer data.num_workers, or a "
        "smaller batch size); continue with --ckpt_path last",
        75,
    )


def _wait_for_its_signal() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    _clear_up()
    os._exit(0)


def _end_with_the_main_process() -> None:
    """End when the main process was killed, and clear up what it could not."""
    _main_process().join()
    _clear_up()
    os._exit(1)


def _clear_up() -> None:
    """Remove the folder for sockets if this is the last worker that is in it, or there is no main process to do it."""
    folder = _folder_of_workers()
    if not _main_process().is_alive():
        shutil.rmtree(folder, ignore_errors=True)
    # Where it listens for those who fetch its batches: Python would not remove that at a signal's end.
    socket: str | None = resource_sharer._resource_sharer._address  # type: ignore[attr-defined]
    with suppress(OSError):  # others are in it
        for mine in (socket, folder / str(os.getpid())):
            if mine is not None:
                Path(mine).unlink(missing_ok=True)
        folder.rmdir()


def _folder_of_workers() -> Path:
    return Path(process.current_process()._config["tempdir"])  # type: ignore[attr-defined]


def _main_process() -> process.BaseProcess:
    parent = multiprocessing.parent_process()
    assert parent is not None
    return parent
