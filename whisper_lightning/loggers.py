"""Where the curves go: metrics.csv and TensorBoard always, Weights & Biases when it is asked for."""

from __future__ import annotations

import csv
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from whisper_lightning.files import replacing

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


class MetricsCSV(Logger):
    """`metrics.csv`: a row for each logged step, continued by a resumed run where its checkpoint was.

    Rows reach the file when a checkpoint is written and when the run ends.

    Args:
        folder: The run's folder.
        keep: Go on after the rows that are there.
    """

    def __init__(self, folder: Path, *, keep: bool) -> None:
        super().__init__()
        self._path = folder / "metrics.csv"
        self.keep = keep
        self._columns = ["step"]
        self._new_rows: list[dict[str, Any]] = []
        self._num_rows: int | None = None

    @property
    def name(self) -> str:
        """What Lightning calls the logger."""
        return "metrics"

    @property
    def version(self) -> str:
        """Empty: one run, one file."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self._path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        """Do nothing: config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add a row; the step is the number of finished optimizer steps."""
        self._new_rows.append({"step": step} | {name: float(value) for name, value in metrics.items()})

    @rank_zero_only
    def save(self) -> None:
        """Append the new rows to the file."""
        old = self._open()
        added = sorted({name for row in self._new_rows for name in row}.difference(self._columns))
        self._columns += added
        if added or not old:
            self._write(self._read() if old else [])
        with self._path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self._columns).writerows(self._new_rows)
        self._num_rows = old + len(self._new_rows)
        self._new_rows = []

    def finalize(self, status: str) -> None:
        """Save what is left."""
        self.save()

    def state_dict(self) -> dict[str, int]:
        """Save, and give the number of rows."""
        self.save()
        return {"num_rows": self._num_rows or 0}

    @rank_zero_only
    def load_state_dict(self, state: dict[str, int]) -> None:
        """Drop the rows that the interrupted run wrote after its checkpoint; they come again."""
        if self._open():
            rows = self._read()[: state["num_rows"]]
            self._write(rows)
            self._num_rows = len(rows)

    def _open(self) -> int:
        """Return the number of rows in the file."""
        if self._num_rows is None:
            rows = self._read() if self.keep and self._path.is_file() else []
            self._num_rows = len(rows)
            self._columns = list(rows[0]) if rows else self._columns
        return self._num_rows

    def _read(self) -> list[dict[str, str]]:
        with self._path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file, restval=""))

    def _write(self, rows: list[dict[str, str]]) -> None:
        """Write the file anew, whole or not at all."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self._path) as fresh, fresh.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)


def make_loggers(folder: Path, options: WandbOptions, *, keep: bool) -> list[Logger]:
    """Make the loggers of the run in `folder`; they go on with what is there if they are to keep it."""
    loggers: list[Logger] = [MetricsCSV(folder, keep=keep), TensorBoardLogger(folder, name="", version="tensorboard")]
    if options.enabled:
        from whisper_lightning.weights_and_biases import wandb_logger  # wandb takes a second, and few need it

        loggers.append(wandb_logger(folder, options.project, options.name))
    return loggers
