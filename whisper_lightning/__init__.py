"""Fine-tune OpenAI's Whisper for Spanish speech with PyTorch Lightning.

from whisper_lightning import SpeechDataModule, Trainer, WhisperModule, load

trainer = Trainer(max_steps=100, default_root_dir="runs/first")
trainer.fit(WhisperModule("openai/whisper-base"), SpeechDataModule("train.csv", "test.csv"))
load("runs/first").transcribe(["clip.wav"])
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing's, which takes longer to import than all of this
if TYPE_CHECKING:
    from whisper_lightning.data.datamodule import SpeechDataModule
    from whisper_lightning.model.load import load
    from whisper_lightning.model.module import WhisperModule
    from whisper_lightning.trainer import Trainer

__version__ = "0.2.0"
__all__ = ["SpeechDataModule", "Trainer", "WhisperModule", "load"]
_PLACES = {
    "SpeechDataModule": "whisper_lightning.data.datamodule",
    "Trainer": "whisper_lightning.trainer",
    "WhisperModule": "whisper_lightning.model.module",
    "load": "whisper_lightning.model.load",
}


def __getattr__(name: str) -> object:
    """Import what is asked for when it is: a loader's worker process, which imports this, needs none of it."""
    from importlib import import_module

    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    """List what there is, imported or not."""
    return sorted({*globals(), *__all__})
