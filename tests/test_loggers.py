"""metrics.csv: new columns, and a continued run's rows where its checkpoint was."""

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import wandb

from tests.conftest import quick_arguments
from whisper_lightning.loggers import MetricsCSV


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_rows_after_the_checkpoint_come_again(tmp_path: Path) -> None:
    first = MetricsCSV(tmp_path, keep=False)
    first.log_metrics({"train/loss": 3.0}, step=1)
    state = first.state_dict()
    first.log_metrics({"train/loss": 2.0, "val/wer": 90.0}, step=2)
    first.save()
    with (tmp_path / "metrics.csv").open("a", encoding="utf-8") as file:
        file.write("3,1.")  # a kill in the middle of a row
    continued = MetricsCSV(tmp_path, keep=True)
    continued.load_state_dict(state)
    continued.log_metrics({"train/loss": 2.5}, step=2)
    continued.finalize("success")
    assert [(row["step"], row["train/loss"]) for row in rows(tmp_path)] == [("1", "3.0"), ("2", "2.5")]


def test_a_new_column_leaves_older_rows_as_they_are(tmp_path: Path) -> None:
    logger = MetricsCSV(tmp_path, keep=False)
    for step, metrics in enumerate(({"b": 1.0}, {"a": 2.0, "c": 3.0}, {"b": 4.0}), start=1):
        logger.log_metrics(metrics, step=step)
        logger.save()
    assert [row["b"] for row in rows(tmp_path)] == ["1.0", "", "4.0"]
    assert [row["a"] for row in rows(tmp_path)] == ["", "2.0", ""]


def test_a_fresh_run_does_not_go_on_with_old_rows_but_an_evaluation_does(tmp_path: Path) -> None:
    for keep, expected in ((False, ["1"]), (False, ["2"]), (True, ["2", "3"])):
        logger = MetricsCSV(tmp_path, keep=keep)
        logger.log_metrics({"a": 1.0}, step=int(expected[-1]))
        logger.finalize("success")
        assert [row["step"] for row in rows(tmp_path)] == expected


KEY = "0123456789abcdef" * 2 + "01234567"
LOGINS: dict[str, tuple[str, dict[str, str]]] = {
    "nobody": ("", {}),
    "WANDB_API_KEY": ("", {"WANDB_API_KEY": KEY}),
    ".netrc": (".netrc", {}),
    "_netrc, as on Windows": ("_netrc", {}),
    "$NETRC": ("elsewhere", {"NETRC": "{home}/elsewhere"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LOGINS)
def test_whoever_is_logged_in_to_wandb_is_known(name: str, tmp_path: Path) -> None:
    """In a process of its own: wandb keeps what it has found. Nobody is asked: the server here never answers."""
    file, variables = LOGINS[name]
    ours = {key: value for key, value in os.environ.items() if not key.startswith("WANDB") and key != "NETRC"}
    ours |= {"HOME": str(tmp_path)} | {key: value.format(home=tmp_path) for key, value in variables.items()}
    code = "from whisper_lightning.weights_and_biases import _logged_in; print('logged in:', _logged_in())"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        ours["WANDB_BASE_URL"] = f"http://{host}"
        if file:
            (tmp_path / file).write_text(f"machine {host}\n  login user\n  password {KEY}\n", encoding="utf-8")
            (tmp_path / file).chmod(0o600)
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=ours, capture_output=True, text=True, encoding="utf-8", timeout=120)
    assert f"logged in: {name != 'nobody'}" in done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("agent", [False, True])
def test_a_run_that_does_not_reach_wandb_is_logged_offline(agent: bool, corpus: Path, tmp_path: Path) -> None:
    """As on the computers of a cluster, where the user's key is and the network is not; by hand, and by an agent."""
    run = tmp_path / "run"
    if agent:  # whose own service the run uses
        wandb.teardown()
        wandb.setup()
        assert "WANDB_SERVICE" in os.environ
    code = "import sys, whisper_lightning.weights_and_biases as w; from whisper_lightning import cli; "
    code += "w.CONNECT_SECONDS = 1; sys.exit(cli.main())"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        ours = os.environ | {
            "HOME": str(tmp_path),
            "WANDB_API_KEY": KEY,
            "WANDB_BASE_URL": address,
            "WANDB_MODE": "online",
        }
        command = [sys.executable, "-c", code, *quick_arguments(corpus, run), "--wandb.enabled=true"]
        done = subprocess.run(command, env=ours, capture_output=True, text=True, encoding="utf-8", timeout=300)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert "Weights & Biases: not reached" in done.stderr
    assert list(run.glob("wandb/offline-run-*/*.wandb"))
