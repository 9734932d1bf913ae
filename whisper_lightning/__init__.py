"""Fine-tune OpenAI's Whisper for Spanish speech with PyTorch Lightning."""

__version__ = "0.1.0"
