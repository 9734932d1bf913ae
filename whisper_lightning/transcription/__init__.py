"""Recordings of any length, through faster-whisper."""
