"""A run's folder belongs to one run at a time."""

import json
import os
import platform
import shutil
import signal
import time
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import copy_corpus, one_error, quick_arguments
from tests.record import run_ranks, start
from tests.test_resume import record
from whisper_lightning.cli import main


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_corpus(tmp_path_factory.mktemp("data") / "corpus")


def wait_for(path: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.05)


def test_a_run_whose_logger_writes_elsewhere_is_not_overwritten(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = (
        f'[{{"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {{"save_dir": "{tmp_path}/logs"}}}}]'
    )
    command = [*quick_arguments(corpus, tmp_path / "run"), f"--trainer.logger={logger}"]
    assert main(command) == 0
    saved = (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes()
    assert main([*command, "--seed_everything=1"]) == 2
    assert "already holds a run" in one_error(capsys)
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes() == saved
    assert (tmp_path / "run" / "config.yaml").is_file()


@pytest.mark.slow
def test_a_folder_in_which_a_run_is_live_is_refused_by_name(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped in the middle as by a debugger, it lives; killed, its lock is gone with it."""
    run = tmp_path / "run"
    live = [*quick_arguments(corpus, run), "--resume.every_n_steps=1"]
    process = start([*live, *record(run, "train", 2, number=signal.SIGSTOP)])
    wait_for(run / "checkpoints" / "last.ckpt")
    for option in ([], ["--ckpt_path=last"]):
        assert main([*quick_arguments(corpus, run), *option]) == 2
        error = one_error(capsys)
        assert f"{run} is in use by process {process.pid} on {platform.node()}, since 20" in error
    process.kill()
    process.join()
    assert main(live) == 2
    assert "already holds a run" in one_error(capsys)
    assert main([*live, "--ckpt_path=last"]) == 0
    assert len(pd.read_csv(run / "metrics.csv")["train/loss"].dropna()) == 4
    assert not (run / "run.json").exists()


def test_of_two_runs_that_start_at_once_one_is_refused(corpus: Path, tmp_path: Path) -> None:
    run, errors = tmp_path / "run", [tmp_path / "0.txt", tmp_path / "1.txt"]
    processes = [start(quick_arguments(corpus, run), {"ERRORS": str(path)}) for path in errors]
    for process in processes:
        process.join(120)
    codes = [process.exitcode for process in processes]
    assert sorted(codes, key=str) == [0, 2]
    text = errors[codes.index(2)].read_text(encoding="utf-8")
    assert f"in use by process {processes[codes.index(0)].pid} on" in text or "already holds a run" in text
    assert len(pd.read_csv(run / "metrics.csv")["train/loss"].dropna()) == 4


def test_a_lock_of_another_machine_is_explained(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    process = start([*quick_arguments(corpus, run), *record(run, "train", 1, number=signal.SIGSTOP)])
    wait_for(Path(f"{run}.record.0"))
    note = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (run / "run.json").write_text(json.dumps(note | {"host": "otra-máquina"}), encoding="utf-8")
    assert main(quick_arguments(corpus, run)) == 2
    error = one_error(capsys)
    assert "on otra-máquina" in error
    assert f"delete {run / 'run.lock'}" in error
    process.kill()
    process.join()


@pytest.mark.slow
def test_the_processes_of_one_run_do_not_refuse_each_other(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [*quick_arguments(corpus, run), "--data.batch_size=2", "--trainer.max_steps=2"]
    assert run_ranks(command, 2) == [0, 0]
    assert run_ranks([*command, "--trainer.max_steps=3", "--ckpt_path=last"], 2) == [0, 0]


def test_a_folder_that_cannot_be_made(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        assert main(quick_arguments(corpus, place)) == 2
        assert f"{place} cannot be written" in one_error(capsys)


def delete(run: Path) -> None:
    shutil.rmtree(run)


def move(run: Path) -> None:
    run.rename(run.with_name("elsewhere"))


def replace_by_a_file(run: Path) -> None:
    move(run)
    run.touch()


def replace_by_another(run: Path) -> None:
    move(run)
    run.mkdir()


TROUBLES = {
    delete: "is gone: moved or deleted",
    move: "is gone: moved or deleted",
    replace_by_a_file: "is a file now",
    replace_by_another: "is another folder now",
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_folder_that_is_lost_in_training_is_one_line(trouble: object, corpus: Path, tmp_path: Path) -> None:
    run, errors = tmp_path / "run", tmp_path / "errors.txt"
    command = [*quick_arguments(corpus, run), "--resume.every_n_steps=1", "--trainer.max_steps=6"]
    process = start([*command, *record(run, "train", 3, number=signal.SIGSTOP)], {"ERRORS": str(errors)})
    wait_for(Path(f"{run}.record.0"))
    while Path(f"{run}.record.0").read_text(encoding="utf-8").count("batch") < 3:
        time.sleep(0.05)
    time.sleep(0.2)
    trouble(run)  # type: ignore[operator]
    os.kill(process.pid or 0, signal.SIGCONT)
    process.join(60)
    text = errors.read_text(encoding="utf-8")
    assert process.exitcode == 2, text
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    assert TROUBLES[trouble] in line  # type: ignore[index]
    assert "--ckpt_path last" in line
    assert "Traceback" not in text
    if trouble is move:
        run.with_name("elsewhere").rename(run)
        assert main([*command, "--ckpt_path=last"]) == 0
