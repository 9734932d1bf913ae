"""Opening a model for use: what is taken for one, and what is said of what is none."""

from pathlib import Path

import pytest
import torch

from tests.conftest import MODEL
from whisper_lightning.errors import UserError
from whisper_lightning.model.module import WhisperModule
from whisper_lightning.model.trained import open_model


def test_a_run_stands_for_its_best_model(tmp_path: Path) -> None:
    module = WhisperModule(checkpoint=str(MODEL), random_weights=True, language="pt")
    module.save_pretrained(tmp_path / "run" / "best")
    (tmp_path / "run" / "config.yaml").touch()
    opened = open_model(str(tmp_path / "run"))
    assert not opened.training
    assert opened.context == "full"
    assert opened.whisper.dtype == torch.float32
    assert opened.encoder.prompt == module.encoder.prompt
    assert open_model(str(tmp_path / "run"), language="es").encoder.prompt != module.encoder.prompt


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
            open_model(str(tmp_path / name))
