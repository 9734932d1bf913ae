"""The quickstart's first losses, committed: a refactor must give the same."""

from pathlib import Path

import pandas as pd
import pytest

TRAIN_LOSSES = [5.864708, 5.487160, 5.078396, 4.577577]
"""At steps 5, 10, 15 and 20, seed 42, float32 on a CPU (torch 2.12.1)."""
VALIDATION_LOSS_BEFORE_TRAINING = 6.107177


def test_first_losses_of_the_quickstart(quickstart_run: Path) -> None:
    """The tolerance is for other processors' kernels; on one machine the figures repeat to the last bit."""
    metrics = pd.read_csv(quickstart_run / "runs" / "quickstart" / "metrics.csv")
    assert list(metrics["train/loss"].dropna()[:4]) == pytest.approx(TRAIN_LOSSES, rel=1e-3)
    assert metrics["val/loss"].dropna().iloc[0] == pytest.approx(VALIDATION_LOSS_BEFORE_TRAINING, rel=1e-4)
