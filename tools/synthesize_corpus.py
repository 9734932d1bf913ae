"""Speak sentences with espeak-ng into a corpus: audio files and one CSV, the same bytes however many workers.

No real speaker, no download, no licence to ask: enough to try a training, to test the readers and to time them. It is
not speech to learn a language from. The library and its voices come from the PyPI package ``espeakng-loader``.

    python -m tools.synthesize_corpus --sentences sentences.txt --out corpus --num_utterances 20000 --num_workers 2
"""

import argparse
import csv
import math
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import av
import numpy as np
import soundfile
from tqdm import tqdm

from tools.espeak import SAMPLE_RATE, Waveform, check_voices, speak
from whisper_lightning.errors import UserError
from whisper_lightning.terminal import read_command_line

OPUS_BITS_PER_SECOND = 16_000
FORMATS = ("flac", "wav", "ogg", "opus")  # ogg and opus hold the same: Opus in Ogg
VARIANTS = (*(f"m{i}" for i in range(1, 8)), *(f"f{i}" for i in range(1, 6)), "linda", "marcelo", "pablo", "steph")
DEFAULT_VOICES = tuple(f"{accent}+{variant}" for accent in ("es", "es-419") for variant in VARIANTS)


@dataclass(frozen=True)
class Variation:
    """The ranges that an utterance's settings are drawn from, each uniformly.

    Attributes:
        speed_words_per_minute: Speed of speech.
        pitch: Mean pitch, espeak-ng's scale of 0 to 100; 50 is the voice's own.
        pitch_range: How lively the intonation is, 0 (monotone) to 100; 50 is the voice's own.
        peak_dbfs: The loudest sample, in dB of full scale.
        snr_db: Speech power over noise power, in dB; half of the utterances get white noise, half pink.
        silence_seconds: Silence (with the noise) before and, drawn apart, after the speech.
    """

    speed_words_per_minute: tuple[int, int] = (130, 200)
    pitch: tuple[int, int] = (30, 70)
    pitch_range: tuple[int, int] = (30, 70)
    peak_dbfs: tuple[float, float] = (-20.0, -1.0)
    snr_db: tuple[float, float] = (15.0, 35.0)
    silence_seconds: tuple[float, float] = (0.05, 0.3)


@dataclass(frozen=True)
class Utterance:
    """What one worker needs to know to make one file; everything else follows from `seed` and `index`."""

    index: int
    seed: int
    sentence: str
    voices: tuple[str, ...]
    variation: Variation


def draw_noise(num_samples: int, pink: bool, generator: np.random.Generator) -> Waveform:
    """Draw noise (N,) of unit power: white, or pink (3 dB less per octave, as in rooms)."""
    noise = generator.standard_normal(num_samples)
    if pink:
        spectrum = np.fft.rfft(noise)
        noise = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1.0)), num_samples)
    power = float(np.mean(noise**2))
    return noise / math.sqrt(power)


def render(utterance: Utterance) -> tuple[Waveform, str]:
    """Draw the settings of an utterance and speak it.

    Returns:
        The waveform (N,) at 16 kHz, full scale 1, and the voice.
    """
    generator = np.random.default_rng([utterance.seed, utterance.index])
    ranges = utterance.variation
    voice = utterance.voices[int(generator.integers(len(utterance.voices)))]
    speed, pitch, pitch_range = (
        int(generator.integers(low, high + 1))
        for low, high in (ranges.speed_words_per_minute, ranges.pitch, ranges.pitch_range)
    )
    peak_dbfs, snr_db = generator.uniform(*ranges.peak_dbfs), generator.uniform(*ranges.snr_db)
    silences = [int(SAMPLE_RATE * generator.uniform(*ranges.silence_seconds)) for _ in range(2)]
    pink = bool(generator.integers(2))
    speech = speak(utterance.sentence, voice, speed, pitch, pitch_range)
    noise_amplitude = math.sqrt(float(np.mean(speech**2))) * 10 ** (-snr_db / 20)
    waveform = np.pad(speech, (silences[0], silences[1]))
    waveform += noise_amplitude * draw_noise(len(waveform), pink, generator)
    return waveform * (10 ** (peak_dbfs / 20) / float(np.abs(waveform).max())), voice


def write_audio(path: Path, waveform: Waveform) -> None:
    """Write a waveform (N,) at 16 kHz as 16-bit FLAC or WAV, or as Opus in Ogg, as the file's ending says."""
    samples = np.round(waveform * 32767).astype(np.int16)
    if path.suffix in (".flac", ".wav"):
        soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
        return
    # libsndfile draws an Ogg stream's serial number from the clock; "bitexact" leaves it at zero
    with av.open(str(path), "w", format="ogg", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libopus", rate=SAMPLE_RATE, layout="mono", options={"application": "voip"})
        stream.bit_rate = OPUS_BITS_PER_SECOND
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def make_file(utterance: Utterance, folder: Path, ending: str) -> tuple[str, str, str]:
    """Make one audio file in `folder`; return its row of the CSV: audio, sentence, voice."""
    path = folder / f"{utterance.index:06d}.{ending}"
    waveform, voice = render(utterance)
    write_audio(path, waveform)
    return f"{folder.name}/{path.name}", utterance.sentence, voice


def order_sentences(sentences: Sequence[str], num_utterances: int, seed: int) -> list[str]:
    """Go through the sentences as often as needed, each time in another order."""
    ordered: list[str] = []
    for turn in range(math.ceil(num_utterances / len(sentences))):
        ordered += [sentences[i] for i in np.random.default_rng([seed, turn, 1]).permutation(len(sentences))]
    return ordered[:num_utterances]


def synthesize_corpus(
    sentences: Sequence[str],
    out: Path,
    name: str = "train",
    num_utterances: int | None = None,
    seed: int = 0,
    num_workers: int = 1,
    audio_format: str = "flac",
    voices: Sequence[str] = DEFAULT_VOICES,
    variation: Variation | None = None,
    first_index: int = 0,
) -> Path:
    """Make ``out/audio/000000.flac`` … and, last of all, ``out/name.csv`` with the columns audio, sentence, voice.

    Args:
        sentences: What to say; used again, in another order, when there are fewer than utterances.
        out: The corpus's folder; files of the same names are overwritten.
        name: The CSV's name without its ending.
        num_utterances: How many to make; as many as there are sentences by default.
        seed: Another seed, other voices, speeds and noise.
        num_workers: Processes; the result does not depend on it.
        audio_format: flac, wav, or ogg or opus (both Opus in Ogg, 16 kbit/s).
        voices: What to draw the voice from, each as likely as the others.
        variation: What to draw the other settings from.
        first_index: The number of the first file; lets two CSVs share a folder.

    Returns:
        The CSV's path.

    Raises:
        UserError: If there is no sentence or utterance, a silent sentence, an unknown voice or format.
    """
    num_utterances = len(sentences) if num_utterances is None else num_utterances
    if not sentences or num_utterances < 1:
        raise UserError(f"{len(sentences)} sentences and {num_utterances} utterances make no corpus; give 1 or more.")
    if Path(name).name != name:
        raise UserError(f"the name {name!r} is not a file's name; the folder is another argument.")
    if audio_format not in FORMATS:
        raise UserError(f"the format {audio_format!r} is unknown; choose one of {', '.join(FORMATS)}.")
    if min(seed, first_index) < 0:
        raise UserError(f"the seed {seed} or the first index {first_index} is negative; choose 0 or more.")
    check_voices(voices)
    table, folder = out / f"{name}.csv", out / "audio"
    folder.mkdir(parents=True, exist_ok=True)
    table.unlink(missing_ok=True)  # an interrupted run leaves no CSV, rather than one that does not fit its audio
    utterances = [
        Utterance(first_index + i, seed, sentence, tuple(voices), variation or Variation())
        for i, sentence in enumerate(order_sentences(sentences, num_utterances, seed))
    ]
    make = partial(make_file, folder=folder, ending=audio_format)
    with ProcessPoolExecutor(max(1, num_workers), multiprocessing.get_context("spawn")) as pool:
        made = pool.map(make, utterances, chunksize=8) if num_workers > 1 else map(make, utterances)
        rows = list(
            tqdm(made, total=num_utterances, unit="utterance", disable=None)
        )  # no bar where there is no terminal
    unfinished = table.with_suffix(".csv.part")
    with unfinished.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("audio", "sentence", "voice"), *rows])
    unfinished.replace(table)
    return table


def read_sentences(path: Path) -> list[str]:
    """Read one sentence per line, without the empty lines.

    Raises:
        UserError: If the file cannot be read as UTF-8 text or holds no sentence.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the sentences {str(path)!r} cannot be read as UTF-8 text: {error}") from error
    sentences = [line.strip() for line in lines if line.strip()]
    if not sentences:
        raise UserError(f"the file {str(path)!r} holds no sentence; write one per line.")
    return sentences


def main(args: list[str] | None = None) -> None:
    """Make the corpus that the command line asks for."""
    parser = argparse.ArgumentParser(description="Speak sentences with espeak-ng: audio files and one CSV.")
    parser.add_argument("--sentences", type=Path, required=True, help="text file, one sentence per line")
    parser.add_argument("--out", type=Path, required=True, help="folder of the corpus; made if need be")
    parser.add_argument("--name", default="train", help="name of the CSV without its ending")
    parser.add_argument("--num_utterances", type=int, help="as many as there are sentences by default")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other voices, speeds and noise")
    parser.add_argument("--num_workers", type=int, default=1, help="processes; the result does not depend on it")
    parser.add_argument("--format", choices=FORMATS, default="flac", help="ogg and opus are both Opus in Ogg")
    parser.add_argument("--voices", nargs="+", default=DEFAULT_VOICES, metavar="VOICE", help="such as es es-419+f2")
    given = read_command_line(parser, args)
    try:
        table = synthesize_corpus(
            read_sentences(given.sentences),
            given.out,
            name=given.name,
            num_utterances=given.num_utterances,
            seed=given.seed,
            num_workers=given.num_workers,
            audio_format=given.format,
            voices=given.voices,
        )
    except (UserError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"wrote {table}")


if __name__ == "__main__":
    main()
