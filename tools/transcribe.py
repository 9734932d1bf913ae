"""Transcribe audio files, or folders of them, of any length.

python tools/transcribe.py runs/quickstart recording.mp3 interviews/ --format srt,json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from whisper_lightning.errors import UserError
from whisper_lightning.model.trained import open_model
from whisper_lightning.terminal import read_command_line, say, show
from whisper_lightning.transcribe import (
    FORMATS,
    Skipped,
    Transcript,
    find_audio,
    relative_names,
    transcribe,
    write_transcript,
)


def main(args: list[str] | None = None) -> int:
    """Write the transcripts; 1 if a file had to be skipped, 2 after a user's mistake."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="run folder, last.ckpt, folder in Hugging Face layout, or hub name")
    parser.add_argument("audio", type=Path, nargs="+", help="audio files, and folders that are searched for them")
    parser.add_argument("--format", default="txt,srt", help=f"of {','.join(FORMATS)}; txt,srt by default")
    parser.add_argument("--out", type=Path, default=Path("transcripts"), help="where they go; transcripts by default")
    parser.add_argument("--language", help="spoken language; by default the one that the model was trained for")
    parser.add_argument("--batch_size", type=int, default=16, help="windows that are decoded at once")
    options = read_command_line(parser, args)
    try:
        return _transcribe(options)
    except UserError as error:
        say(f"error: {error}", error=True)
        return 2


def _transcribe(options: argparse.Namespace) -> int:
    formats = list(dict.fromkeys(options.format.split(",")))
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise UserError(f"--format: there is no {unknown[0]!r}; choose from {','.join(FORMATS)}")
    if options.batch_size < 1:
        raise UserError(f"--batch_size: {options.batch_size}; at least 1")
    paths = find_audio(options.audio)
    stems = dict(zip(paths, relative_names(paths), strict=True))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module = open_model(options.model, language=options.language).to(device)
    done: list[Transcript] = []
    skipped: list[Skipped] = []
    for result in transcribe(module, paths, options.batch_size):
        if isinstance(result, Skipped):
            skipped.append(result)
            tqdm.write(show(f"skipped: {result.path}: {result.error.reason} ({result.error})"), file=sys.stderr)
        else:
            done.append(result)
            write_transcript(result, options.out / stems[result.path], formats)
    segments = [segment for transcript in done for segment in transcript.segments]
    minutes = sum(transcript.seconds for transcript in done) / 60
    say(f"{len(done)} recordings, {minutes:.1f} min, {len(segments)} segments: {options.out}")
    wordless = sum(not transcript.segments for transcript in done)
    if wordless:
        say(f"{wordless} of them without a word")
    at_limit = sum(segment.at_limit for segment in segments)
    if at_limit:
        say(f"{at_limit} segments are as long as the decoder may write: ends may be missing")
    if skipped:
        say(f"{len(skipped)} skipped", error=True)
    return 1 if skipped else 0


if __name__ == "__main__":
    sys.exit(main())
