"""Data goes one way: nobody imports upwards."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "whisper_lightning"
MAY_IMPORT = {
    "errors": set[str](),
    "audio": {"errors", "containers"},
    "containers": set[str](),
    "features": {"audio"},
    "text": {"errors"},
    "processor": {"errors"},
    "metrics": {"errors"},
    "statistics": set[str](),
    "transcripts": {"metrics", "statistics", "text"},
    "scoring": {"errors", "text"},
    "terminal": {"errors"},
    "files": {"errors"},
    "run": {"errors"},
    "stop": {"errors"},
    "loggers": {"errors"},
    "data": {"errors", "audio", "text", "processor", "data"},
    "model": {"errors", "files", "audio", "features", "text", "processor", "model"},
    "callbacks": {
        "errors",
        "files",
        "run",
        "stop",
        "audio",
        "model",
        "metrics",
        "text",
        "terminal",
        "transcripts",
        "callbacks",
    },
    "export": {"errors", "audio", "text", "metrics", "statistics", "transcripts", "model", "terminal", "export"},
    "report": {"errors", "audio", "text", "scoring", "metrics", "statistics", "data", "model", "report"},
    "parser": {"errors", "terminal"},
    "checks": {"errors", "callbacks"},
    "summary": {"callbacks", "statistics", "transcripts"},
    "cli": {"errors", "files", "run", "stop", "loggers", "data", "model", "callbacks", "processor"}
    | {"parser", "checks", "summary", "terminal"},
    "recordings": {"errors", "audio", "speech", "subtitles", "export", "terminal"},
    "speech": {"audio"},
    "subtitles": {"errors"},
    "__main__": {"cli", "stop"},
    "__init__": set[str](),
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
    assert ours <= MAY_IMPORT[room], f"{room} must not import {ours - MAY_IMPORT[room]}"
    assert not {name.split(".")[0] for name in names} & {"tools", "tests"}


LEAVES = ["audio", "features", "text", "metrics", "statistics", "transcripts", "scoring", "errors", "terminal", "files"]


@pytest.mark.parametrize("leaf", [*LEAVES, "run"])
def test_leaves_know_no_lightning(leaf: str) -> None:
    assert not any(name.startswith("lightning") for name in imported(PACKAGE / f"{leaf}.py"))


def test_what_workers_import() -> None:
    """Each of them pays for it: transformers alone is 3 s and 200 MB."""
    code = "import sys, whisper_lightning.data.loader, whisper_lightning.data.pack; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "lightning", "transformers", "wandb", "torch._dynamo"} & {*done.stdout.split()} == {"torch"}


def test_files_stay_readable() -> None:
    sizes = {path.name: path.read_text(encoding="utf-8").count("\n") for path in PACKAGE.rglob("*.py")}
    assert {name: size for name, size in sizes.items() if size > 350} == {}
