"""Where the curves go: metrics.csv and TensorBoard always, Weights & Biases when it is asked for."""

from __future__ import annotations

import csv
import logging
import netrc
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

logger = logging.getLogger(__name__)


@dataclass
class WandbOptions:
    """Weights & Biases.

    Attributes:
        enabled: Log to Weights & Biases; offline when nobody is logged in.
        project: Project there.
        name: Name of the run there; that of the run's folder by default.
    """

    enabled: bool = False
    project: str = "whisper-lightning"
    name: str | None = None


class _ContinuedWriter(ExperimentWriter):
    """Appends to the metrics.csv of an interrupted run; Lightning's writer deletes it."""

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])


class MetricsCSV(CSVLogger):
    """metrics.csv in the run's folder, continued by a resumed run."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name="", version="")

    @property
    def experiment(self) -> Any:
        """The writer, made at its first use."""
        if self._experiment is None:
            Path(self.log_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = _ContinuedWriter(log_dir=self.log_dir)
        return self._experiment


def make_loggers(folder: Path, options: WandbOptions) -> list[Logger]:
    """Make the loggers of the run in `folder`."""
    loggers: list[Logger] = [MetricsCSV(folder), TensorBoardLogger(folder, name="", version="tensorboard")]
    if options.enabled:
        loggers.append(_wandb(folder, options))
    return loggers


def _wandb(folder: Path, options: WandbOptions) -> WandbLogger:
    """Make the W&B logger without a prompt; the run's id is kept in a file, so that a resumed run continues it."""
    folder.mkdir(parents=True, exist_ok=True)
    offline = os.environ.get("WANDB_MODE") == "offline" or not _logged_in()
    if offline:
        logger.info(
            "Weights & Biases: offline. Upload later with `wandb sync %s`, or `wandb login` before the next run",
            folder / "wandb" / "offline-run-*",
        )
    path = folder / "wandb_run_id.txt"
    if not path.is_file():
        path.write_text(os.urandom(6).hex(), encoding="utf-8")
    return WandbLogger(
        name=options.name or folder.name,
        project=options.project,
        save_dir=folder,
        id=path.read_text(encoding="utf-8").strip(),
        resume="allow",
        offline=offline,
    )


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return host is not None and netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
