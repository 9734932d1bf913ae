"""Whisper, its training step and its decoding."""
