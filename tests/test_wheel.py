"""The wheel, outside of the checkout: every command and configuration; and what is missing without the extras."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.conftest import copy_corpus

ROOT = Path(__file__).parent.parent
MODULES = {
    "accelerate": "accelerate",
    "ctranslate2": "ctranslate2",
    "datasets": "datasets",
    "faster-whisper": "faster_whisper",
    "fsspec": "fsspec",
    "num2words": "num2words",
    "openai-whisper": "whisper",
    "peft": "peft",
    "pywhispercpp": "pywhispercpp",
    "s3fs": "s3fs",
}
"""What each package of an extra is imported as."""
ABSENT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        importer = sys._getframe(1)
        while importer and "importlib" in importer.f_code.co_filename:
            importer = importer.f_back
        place = importer.f_code.co_filename
        if name.split(".")[0] in {names} and ("whisper_lightning" in place or "fsspec" in place):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in {names} else find_spec(name, package)
from whisper_lightning.cli import main
sys.exit(main({arguments}))
"""


def run(words: list[str], folder: Path, package: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(package), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8"
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked where no checkout is."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("whisper_lightning-0.2.0-*.whl")
    with zipfile.ZipFile(path) as file:
        file.extractall(folder / "installed")
    return folder / "installed"


def test_the_wheel_holds_the_package_its_configurations_and_the_command(wheel: Path) -> None:
    files = {path.relative_to(wheel).as_posix() for path in wheel.rglob("*") if path.is_file()}
    for folder in ("whisper_lightning", "configs"):
        place = "" if folder == "whisper_lightning" else "whisper_lightning/"
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".yaml", ".css", ".js", ".html") and "quickstart" not in path.parts:
                assert f"{place}{path.relative_to(ROOT).as_posix()}" in files, path
    assert {f.split("/")[0] for f in files} == {"whisper_lightning", "whisper_lightning-0.2.0.dist-info"}
    entries = (wheel / "whisper_lightning-0.2.0.dist-info" / "entry_points.txt").read_text(encoding="utf-8")
    assert "whisper-lightning = whisper_lightning.__main__:run" in entries
    assert not any(part in f for f in files for part in ("tests/", "benchmarks/", "tools/", ".shards/"))


@pytest.mark.slow
def test_the_wheel_trains_evaluates_and_exports_outside_of_the_checkout(wheel: Path, tmp_path: Path) -> None:
    corpus = copy_corpus(tmp_path / "corpus")
    steps = ["--trainer.max_steps=2", "--model.warmup_steps=1", "--trainer.val_check_interval=1"]
    few = [f"--data.{name}={corpus / table}" for name, table in (("train", "train.csv"), ("val", "test.csv"))]
    commands = [
        ["fit", "--config", "quickstart.yaml", *steps, *few],
        ["shards", str(corpus / "test.csv"), "shards"],
        ["evaluate", "runs/quickstart", "--data", str(corpus / "test.csv"), "--report", "report", "--num_workers=0"],
        ["export", "runs/quickstart", "exported", "--num_clips=1"],
    ]
    for command in commands:
        done = run(["-m", "whisper_lightning", *command], tmp_path, wheel)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    where = run(["-c", "import whisper_lightning; print(whisper_lightning.__file__)"], tmp_path, wheel).stdout
    assert Path(where.strip()).is_relative_to(wheel)
    assert (tmp_path / "exported" / "hf" / "config.json").is_file()


def test_every_package_of_an_extra_is_known_here() -> None:
    """So that the test below hides it."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    listed = [each for name in ("bench", "export", "lora", "report", "remote") for each in extras[name]]
    packages = {re.split(r"[>=<\[]", each)[0] for each in listed}
    assert packages == set(MODULES)


@pytest.mark.slow
def test_without_the_extras(tmp_path: Path) -> None:
    """Training needs none of them; what does says which, in one line. (fsspec is torch's own too.)"""
    corpus = copy_corpus(tmp_path / "corpus")
    steps = ["--trainer.max_steps=2", "--model.warmup_steps=1", "--trainer.val_check_interval=1"]
    few = [f"--data.{name}={corpus / table}" for name, table in (("train", "train.csv"), ("val", "test.csv"))]

    def typed(*words: str) -> subprocess.CompletedProcess[str]:
        return run(["-c", ABSENT.format(names=set(MODULES.values()) - {"fsspec"}, arguments=list(words))], tmp_path)

    done = typed("fit", "--config", "quickstart.yaml", *steps, *few)
    assert done.returncode == 0, done.stderr
    evaluate = typed("evaluate", "runs/quickstart", "--data", str(corpus / "test.csv"), "--report", "report")
    export = typed("export", "runs/quickstart", "exported")
    transcribe = typed("transcribe", "runs/quickstart", str(corpus / "audio"))
    remote = typed("test", "--config", "quickstart.yaml", "--data.val=s3://bucket/shards")
    model = ["--model.checkpoint=runs/quickstart/best", "--model.random_weights=false", "--model.lora_rank=2"]
    adapters = typed("fit", "--config", "quickstart.yaml", *steps, *few, *model, "--trainer.default_root_dir=runs/2")
    for one, needed in (
        (adapters, "peft"),
        (evaluate, "report"),
        (export, "export"),
        (transcribe, "export"),
        (remote, "fsspec s3fs"),
    ):
        assert one.returncode == 2, one.stderr
        last = one.stderr.strip().splitlines()[-1]
        assert last.startswith("error: "), last
        assert needed in last, last
        assert "pip install" in last, last
