"""Transcribe audio files, or folders of them, of any length, with faster-whisper.

whisper-lightning transcribe runs/first recording.mp3 interviews/ --format srt,json
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from whisper_lightning.audio.decoders import AudioError
from whisper_lightning.audio.read import find_audio
from whisper_lightning.errors import UserError
from whisper_lightning.terminal import CommandLine, read_command_line, say, show
from whisper_lightning.transcription.hearing import BEAM_SIZE
from whisper_lightning.transcription.recognizer import open_recognizer
from whisper_lightning.transcription.recordings import stems, transcribe
from whisper_lightning.transcription.subtitles import FORMATS, CueLimits, Transcript, write_transcript


def run(args: list[str]) -> int:
    """Write the transcripts; return 1 if a file had to be skipped."""
    parser = CommandLine("transcribe", __doc__)
    parser.add_argument("model", help="run folder, last.ckpt, folder in Hugging Face layout, or hub name")
    parser.add_argument("audio", nargs="+", help="audio files, and folders that are searched for them; - for stdin")
    parser.add_argument("--format", default="txt,srt", help=f"of {','.join(FORMATS)}; txt,srt by default")
    parser.add_argument("--out", type=Path, default=Path("transcripts"), help="where they go; transcripts by default")
    parser.add_argument("--language", help="spoken language, or auto; by default the one it was trained for")
    parser.add_argument("--compute_type", default="default", help="int8, float32, ...; as fast as the device can")
    cues = parser.add_argument_group("subtitles")
    cues.add_argument("--max_line_length", type=int, default=42, help="characters")
    cues.add_argument("--max_lines", type=int, default=2)
    cues.add_argument("--max_seconds", type=float, default=7.0, help="that a cue is shown")
    heard = parser.add_argument_group("faster-whisper's own, by their names there")
    heard.add_argument("--sequential", action="store_true", help="one window after the other instead of batches")
    heard.add_argument("--batch_size", type=int, default=0, help="windows that are heard at once; 0 for 8")
    heard.add_argument("--task", choices=["transcribe", "translate"], default="transcribe", help="translate to English")
    heard.add_argument("--beam_size", type=int, default=BEAM_SIZE, help=f"{BEAM_SIZE} by default")
    heard.add_argument("--temperature", type=float, nargs="+", default=[0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    heard.add_argument("--compression_ratio_threshold", type=float, default=2.4)
    heard.add_argument("--log_prob_threshold", type=float, default=-1.0)
    heard.add_argument("--no_speech_threshold", type=float, default=0.6)
    heard.add_argument("--no_condition_on_previous_text", action="store_false", dest="condition_on_previous_text")
    heard.add_argument("--no_vad_filter", action="store_false", dest="vad_filter", help="sequential")
    heard.add_argument("--initial_prompt", help="text that could have come before")
    heard.add_argument("--hotwords", help="words to expect")
    options = read_command_line(parser, args)
    named = {action.dest for action in heard._group_actions} - {"sequential", "batch_size"}
    with TemporaryDirectory() as scratch:
        return _transcribe(options, {name: getattr(options, name) for name in named}, Path(scratch))


def _transcribe(options: argparse.Namespace, heard: dict[str, Any], scratch: Path) -> int:
    if importlib.util.find_spec("faster_whisper") is None:
        raise UserError("the package faster_whisper is not installed; pip install 'whisper-lightning[export]'")
    formats = list(dict.fromkeys(options.format.split(",")))
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise UserError(f"--format: there is no {unknown[0]!r}; choose from {','.join(FORMATS)}")
    if options.batch_size < 0:
        raise UserError(f"--batch_size: {options.batch_size}; 0, or how many")
    for name in ("beam_size", "max_line_length", "max_lines", "max_seconds"):
        if getattr(options, name) <= 0:
            raise UserError(f"--{name}: {getattr(options, name)}; above 0")
    limits = CueLimits(options.max_line_length, options.max_lines, options.max_seconds)
    paths = find_audio([_stdin(scratch) if place == "-" else Path(place) for place in options.audio])
    places = dict(zip(paths, stems(paths), strict=True))
    recognizer = open_recognizer(options.model, language=options.language, compute_type=options.compute_type)
    done: list[Transcript] = []
    skipped = 0
    results = transcribe(recognizer, paths, sequential=options.sequential, batch_size=options.batch_size, **heard)
    with closing(results):  # its progress bar ends before an error is printed
        for path, result in results:
            if isinstance(result, AudioError):
                skipped += 1
                tqdm.write(show(f"skipped: {path}: {result.reason} ({result})"), file=sys.stderr)
            else:
                done.append(result)
                write_transcript(result, options.out / places[path], formats, limits)
    minutes = sum(transcript.seconds for transcript in done) / 60
    say(f"{len(done)} recordings, {minutes:.1f} min: {options.out}")
    wordless = sum(not transcript.words for transcript in done)
    if wordless:
        say(f"{wordless} of them without a word")
    if skipped:
        say(f"{skipped} skipped", error=True)
    return 1 if skipped else 0


def _stdin(scratch: Path) -> Path:
    """Keep what comes in as a file: formats are told by what is where in it."""
    path = scratch / "stdin"
    with path.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return path
