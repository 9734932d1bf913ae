"""Weights & Biases: a run that goes on where it was, and is logged offline where nobody is logged in or reached."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment

from whisper_lightning.addresses import without_keys
from whisper_lightning.errors import UserError

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 30.0
"""After which Weights & Biases is not waited for any longer."""


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


def wandb_logger(folder: Path, project: str, name: str | None) -> WandbLogger:
    """Make the logger of the run in `folder`, whose id a file there keeps, to be continued; nobody is asked."""
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
        name=name or folder.name,
        project=project,
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
