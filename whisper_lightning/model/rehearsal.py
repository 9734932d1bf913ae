"""A training step before there is one: on tensors with shapes and no numbers, for its memory; for real, for its time.

The step is the run's own, `training_states` and `label_loss` with autocast, adapters and parts as there. So what it
needs follows from what it does, in every mode, and no formula has to be kept true.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import WhisperConfig, WhisperForConditionalGeneration
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from whisper_lightning.audio.constants import FRAMES_PER_SECOND
from whisper_lightning.model.adapters import add_adapters, halve_frozen
from whisper_lightning.model.optim import parameter_groups
from whisper_lightning.model.tail import encode
from whisper_lightning.model.whisper import decoder_states, label_loss, training_states

CPU = torch.device("cpu")
ADD, ADD_IN_PLACE = torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor


@dataclass(frozen=True)
class Mode:
    """What of a model is trained, and how.

    Attributes:
        precision: Of the trainer; `bf16-mixed`, `16-mixed` or `32-true`.
        lora_rank: Of the adapters that alone are trained; 0 for none.
        lora_targets: Matrices that have them; all by default.
        dora: Their rows' lengths are trained apart.
        freeze_encoder: The decoder alone is trained, or has adapters.
    """

    precision: str = "bf16-mixed"
    lora_rank: int = 0
    lora_targets: Sequence[str] | None = None
    dora: bool = False
    freeze_encoder: bool = False


@dataclass(frozen=True)
class Load:
    """A batch.

    Attributes:
        rows: Utterances, or windows.
        seconds: Computed length of each, in seconds.
        num_tokens: Tokens of each label.
        rows_at_once: How many keep their activations at once in training; the others' are computed again.
    """

    rows: int
    seconds: float
    num_tokens: int
    rows_at_once: int


class Rehearsal:
    """A model of some shape that is trained in some way.

    Args:
        config: Its shape.
        mode: The way.

    Attributes:
        num_weights: Weights, adapters included.
        num_trained: Those that are trained.
    """

    def __init__(self, config: WhisperConfig, mode: Mode) -> None:
        self._config, self._mode, self._fake = config, mode, FakeTensorMode()
        with torch.device("meta"):
            self._whisper = self._make()
        _pretend(self._whisper, self._fake)
        weights = list(self._whisper.parameters())
        self.num_weights: int = sum(each.numel() for each in weights)
        self.num_trained: int = sum(each.numel() for each in weights if each.requires_grad)

    def training_bytes(self, load: Load) -> int:
        """Return the peak of a training step with AdamW in the middle of a run, gradients and moments included."""
        live = _LiveBytes(self._whisper, mixed="mixed" in self._mode.precision)
        with self._fake, live:
            moments = self._moments()
            _backward(self._whisper, load, min(load.rows, 2 * load.rows_at_once), self._mode, CPU)
            del moments
            self._whisper.zero_grad()
        return live.peak

    @torch.no_grad()
    def validation_bytes(self, load: Load) -> int:
        """Return the peak of a validation between two steps: loss and decode, with its cache of keys and values."""
        live = _LiveBytes(self._whisper, mixed="mixed" in self._mode.precision)
        with self._fake, live, _autocast(self._mode, CPU):
            moments = self._moments()
            features, tokens = _batch(self._config, load, CPU)
            encoded = encode(self._whisper.model.encoder, features, None)
            states = decoder_states(self._whisper, encoded, tokens)
            label_loss(self._whisper, states, torch.arange(tokens.numel()), tokens.flatten())
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
            decoder_states(self._whisper, encoded, tokens, cache)
            del moments
        return live.peak

    def seconds(self, load: Load, device: torch.device) -> float:
        """Take two steps of random weights on a device; return the seconds of the second."""
        whisper = self._make().to(device)
        optimizer = torch.optim.AdamW(parameter_groups(whisper.named_parameters(), 0.01), lr=1e-5, fused=True)
        for _ in range(2):
            begin = time.perf_counter()
            loss = _backward(whisper, load, load.rows, self._mode, device)
            optimizer.step()
            optimizer.zero_grad()
            loss.item()  # waits for the device
        return time.perf_counter() - begin

    def _make(self) -> WhisperForConditionalGeneration:
        whisper = WhisperForConditionalGeneration(self._config).train()
        add_adapters(whisper, self._mode.lora_rank, self._mode.lora_targets, dora=self._mode.dora)
        if self._mode.freeze_encoder:
            whisper.model.encoder.requires_grad_(False)
        if "mixed" in self._mode.precision:
            halve_frozen(whisper)
        return whisper

    def _moments(self) -> list[torch.Tensor]:
        trained = [parameter for parameter in self._whisper.parameters() if parameter.requires_grad]
        return [torch.empty_like(parameter) for parameter in trained for _ in range(2)]


def _backward(
    whisper: WhisperForConditionalGeneration, load: Load, rows: int, mode: Mode, device: torch.device
) -> torch.Tensor:
    """Take the gradients of the first rows of a batch, with the labels of all of it: parts are alike."""
    features, tokens = _batch(whisper.config, load, device)
    positions = torch.arange(tokens.numel(), device=device) % (rows * load.num_tokens)
    with _autocast(mode, device):
        states = training_states(whisper, features[:rows], None, tokens[:rows], load.rows_at_once)
        loss = label_loss(whisper, states, positions, tokens.flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


def _autocast(mode: Mode, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled="mixed" in mode.precision)


def _batch(config: WhisperConfig, load: Load, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    frames = 2 * math.ceil(load.seconds * FRAMES_PER_SECOND / 2)
    features = torch.zeros(load.rows, config.num_mel_bins, frames, device=device)
    return features, torch.zeros(load.rows, load.num_tokens, dtype=torch.int64, device=device)


def _pretend(module: nn.Module, fake: FakeTensorMode) -> None:
    """Make fake tensors of a module's `meta` ones, which say that they are on a CPU: autocast asks for a device."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for each in module.modules():
        for name, parameter in each._parameters.items():
            if parameter is None:
                continue
            if parameter not in made:  # the output layer is the embedding
                data = FakeTensor(fake, parameter.data, CPU)
                made[parameter] = nn.Parameter(data, requires_grad=parameter.requires_grad)
            each._parameters[name] = made[parameter]


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that live, those of a module's weights included; the most there were: `peak`."""

    def __init__(self, module: nn.Module, *, mixed: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._mixed = mixed
        self.peak: int = 0
        self._now: int = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        for parameter in module.parameters():
            self._hold(parameter.data)

    def _hold(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known.add(storage)
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, num_bytes: int) -> None:
        self._now -= num_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # In mixed precision autograd sums the embedding's two gradients in place; of tensors that Python holds, as
        # these, it makes a new one.
        if self._mixed and func is ADD and not torch.is_grad_enabled() and torch._C._current_graph_task_id() != -1:
            func = ADD_IN_PLACE
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, torch.Tensor):
                self._hold(each)
        return out
