"""The first losses of a run with everything on, committed: a refactor must give the same."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import MODEL, QUICKSTART
from whisper_lightning.cli import main

TRAIN_LOSSES = [
    *(6.1038814, 6.0025659, 5.8414373, 5.6871190, 5.5728803, 5.4705882, 5.3387227, 5.2369361, 5.1402316, 5.0488667),
    *(4.9716539, 4.9213653, 4.8651834, 4.7900639, 4.7651420, 4.7530007, 4.7128916, 4.6855989, 4.7139940, 4.6770821),
]
"""At steps 1 to 20, seed 42, float32 on a CPU (torch 2.12.1); with AVX2 kernels at most 2e-7 of it differ."""
VALIDATION_LOSS_BEFORE_TRAINING = 6.1058584


def test_first_losses(tmp_path: Path) -> None:
    """Twenty steps of the quickstart with dropout, masks, decay and a cosine: what each of them does is in the losses.

    The tolerance is for other processors' kernels; on one machine the figures repeat to the last bit.
    """
    model = shutil.copytree(MODEL, tmp_path / "model")
    config = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps(config | {"dropout": 0.1}), encoding="utf-8")
    options = [
        f"--model.checkpoint={model}",
        f"--data.train={QUICKSTART / 'train.csv'}",
        f"--data.val={QUICKSTART / 'test.csv'}",
        f"--trainer.default_root_dir={tmp_path / 'run'}",
        "--trainer.max_steps=20",
        "--trainer.val_check_interval=20",
        "--trainer.log_every_n_steps=1",
        "--trainer.enable_progress_bar=false",
        "--model.learning_rate=0.001",
        "--model.warmup_steps=4",
        "--model.schedule=cosine",
        "--model.weight_decay=0.1",
        "--model.spec_augment=true",
        "--model.max_tokens=1",
    ]
    assert main(["fit", "--config=quickstart.yaml", *options]) == 0
    metrics = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert list(metrics["train/loss"].dropna()) == pytest.approx(TRAIN_LOSSES, rel=1e-5)
    assert metrics["val/loss"].dropna().iloc[0] == pytest.approx(VALIDATION_LOSS_BEFORE_TRAINING, rel=1e-5)
