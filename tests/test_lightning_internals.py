"""What we touch of Lightning's private names does what our callbacks rely on; a version that changes it fails here."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset

from tests.test_layers import PACKAGE
from whisper_lightning.callbacks import lightning_internals as internals

ROWS = 8  # batches of an epoch, of one row


class Small(BoringModel):
    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(RandomDataset(32, ROWS))

    val_dataloader = train_dataloader


class Watch(Callback):
    """Notes what the internals say at each batch, and where Lightning validates."""

    def __init__(self) -> None:
        self.accumulating: list[bool] = []
        self.due: list[int] = []
        self.validated: list[int] = []
        self.epochs: list[int] = []
        self.saved: list[dict[str, Any]] = []
        self._batches = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.epochs.append(internals.current_epoch(trainer))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._batches += 1
        self.accumulating.append(internals.is_accumulating(trainer))
        if internals.is_validation_due(trainer):
            self.due.append(self._batches)
        elif not self.accumulating[-1]:
            self.saved.append(internals.dump_checkpoint(trainer, validating=False))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validated.append(self._batches)


def fit(folder: Path, watch: Callback, ckpt_path: Path | None = None, **options: Any) -> Trainer:
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    quiet |= {"logger": False, "num_sanity_val_steps": 0, "check_val_every_n_epoch": None, "max_epochs": -1}
    trainer = Trainer(accelerator="cpu", default_root_dir=folder, callbacks=[watch], **quiet | options)
    trainer.fit(Small(), ckpt_path=ckpt_path)
    return trainer


def test_a_group_and_a_validation_are_seen_beforehand(tmp_path: Path) -> None:
    watch = Watch()
    fit(tmp_path, watch, max_steps=5, accumulate_grad_batches=2, val_check_interval=4)
    assert watch.accumulating == [True, False] * 5
    assert watch.due == watch.validated == [4, 8]
    assert watch.epochs == [0] * ROWS + [1] * 2


def test_the_last_step_is_validated_when_it_is_asked_for(tmp_path: Path) -> None:
    class Ask(Watch):
        def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
            internals.validate_last_step(trainer)

    watch = Ask()
    fit(tmp_path, watch, max_steps=5, val_check_interval=4)
    assert watch.due == watch.validated == [4, 5]


def test_epochs_become_steps(tmp_path: Path) -> None:
    class Settle(Callback):
        def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
            internals.set_length(trainer, 3)

    trainer = fit(tmp_path, Settle(), max_epochs=2, val_check_interval=4)
    assert (trainer.global_step, trainer.max_steps) == (3, 3)


@pytest.mark.parametrize("step", [1, 7, 8, 9])
def test_a_checkpoint_is_gone_on_from_at_the_next_batch(tmp_path: Path, step: int) -> None:
    """Also at an epoch's border, where the next batch is the first of the next epoch."""
    whole = Watch()
    fit(tmp_path, whole, max_steps=12, val_check_interval=100)
    torch.save(whole.saved[step - 1], tmp_path / "some.ckpt")
    rest = Watch()
    trainer = fit(tmp_path, rest, tmp_path / "some.ckpt", max_steps=12, val_check_interval=100)
    assert trainer.global_step == 12
    assert rest.epochs == whole.epochs[step:]


def test_a_validation_that_was_cut_runs_again_whole(tmp_path: Path) -> None:
    class Cut(Callback):
        def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            torch.save(internals.dump_checkpoint(trainer, validating=True), tmp_path / "cut.ckpt")

    class Count(Watch):
        def __init__(self) -> None:
            super().__init__()
            self.batches = 0

        def on_validation_batch_end(self, *_: Any) -> None:
            self.batches += 1

    fit(tmp_path, Cut(), max_steps=4, val_check_interval=4)
    count = Count()
    fit(tmp_path, count, tmp_path / "cut.ckpt", max_steps=5, val_check_interval=4)
    assert (count.batches, count.epochs) == (ROWS, [0])


def test_a_launcher_without_processes_is_left_alone(tmp_path: Path) -> None:
    internals.let_processes_end(fit(tmp_path, Watch(), max_steps=1, val_check_interval=4))


class Hear(Callback):
    """Notes the weights while a validation runs, and those that the internals give when it has ended."""

    def __init__(self) -> None:
        self.heard: dict[str, torch.Tensor] = {}
        self.given: dict[str, torch.Tensor] = {}
        self.own: dict[str, torch.Tensor] = {}

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.heard = {name: value.clone() for name, value in pl_module.state_dict().items()}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.given = {name: value.clone() for name, value in internals.validated_weights(trainer).items()}
        self.own = {name: value.clone() for name, value in pl_module.state_dict().items()}


@pytest.mark.parametrize("averaged", [True, False])
def test_the_weights_of_a_validation_are_those_that_it_heard(tmp_path: Path, averaged: bool) -> None:
    hear = Hear()
    callbacks: list[Callback] = [EMAWeightAveraging(decay=0.5), hear] if averaged else [hear]
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=callbacks,
        max_steps=4,
        val_check_interval=4,
    )
    trainer.fit(Small())
    assert all(torch.equal(hear.heard[name], value) for name, value in hear.given.items())
    assert all(torch.equal(hear.own[name], value) for name, value in hear.given.items()) != averaged


def test_no_other_callback_touches_private_names() -> None:
    theirs = ("._average_model", "._should", "._data_fetcher", "._checkpoint_connector", "epoch_progress", "launcher")
    for path in PACKAGE.rglob("*.py"):
        if path.name not in ("lightning_internals.py", "datamodule.py"):
            text = path.read_text(encoding="utf-8")
            assert [name for name in theirs if name in text] == [], path
