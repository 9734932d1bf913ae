"""Data for the tests, made from what the quickstart ships."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import WhisperConfig, WhisperForConditionalGeneration

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart"
MODEL = QUICKSTART / "model"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs the whole quickstart, which takes two minutes, is slow."""
    for item in items:
        if "quickstart_run" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail at once where something would be downloaded; and what a test starts does not go through our own W&B."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("WANDB_API_KEY", "WANDB_SERVICE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True, scope="session")
def two_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(autouse=True, scope="session")
def ctrl_c() -> None:
    """Undo what a shell does to a program in the background: it ignores Ctrl-C, and so would all that tests start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def copy_corpus(folder: Path, num_train: int = 24, num_test: int = 8) -> Path:
    """Copy some clips of the quickstart into a folder with train.csv and test.csv."""
    (folder / "audio").mkdir(parents=True)
    for name, count in (("train.csv", num_train), ("test.csv", num_test)):
        rows = read_rows(QUICKSTART / name)[:count]
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["audio", "sentence"])
            for row in rows:
                shutil.copy(QUICKSTART / row["audio"], folder / "audio")
                writer.writerow([f"audio/{Path(row['audio']).name}", row["sentence"]])
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A small corpus in a folder with blanks and accents in its name."""
    return copy_corpus(tmp_path / "mis grabaciones en español")


def publish(folder: Path, **changes: object) -> Path:
    """Write the quickstart's model with random weights as OpenAI's are published: float16, no language, no task.

    Args:
        folder: Where.
        changes: Other values in its config.json.
    """
    shutil.copytree(MODEL, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    path = folder / "generation_config.json"
    generation = json.loads(path.read_text(encoding="utf-8"))
    del generation["language"], generation["task"]
    path.write_text(json.dumps(generation), encoding="utf-8")
    torch.manual_seed(12)  # a model that says something, and ends
    state = WhisperForConditionalGeneration(WhisperConfig.from_pretrained(folder)).state_dict()
    del state["proj_out.weight"]  # the token embedding
    halved = {name: tensor.half() for name, tensor in state.items()}
    save_file(halved, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as published, to read only."""
    return publish(tmp_path_factory.mktemp("published") / "whisper-mínimo")


def quick_arguments(corpus: Path, run: Path) -> list[str]:
    """Arguments of a fit of a few steps."""
    return [
        "fit",
        "--config=quickstart.yaml",
        f"--trainer.default_root_dir={run}",
        f"--data.train={corpus / 'train.csv'}",
        f"--data.val={corpus / 'test.csv'}",
        "--trainer.max_steps=4",
        "--trainer.val_check_interval=2",
        "--trainer.log_every_n_steps=1",
        "--trainer.enable_progress_bar=false",
        "--model.warmup_steps=1",
        "--model.max_tokens=10",
        "--data.batch_size=8",
    ]


def one_error(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that a user's mistake is shown as."""
    error = capsys.readouterr().err
    line = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(line) == 1, error
    assert "Traceback" not in error
    return line[0]


def _folder_named_by(variable: str) -> Path:
    """Return the folder that an environment variable names; skip the test where there is none."""
    if variable not in os.environ:
        pytest.skip(f"{variable} names no folder")
    return Path(os.environ[variable])


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The published openai/whisper-base in Hugging Face layout, which WHISPER_BASE names."""
    return _folder_named_by("WHISPER_BASE")


@pytest.fixture(scope="session")
def real_speech() -> Path:
    """Real Spanish speech: a folder with train.csv, val.csv and test.csv, which SPEECH names."""
    return _folder_named_by("SPEECH")


@pytest.fixture(scope="session")
def quickstart_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart as the README says to run it; the folder that it was run in."""
    folder = tmp_path_factory.mktemp("quickstart")
    done = subprocess.run(
        [sys.executable, "-m", "whisper_lightning", "fit", "--config", "quickstart.yaml"],
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    (folder / "output.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
    return folder
