"""Where the curves go: metrics.csv and TensorBoard always, Weights & Biases when it is asked for."""

from __future__ import annotations

import csv
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from whisper_lightning.addresses import without_keys
from whisper_lightning.errors import UserError
from whisper_lightning.files import replacing

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 30.0
"""After which Weights & Biases is not waited for any longer."""


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


class RunOnWandb(WandbLogger):
    """Lightning's logger, whose summary has the lowest `val/wer` and not the last."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        del self._wandb_init["anonymous"]  # given at all, it is warned of: wandb has no such thing any more

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Return the run; begin it the first time."""
        if self._experiment is not None:
            return self._experiment
        with _command_line_without_keys():
            try:
                run = super().experiment
            except wandb.errors.AuthenticationError as error:
                raise _refused(error) from None
            except wandb.errors.CommError as error:  # a computer of a cluster often reaches nobody
                reason = str(error).splitlines()[0]
                logger.warning("Weights & Biases: not reached (%s); the run is logged offline", reason)
                wandb.teardown()  # its service holds the run that did not begin
                os.environ.pop("WANDB_SERVICE", None)  # also one of another process, such as a sweep's agent
                self._offline, self._wandb_init["mode"] = True, "offline"
                run = super().experiment
        run.define_metric("val/wer", step_metric="trainer/global_step", summary="min")
        return run


@contextmanager
def _command_line_without_keys() -> Iterator[None]:
    """Let wandb, which stores the command line, see its addresses without keys; other ranks are started from it."""
    given = sys.argv
    sys.argv = [without_keys(each) for each in given]
    try:
        yield
    finally:
        sys.argv = given


def make_loggers(folder: Path, options: WandbOptions, *, keep: bool) -> list[Logger]:
    """Make the loggers of the run in `folder`; they go on with what is there if they are to keep it."""
    loggers: list[Logger] = [MetricsCSV(folder, keep=keep), TensorBoardLogger(folder, name="", version="tensorboard")]
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
    return RunOnWandb(
        name=options.name or folder.name,
        project=options.project,
        save_dir=folder,
        id=path.read_text(encoding="utf-8").strip(),
        resume="allow",
        offline=offline,
        settings=_settings(),
        mode="offline" if offline else None,  # wandb has read its environment by now, where Lightning would say it
    )


def _settings() -> wandb.Settings:
    """Without the viewer wandb asks no server who is logged in, only to greet, and waits for no answer."""
    return wandb.Settings(x_disable_viewer=True, init_timeout=CONNECT_SECONDS)


def _logged_in() -> bool:
    """Ask wandb, which knows all the places where a key may be; it asks nobody for one."""
    try:
        wandb.setup(_settings())
        if "prompt" in signature(wandb.login).parameters:
            return bool(wandb.login(prompt=False, verify=False))
        return bool(wandb.api.api_key)  # wandb before 0.31
    except (wandb.Error, ValueError) as error:  # WANDB_MODE=offlien
        raise _refused(error) from None


def _refused(error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(f"wandb.enabled: {reason}; or turn it off: --wandb.enabled false")
