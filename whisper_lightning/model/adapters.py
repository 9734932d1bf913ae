"""LoRA: small matrices are trained beside frozen ones, and merged into them wherever a model leaves its run."""

from __future__ import annotations

import importlib.util
import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import WhisperForConditionalGeneration

from whisper_lightning.errors import UserError

TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
"""All matrices of a layer, which do better than those of attention alone (Biderman et al. 2024, arXiv:2405.09673)."""
ALPHA = 8.0
"""What is added counts this over the square root of the rank (rsLoRA, Kalajdzievski 2023, arXiv:2312.03732)."""
NAME = "default"
"""PEFT's own for the only adapter."""


def add_adapters(
    whisper: WhisperForConditionalGeneration, rank: int, targets: Sequence[str] | None, *, dora: bool
) -> None:
    """Freeze a model, and put trainable adapters beside matrices of all its layers; the model stays what it is.

    Args:
        whisper: The model.
        rank: Of the adapters (Hu et al. 2022, arXiv:2106.09685); 0 leaves the model as it is.
        targets: Which matrices, of `TARGETS`; all of them by default.
        dora: Train lengths and directions of each matrix's rows apart (Liu et al. 2024, arXiv:2402.09353).

    Raises:
        UserError: There are no such matrices, no such rank, or no PEFT.
    """
    for target in targets or ():
        if target not in TARGETS:
            raise UserError(f"model.lora_targets: {target!r}; choose from {', '.join(TARGETS)}")
    if rank < 0 or rank > whisper.config.d_model:
        raise UserError(f"model.lora_rank: {rank}; give 0, or a rank of at most {whisper.config.d_model}, such as 32")
    if not rank and (dora or targets):
        raise UserError(f"model.{'dora' if dora else 'lora_targets'}: there are no adapters; give model.lora_rank too")
    if not rank:
        return
    if importlib.util.find_spec("peft") is None:
        raise UserError("model.lora_rank: the package peft is not installed; pip install 'whisper-lightning[lora]'")
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=rank, lora_alpha=ALPHA, use_rslora=True, use_dora=dora, target_modules=list(targets or TARGETS)
    )
    with warnings.catch_warnings():  # of what it asks of transformers
        warnings.simplefilter("ignore")
        inject_adapter_in_model(config, whisper, adapter_name=NAME)
    for module in whisper.modules():
        if not dora and hasattr(module, "lora_A"):
            module.cast_input_dtype_enabled = False  # under autocast it would keep one more copy of the input


def halve_frozen(whisper: WhisperForConditionalGeneration) -> None:
    """Hold the frozen matrices of all layers in float16 where that loses nothing, as with OpenAI's published weights.

    For a step in mixed precision, which computes with 16-bit copies of them anyway.
    """
    for module in (*whisper.model.encoder.layers.modules(), *whisper.model.decoder.layers.modules()):
        for weight in module.parameters(recurse=False) if isinstance(module, nn.Linear) else ():
            half = weight.data.half()
            if not weight.requires_grad and (weight.is_meta or torch.equal(half.float(), weight.data)):
                weight.data = half


def merge(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights of a model without adapters that computes the same; without adapters, the weights given.

    Args:
        state: Of a module, by PEFT's names of its parts.
    """
    merged = {}
    for name, weight in state.items():
        if match := re.search(r"^(.+)\.base_layer\.(weight|bias)$", name):
            name = f"{match[1]}.{match[2]}"
            down = state.get(f"{match[1]}.lora_A.{NAME}.weight") if match[2] == "weight" else None
            if down is not None:
                up = state[f"{match[1]}.lora_B.{NAME}.weight"]
                weight = weight.float()
                weight = weight + ALPHA / math.sqrt(len(down)) * (up.float() @ down.float())
                length = state.get(f"{match[1]}.lora_magnitude_vector.{NAME}.weight")
                if length is not None:
                    weight = length.float()[:, None] * weight / weight.norm(dim=1, keepdim=True)
        elif ".lora_" in name:
            continue
        merged[name] = weight
    return merged


def write_adapter(state: dict[str, torch.Tensor], whisper: WhisperForConditionalGeneration, folder: Path) -> None:
    """Write the adapters alone, if there are any, as PEFT does, for `PeftModel.from_pretrained(base, folder)`.

    Args:
        state: Of a module with adapters.
        whisper: Its model.
        folder: Where.
    """
    parts = {
        "base_model.model." + name.removeprefix("whisper.").replace(f".{NAME}", ""): weight.contiguous()
        for name, weight in state.items()
        if ".lora_" in name
    }
    if not parts:
        return
    folder.mkdir()
    whisper.peft_config[NAME].save_pretrained(folder)
    save_file(parts, folder / "adapter_model.safetensors")
    # safetensors 0.8 writes for the user alone.
    (folder / "adapter_model.safetensors").chmod((folder / "adapter_config.json").stat().st_mode)
