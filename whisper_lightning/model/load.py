"""Open a model to use it: from a run, a checkpoint file, a folder, or the hub."""

from __future__ import annotations

from contextlib import suppress
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.utils import cached_file

from whisper_lightning.errors import UserError
from whisper_lightning.files import read_checkpoint
from whisper_lightning.model.module import WhisperModule

WITHOUT_ADAPTERS = {"lora_rank": 0, "lora_targets": None, "dora": False}


def load(source: str | Path, *, language: str | None = None, exact: bool = False, num_beams: int = 1) -> WhisperModule:
    """Return a module in evaluation mode, on the CPU in float32.

    Args:
        source: A run's folder (its `best/` is taken), a checkpoint file of a run (`last.ckpt`), a folder in Hugging
            Face layout, or a hub name.
        language: Language that is spoken; by default the one that the model was trained for, else Spanish.
        exact: Compute every silent position, to compare with other programs to the last digit.
        num_beams: Of its decode, whatever it was validated with; 1 is greedy.

    Raises:
        UserError: There is no model, or a run that has no best model yet.
    """
    source = str(source)
    path = Path(source)
    told: dict[str, Any] = {"num_beams": num_beams}
    if language is not None:
        told["language"] = language
    if exact:
        told["tail"] = "exact"
    if path.is_file():
        return _open_checkpoint(path, told).eval()
    if not path.exists():
        runs = sorted(config.parent.name for config in path.parent.glob("*/config.yaml"))
        if runs:  # the hub has no such model either, and offline it takes minutes to say so
            raise UserError(f"there is no run {source!r}; in that folder are {', '.join(runs)}")
    found = _model_of(source)
    if found == source and (path / "config.yaml").is_file() and not (path / "config.json").is_file():
        raise UserError(f"{source}: this run has no best model yet; give its checkpoints/last.ckpt, or validate once")
    return WhisperModule(checkpoint=found, **_trained_for(found) | told).eval()


def reload(module: WhisperModule, folder: Path) -> WhisperModule:
    """Return a module with the options of another and the weights of a folder that `save_pretrained` wrote."""
    told = {"checkpoint": str(folder), "random_weights": False, "initial_weights": None}
    return WhisperModule(**_options(module) | told)


def starting_weights(module: WhisperModule) -> dict[str, torch.Tensor]:
    """Return the weights that a module's run has started from, read anew, by their names in the module."""
    return WhisperModule(**_options(module)).state_dict()


def _options(module: WhisperModule) -> dict[str, Any]:
    """Return those of a module; without adapters, since what is loaded has them merged."""
    options = {name: value for name, value in module.hparams.items() if name != "_instantiator"}  # LightningCLI's
    return options | WITHOUT_ADAPTERS


def tells_times(source: str) -> bool:
    """Say whether a model tells when a text begins and ends: published ones do, and those that were trained with times.

    Who is fine-tuned on sentences alone forgets it, and names a language, which no published model does.

    Args:
        source: As `load` takes it.
    """
    if Path(source).is_file():  # of a run, whose best model was trained alike
        return bool(_generation(str(Path(source).parent.parent / "best")).get("tells_times"))
    generation = _generation(_model_of(source))
    return bool(generation.get("tells_times", not _named(generation)))


def _model_of(source: str) -> str:
    """Return the best model of a run's folder; another source as it is."""
    best = Path(source) / "best"
    return str(best) if (best / "config.json").is_file() else source


def find_run(source: str) -> Path | None:
    """Return the folder of the run that a model is from: its folder, its `best/`, or one of its checkpoint files."""
    path = Path(source).resolve()
    folders = (path, path.parent, path.parent.parent)
    return next((folder for folder in folders if (folder / "config.yaml").is_file()), None)


def model_files(source: str) -> list[Path]:
    """Return the files that a model is made of; with others in their places it is another model.

    Of the hub's it is one, whose path names the revision.

    Raises:
        UserError: There is no such model.
    """
    path = Path(source)
    if path.is_file():
        return [path]
    folder = Path(_model_of(source))
    found: list[Path] = []
    if folder.is_dir():
        found = sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".bin", ".json"))
    else:
        with suppress(OSError):
            found = [Path(str(cached_file(source, "config.json")))]
    if not found:
        load(source)  # which says what is missing
    assert found
    return found


def _generation(source: str) -> dict[str, Any]:
    """Return a model's generation config; nothing where there is none."""
    try:
        return dict(GenerationConfig.from_pretrained(source).to_dict())
    except Exception:
        return {}  # loading the model will say what is missing or damaged


def _trained_for(source: str) -> dict[str, Any]:
    """Return language and task as far as the folder names them; published models name neither."""
    generation = _generation(source)
    return {"language": "en"} if generation.get("is_multilingual") is False else _named(generation)


def _named(generation: dict[str, Any]) -> dict[str, Any]:
    named = {name: str(generation[name]) for name in ("language", "task") if generation.get(name) is not None}
    return {name: value.strip("<|>") for name, value in named.items()}


def _open_checkpoint(path: Path, told: dict[str, Any]) -> WhisperModule:
    """Open a checkpoint file of a run; the model that the run started from gives everything but the weights."""
    try:
        hparams = read_checkpoint(path).get("hyper_parameters")
        if not isinstance(hparams, dict):
            raise UserError(f"{path} is no checkpoint of a run: it has no hyper_parameters")
    except UserError as error:
        raise UserError(f"{error}; give a run's folder or its last.ckpt") from None
    # LightningCLI's own entry goes, and so does an option of another version: the weights do not depend on it.
    hparams = {name: value for name, value in hparams.items() if name in signature(WhisperModule).parameters}
    best = path.parent.parent / "best"
    if (best / "config.json").is_file():  # the same model, which has moved with the run
        hparams["checkpoint"] = str(best)
    begun = {"random_weights": True, "initial_weights": str(path)}
    return WhisperModule(**hparams | told | begun | WITHOUT_ADAPTERS)
