"""What a researcher types in Python: two CSVs to a model, its curves, its texts; continued as on the command line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pandas as pd
import pytest
import torch
import yaml

import whisper_lightning
from tests.conftest import MODEL, read_rows
from whisper_lightning.audio.decoders import AudioError
from whisper_lightning.audio.read import load_audio
from whisper_lightning.callbacks.wer import EvaluateWER
from whisper_lightning.data.datamodule import SpeechDataModule
from whisper_lightning.errors import UserError
from whisper_lightning.model.load import load
from whisper_lightning.model.module import WhisperModule
from whisper_lightning.trainer import DEFAULTS, Trainer

ROOT = Path(__file__).parent.parent
QUICK: dict[str, Any] = {"accelerator": "cpu", "val_check_interval": 2, "log_every_n_steps": 1}
QUICK |= {"enable_progress_bar": False}


def module() -> WhisperModule:
    torch.manual_seed(3)
    return WhisperModule(str(MODEL), random_weights=True, warmup_steps=1, max_tokens=10, learning_rate=1e-3)


def data(corpus: Path) -> SpeechDataModule:
    return SpeechDataModule(str(corpus / "train.csv"), str(corpus / "test.csv"), batch_size=8, num_workers=0)


def losses(run: Path) -> list[float]:
    table = pd.read_csv(run / "metrics.csv")
    return [float(value) for value in table["train/loss"].dropna()]


def test_two_csvs_to_a_model_and_its_texts(corpus: Path, tmp_path: Path) -> None:
    trainer = Trainer(max_steps=4, default_root_dir=tmp_path / "run", **QUICK)
    trainer.fit(module(), data(corpus))
    assert {"train/loss", "val/loss", "val/wer"} <= {*trainer.callback_metrics}
    assert len(losses(tmp_path / "run")) == 4
    files = [corpus / row["audio"] for row in read_rows(corpus / "test.csv")]
    opened = load(str(tmp_path / "run"))
    heard = opened.transcribe([str(files[0]), files[1], load_audio(files[2]), load_audio(files[3]).numpy()])
    assert heard == opened.transcribe(files[:4], batch_size=1)
    best = min((tmp_path / "run" / "transcripts").glob("step-*.csv"))
    assert len(pd.read_csv(best)) == len(files)


def test_a_run_continues_as_if_it_had_not_stopped(corpus: Path, tmp_path: Path) -> None:
    for name, steps in (("whole", (4,)), ("parts", (2, 4))):
        for number, max_steps in enumerate(steps):
            trainer = Trainer(max_steps=max_steps, default_root_dir=tmp_path / name, **QUICK)
            model = module()
            model.rates = model.rates._replace(schedule="constant")  # which knows nothing of the run's length
            trainer.fit(model, data(corpus), ckpt_path="last" if number else None)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    states = [
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "parts")
    ]
    assert all(torch.equal(value, states[1]["state_dict"][key]) for key, value in states[0]["state_dict"].items())
    with pytest.raises(UserError, match="holds a run"):
        Trainer(max_steps=4, default_root_dir=tmp_path / "parts", **QUICK).fit(module(), data(corpus))
    with pytest.raises(UserError, match="there is no checkpoint"):
        Trainer(max_steps=4, default_root_dir=tmp_path / "new", **QUICK).fit(module(), data(corpus), ckpt_path="last")


def test_what_cannot_be_heard_is_named(tmp_path: Path) -> None:
    model = module()
    with pytest.raises(AudioError, match="no such file"):
        model.transcribe([tmp_path / "none.wav"])
    with pytest.raises(ValueError, match=r"shape \(2, 8000\)"):
        model.transcribe([torch.zeros(2, 8000)])
    with pytest.raises(ValueError, match="at most 4 s"):
        model.transcribe([torch.zeros(70_000)])
    assert model.training, "a model that is trained goes on being trained"


@pytest.mark.slow
def test_the_notebook_runs(corpus: Path) -> None:
    """As it stands, but for fewer steps, on clips and the model of the quickstart."""
    shutil.copytree(MODEL, corpus / "model")
    cells = json.loads((ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    fewer = code.replace("max_steps=300, val_check_interval=100", "max_steps=4, val_check_interval=2")
    fewer = fewer.replace("learning_rate=0.003", "learning_rate=0.003, warmup_steps=1, max_tokens=10")
    assert fewer.count("=4") == fewer.count("=10") == 1
    done = subprocess.run([sys.executable, "-c", fewer], cwd=corpus, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert (corpus / "report" / "index.html").is_file()


def test_the_trainer_is_lightnings_with_our_defaults(tmp_path: Path) -> None:
    base = yaml.safe_load((ROOT / "configs" / "base.yaml").read_text(encoding="utf-8"))["trainer"]
    given = {"default_root_dir": "runs/default", "max_steps": 100, "max_epochs": -1}
    assert base == DEFAULTS | given
    mine = EvaluateWER(num_shown=1)
    trainer = Trainer(max_epochs=2, callbacks=[mine], default_root_dir=tmp_path, accelerator="cpu")
    assert isinstance(trainer, pl.Trainer)
    assert (trainer.max_epochs, trainer.max_steps) == (2, -1)
    assert [each for each in trainer.callbacks if isinstance(each, EvaluateWER)] == [mine]  # type: ignore[attr-defined]


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys, whisper_lightning; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "lightning", "transformers", "pandas", "numpy"} & {*done.stdout.split()} == set()
    assert {*whisper_lightning.__all__} <= {*dir(whisper_lightning)}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        whisper_lightning.nothing  # noqa: B018
