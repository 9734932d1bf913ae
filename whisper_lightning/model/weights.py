"""Weights from files that others wrote: all of them, or none."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from safetensors import safe_open
from transformers import WhisperConfig, WhisperForConditionalGeneration
from transformers.utils import logging

from whisper_lightning.errors import UserError
from whisper_lightning.files import read_checkpoint
from whisper_lightning.hub import adapter_message, first_line
from whisper_lightning.model.adapters import merge

NUM_NAMED = 3
"""Weights that a message names."""
COMPUTED = {"model.encoder.embed_positions.weight"}
"""What transformers fills in as trained when a file lacks it: sinusoids."""


def load_weights(checkpoint: str, config: WhisperConfig) -> WhisperForConditionalGeneration:
    """Load a Whisper with its weights in float32, and refuse what transformers would replace by random ones.

    Raises:
        UserError: There are no weights, they cannot be read, or they are not those of the configuration.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its table of the same weights would stand above our line
    try:
        whisper, report = WhisperForConditionalGeneration.from_pretrained(
            checkpoint,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except Exception as error:  # of a damaged file: the libraries name no common kind
        raise UserError(
            f"model.checkpoint: no weights that can be read in {checkpoint!r}; choose another checkpoint, or set "
            f"model.random_weights: true to start from scratch ({first_line(error)})"
        ) from None
    finally:
        logging.set_verbosity(verbosity)
    unknown = sorted(report["unexpected_keys"])
    if any(re.search(r"base_model\.|\.base_layer\.|lora_", name) for name in unknown):
        raise UserError(adapter_message(checkpoint))
    wrong = [f"{name} is missing" for name in sorted(report["missing_keys"] - COMPUTED)]
    wrong += [f"{name} is unknown" for name in unknown]
    shapes = sorted(report["mismatched_keys"])
    wrong += [f"{name} is {list(found)}, not {list(expected)}" for name, found, expected in shapes]
    if whisper.proj_out.weight is not whisper.model.decoder.embed_tokens.weight:
        wrong.append("proj_out.weight is another than model.decoder.embed_tokens.weight, as in no Whisper")
    if wrong:
        more = f", and {len(wrong) - NUM_NAMED} more" if len(wrong) > NUM_NAMED else ""
        raise UserError(
            f"model.checkpoint: the weights in {checkpoint!r} are not those of the Whisper in its config.json: "
            f"{', '.join(wrong[:NUM_NAMED])}{more}; choose a whole checkpoint"
        )
    return whisper


def average(paths: Sequence[Path]) -> dict[str, torch.Tensor]:
    """Return the mean of the weights in files of `save_file`, by their names in a module; one is open at a time."""
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, "pt")) for path in paths]
        names = files[0].keys()
        return {name: torch.stack([file.get_tensor(name).float() for file in files]).mean(dim=0) for name in names}


def interpolate(start: dict[str, torch.Tensor], tuned: Path, alpha: float) -> dict[str, torch.Tensor]:
    """Return `start + alpha (tuned - start)` for each weight of `start`; of the tuned model one is open at a time.

    Args:
        start: Weights of a module by name, on the CPU.
        tuned: Folder that `save_pretrained` wrote.
        alpha: 0 is the start, 1 the tuned model.
    """
    mixed = dict(start)
    with safe_open(tuned / "model.safetensors", "pt") as file:
        names = {f"whisper.{name}": name for name in list(file.keys())}
        for name in names.keys() & start.keys():
            mixed[name] = torch.lerp(start[name], file.get_tensor(names[name]).to(start[name].dtype), alpha)
    return mixed


def identify(whisper: WhisperForConditionalGeneration, tokenizer: Any, *, with_weights: bool) -> str:
    """Return a digest of a model that does not depend on where it lies and what it is called.

    Args:
        whisper: The model as it was loaded.
        tokenizer: Its tokenizer.
        with_weights: Some values of each weight count too; a model that was trained differs in nearly all of them.
    """
    config = whisper.config.to_diff_dict()
    known = {name: value for name, value in config.items() if name not in ("_name_or_path", "transformers_version")}
    digest = hashlib.sha256(json.dumps([known, tokenizer.get_vocab()], sort_keys=True, default=str).encode())
    for weight in whisper.state_dict().values() if with_weights else ():
        values = weight.flatten()
        digest.update(values[:: max(1, len(values) // 256)].float().numpy().tobytes())
    return digest.hexdigest()


def take_weights(module: LightningModule, path: Path) -> None:
    """Load the weights of a checkpoint file of a run, and nothing else, into a module.

    Raises:
        UserError: It has none, or those of another model.
    """
    try:
        module.load_state_dict(merge(read_checkpoint(path)["state_dict"]))
    except (OSError, RuntimeError, UserError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"model.initial_weights: {path} holds no weights of a {module.checkpoint} ({reason}); "
            "give the last.ckpt of a run of that model"
        ) from None
