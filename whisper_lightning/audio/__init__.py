"""Sound: files to waveforms, waveforms to what Whisper hears."""
