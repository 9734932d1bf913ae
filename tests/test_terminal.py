"""Every entry point prints on any console, and takes `~` for the home folder."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.command import shards
from tests.conftest import MODEL, quick_arguments
from tests.multilingual import write_model
from whisper_lightning.cli import main
from whisper_lightning.terminal import show

ROOT = Path(__file__).parent.parent
FOLDERS = ["tools", "benchmarks", "whisper_lightning/commands"]


def run_in_cp1252(command: list[str]) -> str:
    """Run a command as Windows redirects it, `command > log`; return the log."""
    environment = os.environ | {"PYTHONIOENCODING": "cp1252", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *command], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr.decode("cp1252")
    return done.stdout.decode("cp1252")


@pytest.mark.slow
def test_fit_survives_a_windows_code_page(corpus: Path, tmp_path: Path) -> None:
    table = corpus / "test.csv"
    table.write_text(table.read_text(encoding="utf-8").replace("luz", "luz → 日本 ł"), encoding="utf-8")
    log = run_in_cp1252(["-m", "whisper_lightning", *quick_arguments(corpus, tmp_path / "corrida → 1")])
    assert "reference" in log
    assert "\\u65e5" in log, "what the page lacks is shown as its code"
    assert "\\u2501" not in log, "but the table's lines are drawn with what the page has"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["transcribe", "shards", "evaluate", "export"])
def test_commands_survive_a_windows_code_page(command: str, corpus: Path, tmp_path: Path, quickstart_run: Path) -> None:
    model, out = str(quickstart_run / "runs" / "quickstart"), str(tmp_path / "salida → ł")
    published = str(write_model(tmp_path / "modelo → ł")) if command == "transcribe" else ""
    arguments = {
        "shards": [str(corpus / "test.csv"), out],
        "evaluate": [model, "--data", str(corpus / "test.csv"), "--report", out, "--num_workers=0"],
        "transcribe": [published, str(corpus / "audio"), "--out", out, "--beam_size=1", "--temperature=0"],
        "export": [model, out, "--data", str(corpus / "test.csv"), "--num_clips=2"],
    }
    run_in_cp1252(["-m", "whisper_lightning", command, *arguments[command]])
    assert Path(out).is_dir()


def test_every_tool_reads_its_command_line_in_the_one_way() -> None:
    calls = {
        path.name: {
            node.func.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        }
        for folder in FOLDERS
        for path in (ROOT / folder).glob("*.py")
        for tree in [ast.parse(path.read_text(encoding="utf-8"))]
    }
    assert [name for name, called in calls.items() if "parse_args" in called] == []


def test_the_home_folder_is_found_in_every_option(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run's folder, data, model, a logger's folder and a configuration, none of which a shell would expand."""
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(corpus))
    shutil.copytree(MODEL, corpus / "model")
    (corpus / "mine.yaml").write_text("model:\n  checkpoint: ~/model\n", encoding="utf-8")
    logger = '[{"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "~/logs"}}]'
    arguments = [
        *quick_arguments(Path("~"), Path("~/run")),
        "--config=~/mine.yaml",
        f"--trainer.logger={logger}",
    ]
    assert main(arguments) == 0
    assert list(tmp_path.iterdir()) == [corpus], "nothing in a folder that is named ~"
    assert (corpus / "run" / "checkpoints" / "last.ckpt").is_file()
    assert (corpus / "logs").is_dir()
    (config,) = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in corpus.rglob("config.yaml"))
    assert config["trainer"]["default_root_dir"] == str(corpus / "run")
    more = ["--trainer.max_steps=5", "--ckpt_path=~/run/checkpoints/last.ckpt"]
    assert main([*arguments, *more]) == 0


def test_what_would_steer_a_terminal_is_shown(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a sentence, and in a file's name; emoji names and rich's markup stay the text that they are."""
    rows = (corpus / "test.csv").read_text(encoding="utf-8").splitlines()
    rows[1] = rows[1].split(",")[0] + ",:smile: [red]luz[/red]"
    (corpus / "test.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    assert main([*quick_arguments(corpus, tmp_path / "run"), "--trainer.max_steps=2"]) == 0
    assert ":smile: [red]luz[/red]" in " ".join(capsys.readouterr().out.split())
    assert main([*quick_arguments(corpus, tmp_path / "b"), "--data.train=\x1b[2Jno.csv"]) == 2
    error = capsys.readouterr().err
    assert "\x1b[2J" not in error
    assert "\\x1b[2Jno.csv" in error
    assert shards(["\x1b[2Jno.csv", "out"]) == 2
    assert capsys.readouterr().err == "error: \\x1b[2Jno.csv: no such file or folder\n"
    assert show("hola\x07\n\u202e ñ") == "hola\\x07\n\\u202e ñ"
