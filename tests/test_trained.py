"""Opening a model for use: what is taken for one, and what is said of what is none."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.conftest import MODEL, quick_arguments
from whisper_lightning.cli import main
from whisper_lightning.errors import UserError
from whisper_lightning.model.load import load
from whisper_lightning.model.module import WhisperModule


def test_a_run_stands_for_its_best_model(tmp_path: Path) -> None:
    module = WhisperModule(checkpoint=str(MODEL), random_weights=True, language="pt")
    module.save_pretrained(tmp_path / "run" / "best")
    (tmp_path / "run" / "config.yaml").touch()
    opened = load(str(tmp_path / "run"))
    assert not opened.training
    assert opened.whisper.dtype == torch.float32
    assert opened.encoder.prompt == module.encoder.prompt
    assert load(str(tmp_path / "run"), language="es").encoder.prompt != module.encoder.prompt


def test_a_checkpoint_is_opened_where_it_was_moved_to(
    corpus: Path, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run started from a folder that was given relative to another working directory."""
    place = tmp_path / "place"
    shutil.copytree(published, place / "base")
    monkeypatch.chdir(place)
    options = ["--model.checkpoint=base", "--model.random_weights=false", "--trainer.max_steps=2"]
    assert main([*quick_arguments(corpus, place / "run"), *options]) == 0
    monkeypatch.chdir(tmp_path)
    shutil.move(place, tmp_path / "elsewhere")
    last = tmp_path / "elsewhere" / "run" / "checkpoints" / "last.ckpt"
    opened = load(str(last))
    trained = torch.load(last, weights_only=True)["state_dict"]
    assert all(torch.equal(weight, trained[name]) for name, weight in opened.state_dict().items())
    assert opened.encoder.language == "es"
    assert load(str(last), language="gl").encoder.language == "gl"


def test_what_is_no_model(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    (tmp_path / "notes.txt").touch()
    for name, said in (
        ("first", "no best model yet; give its checkpoints/last.ckpt"),
        ("third", "there is no run .*third'; in that folder are first, second"),
        ("notes.txt", "notes.txt is empty; give a run's folder"),
        ("far/away", "cannot load .*away'; give a hub name"),
    ):
        with pytest.raises(UserError, match=said):
            load(str(tmp_path / name))
