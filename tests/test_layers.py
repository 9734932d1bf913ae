"""Data goes one way: nobody imports upwards."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "whisper_lightning"
LOGGERS = {"loggers", "weights_and_biases"}
GROUND = {"addresses", "errors", "files", "hub", "batch", "text", "terminal", "run", "stop", *LOGGERS}
MAY_IMPORT = {
    # the ground, which knows nothing of what is built on it
    "addresses": set[str](),
    "errors": {"addresses"},
    **{room: {"errors"} for room in ("files", "batch", "text", "run", "stop")},
    "terminal": {"addresses", "errors"},
    "loggers": {"files", "weights_and_biases"},
    "weights_and_biases": {"addresses", "errors"},
    "hub": {"errors", "audio"},
    # two rooms that anything may use
    "audio": {"addresses", "errors"},
    "scoring": {"errors", "files"},
    # the way of the data
    "data": {"addresses", "errors", "files", "audio", "text", "batch", "data"},
    "model": {"errors", "files", "hub", "audio", "text", "batch", "model"},
    "callbacks": {*GROUND, "audio", "scoring", "model", "callbacks"},
    # what is made of a model
    "export": {*GROUND, "audio", "scoring", "model", "export"},
    "report": {*GROUND, "audio", "scoring", "data", "model", "report"},
    "transcription": {*GROUND, "audio", "export", "transcription"},
    # the doors
    "trainer": {*GROUND, "data", "model", "callbacks"},
    "commands": {*GROUND, "audio", "scoring", "data", "model", "callbacks", "export", "report", "transcription"}
    | {"trainer", "commands"},
    "cli": {"errors", "stop", "terminal", "data", "commands"},
    "__main__": {"cli", "stop"},
    "__init__": {"data", "model", "trainer"},
}


def imported(path: Path) -> set[str]:
    """Names of our own modules that a file imports, and foreign ones as they are."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    names = imported(path)
    ours = {name.split(".")[1] for name in names if name.startswith("whisper_lightning.")}
    ours -= {room}
    assert ours <= MAY_IMPORT[room], f"{room} must not import {ours - MAY_IMPORT[room]}"
    assert not {name.split(".")[0] for name in names} & {"tools", "benchmarks", "tests"}


@pytest.mark.parametrize("room", ["audio", "scoring", *sorted(GROUND - LOGGERS)])
def test_leaves_know_no_lightning(room: str) -> None:
    paths = [PACKAGE / f"{room}.py"] if (PACKAGE / f"{room}.py").is_file() else (PACKAGE / room).glob("*.py")
    assert not any(name.startswith("lightning") for path in paths for name in imported(path))


def test_what_workers_import() -> None:
    """Each of them pays for it: transformers alone is 3 s and 200 MB."""
    code = "import sys, whisper_lightning.data.loader, whisper_lightning.data.write; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "lightning", "transformers", "wandb", "torch._dynamo"} & {*done.stdout.split()} == {"torch"}


def test_files_stay_readable() -> None:
    sizes = {path.name: path.read_text(encoding="utf-8").count("\n") for path in PACKAGE.rglob("*.py")}
    assert {name: size for name, size in sizes.items() if size > 330} == {}
