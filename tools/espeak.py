"""The espeak-ng library, from the PyPI package ``espeakng-loader``: sentences to waveforms."""

import _ctypes
import ctypes
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import espeakng_loader
import numpy as np
import numpy.typing as npt

from whisper_lightning.errors import UserError

SAMPLE_RATE = 16_000  # Hz
# From espeak-ng's speak_lib.h
_OUTPUT_SYNCHRONOUS = 2  # espeak_Synth returns when the whole utterance went through the callback
_INITIALIZE_DONT_EXIT = 0x8000
_CHARS_UTF8 = 1
_POS_CHARACTER = 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_SYNTH_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


Waveform = npt.NDArray[np.float64]


@contextmanager
def _espeak() -> Iterator[tuple[ctypes.CDLL, int, list[bytes]]]:
    """Load the library anew and give it back: (library, its sample rate in Hz, the list that its callback fills).

    The library keeps state in static variables (even the length of an utterance depends on those spoken before it) that
    ``espeak_Terminate`` does not reset. Loading costs 4 ms and makes an utterance depend on nothing but its settings.
    """
    pieces: list[bytes] = []

    def collect(samples: Any, num_samples: int, _events: int | None) -> int:
        if samples and num_samples > 0:
            pieces.append(ctypes.string_at(samples, 2 * num_samples))
        return 0

    callback = _SYNTH_CALLBACK(collect)  # must outlive every call into the library
    data_path = str(espeakng_loader.get_data_path())
    library = ctypes.CDLL(str(espeakng_loader.get_library_path()))
    try:
        rate_hz = library.espeak_Initialize(_OUTPUT_SYNCHRONOUS, 200, os.fsencode(data_path), _INITIALIZE_DONT_EXIT)
        if rate_hz <= 0:
            raise UserError(f"espeak-ng does not find its data in {data_path!r}; install it under a shorter path.")
        library.espeak_SetSynthCallback(callback)
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # breathy voices hold noise, seeded from the clock by default
        yield library, rate_hz, pieces
    finally:
        library.espeak_Terminate()
        if sys.platform == "win32":
            _ctypes.FreeLibrary(library._handle)
        else:
            _ctypes.dlclose(library._handle)


def speak(sentence: str, voice: str, speed_words_per_minute: int, pitch: int, pitch_range: int) -> Waveform:
    """Speak a sentence.

    Args:
        sentence: Plain text; punctuation is obeyed, not spoken.
        voice: An espeak-ng voice with or without a variant, such as ``es`` or ``es-419+f2``.
        speed_words_per_minute: Speed of speech.
        pitch: 0 to 100.
        pitch_range: 0 to 100.

    Returns:
        The waveform (N,) at 16 kHz, full scale 1.

    Raises:
        UserError: If the sentence holds nothing that can be spoken.
    """
    with _espeak() as (library, rate_hz, pieces):
        library.espeak_SetVoiceByName(voice.encode())
        for parameter, value in ((_RATE, speed_words_per_minute), (_PITCH, pitch), (_RANGE, pitch_range)):
            library.espeak_SetParameter(parameter, value, 0)
        text = sentence.encode()
        size = ctypes.c_size_t(len(text) + 1)
        library.espeak_Synth(text, size, 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None)
    samples = np.frombuffer(b"".join(pieces), dtype=np.int16) / 32768.0
    if not samples.any():
        raise UserError(f"the sentence {sentence!r} gives no sound; take it out of the sentences.")
    return resample(samples, rate_hz)


def resample(waveform: Waveform, rate_hz: int) -> Waveform:
    """Bring a waveform (N,) from `rate_hz` down to 16 kHz by cutting its spectrum, which needs nothing but numpy."""
    divisor = math.gcd(rate_hz, SAMPLE_RATE)
    step_in, step_out = rate_hz // divisor, SAMPLE_RATE // divisor
    num_steps = math.ceil(
        (len(waveform) + rate_hz // 50) / step_in
    )  # 20 ms of zeros: the ends do not wrap into each other
    padded = np.pad(waveform, (0, num_steps * step_in - len(waveform)))
    num_out = num_steps * step_out
    resampled = np.fft.irfft(np.fft.rfft(padded)[: num_out // 2 + 1], num_out) * (step_out / step_in)
    return resampled[: math.ceil(len(waveform) * step_out / step_in)]


def check_voices(voices: Sequence[str]) -> None:
    """Refuse a voice that espeak-ng does not have (it would speak with another one and say nothing).

    Raises:
        UserError: If there is no voice, or one is unknown.
    """
    if not voices:
        raise UserError("no voice is given; name one at least, such as es+f2.")
    variants = Path(espeakng_loader.get_data_path()) / "voices" / "!v"
    with _espeak() as (library, _, _):
        for voice in voices:
            name, plus, variant = voice.partition("+")
            known = name and library.espeak_SetVoiceByName(name.encode()) == 0
            if not known or (plus and not (variants / variant).is_file()):
                raise UserError(
                    f"the voice {voice!r} is unknown; try es or es-419, alone or with +m1 to +m7, +f1 to +f5."
                )
