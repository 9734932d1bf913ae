"""The numbers that every Whisper shares."""

SAMPLE_RATE_HZ = 16_000
HOP_LENGTH = 160
"""Samples from frame to frame: 10 ms."""
FRAMES_PER_SECOND = SAMPLE_RATE_HZ // HOP_LENGTH
SAMPLES_PER_POSITION = 2 * HOP_LENGTH
"""The encoder's second convolution has stride 2: one position per 20 ms."""
POSITIONS_PER_SECOND = SAMPLE_RATE_HZ // SAMPLES_PER_POSITION
MAX_SECONDS = 30.0
"""The longest context of any published Whisper."""
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aac", ".aiff", ".aif", ".webm", ".mp4")
