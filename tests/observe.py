"""A callback that writes down what each option of ours decides, as a run really does it."""

import json
import multiprocessing
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from whisper_lightning.model.module import WhisperModule


def _sums(batch: Any) -> dict[str, str]:
    """Return a fingerprint of each utterance's samples; padding with zeros does not change it."""
    sums = batch.waveforms.double().sum(dim=1)
    return {key: float(value).hex() for key, value in zip(batch.keys, sums, strict=True)}


def _sentences(batch: Any) -> dict[str, str]:
    return dict(zip(batch.keys, batch.sentences, strict=True))


class Observe(Callback):
    """Writes a JSON file of what a run did; training is observed in its first epoch, validation before training.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._seen: dict[str, Any] = defaultdict(list)
        self._features: list[torch.Tensor] = []
        self._decoder_calls = self._decoder_rows = self._num_positions = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen at the model."""
        assert isinstance(pl_module, WhisperModule)
        self._before = set(multiprocessing.active_children())
        model = pl_module.whisper.model
        model.encoder.conv1.register_forward_pre_hook(self._hears)
        model.encoder.layers[0].register_forward_pre_hook(self._encodes)
        model.decoder.layers[0].register_forward_pre_hook(self._decodes)

    def _hears(self, module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        if arguments[0].shape[2] > 8:  # no speech: silence, of which the tail's sample is made
            self._features.append(arguments[0].detach())

    def _encodes(self, module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        self._num_positions = arguments[0].shape[1]

    def _decodes(self, module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        self._decoder_calls += 1
        self._decoder_rows = max(self._decoder_rows, len(arguments[0]))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what the run starts from, and where it logs."""
        weights = sum(float(value.double().abs().sum()) for value in pl_module.state_dict().values())
        self._seen["weights at the start"] = weights
        self._seen["loggers"] = [type(each).__name__ for each in trainer.loggers]
        for each in trainer.loggers:
            if isinstance(each, WandbLogger):
                self._seen["W&B project"], self._seen["W&B name"] = each.experiment.project, each.experiment.name

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin to listen."""
        self._features = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Note what the optimizer uses."""
        self._seen["learning rates"].append(optimizer.param_groups[0]["lr"])
        self._seen["weight decay"] = [group["weight_decay"] for group in optimizer.param_groups]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the batch, and what the model got of it."""
        if trainer.current_epoch > 0:
            return
        assert isinstance(pl_module, WhisperModule)
        heard = self._features[0]
        clean = pl_module.log_mel(batch.waveforms)[: len(heard)]
        self._seen["training batches"].append(batch.keys)
        self._seen["training seconds"].append(batch.waveforms.shape[1] / 16_000)
        for name, values in (("training audio", _sums(batch)), ("training sentences", _sentences(batch))):
            self._seen[name] = {**(self._seen[name] or {}), **values}
        self._seen["every position"] = self._num_positions == pl_module.full_frames // 2
        self._seen["masks"] = not torch.equal(heard, clean)
        self._seen["encoder calls"] = max(self._seen["encoder calls"] or 0, len(self._features))
        starts = {tuple(ids) for ids in [*self._seen["prompts"], *batch.decoder_input_ids[:, :4].tolist()]}
        self._seen["prompts"] = sorted(starts)
        self._seen["workers"] = len(set(multiprocessing.active_children()) - self._before)

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Begin to count."""
        self._decoder_calls = self._decoder_rows = 0
        self._features = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Note the batch, and how long it was decoded."""
        if trainer.sanity_checking:
            self._seen["validation batches"].append(batch.keys)
            self._seen["validation frames"] = self._features[0].shape[2]
            for name, values in (("validation audio", _sums(batch)), ("validation sentences", _sentences(batch))):
                self._seen[name] = {**(self._seen[name] or {}), **values}
            self._seen["tokens decoded"] = self._decoder_calls - 1  # one call is for the loss
            self._seen["beams"] = self._decoder_rows // len(batch.keys)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Note the batch."""
        self._seen["test batches"].append(batch.keys)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note when a checkpoint is written."""
        self._seen["saves"].append(trainer.global_step)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file; a test after the training writes it anew."""
        self._path.write_text(json.dumps(self._seen), encoding="utf-8")
