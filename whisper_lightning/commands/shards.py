"""Turn a CSV into a folder of shards apart from training; or subtitles beside a recording, or a folder of recordings.

whisper-lightning shards train.csv shards/train
whisper-lightning shards entrevista.mp3 entrevista.srt shards/entrevista

Without a folder they go to where fit looks for them: beside the CSV, the subtitles or the folder of recordings.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from whisper_lightning.data.build import build_shards
from whisper_lightning.data.generations import open_csv
from whisper_lightning.data.subtitles import SUBTITLE_SUFFIXES, find_recording
from whisper_lightning.data.transfer import local_path
from whisper_lightning.errors import UserError
from whisper_lightning.terminal import CommandLine, read_command_line, say


def run(args: list[str]) -> int:
    """Build the shards and say what came out."""
    parser = CommandLine("shards", __doc__)
    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="CSV of audio paths and sentences, subtitles (the recording may be named before them), or a folder of "
        "recordings; then where the shards go: a folder that holds other shards is left as it is",
    )
    parser.add_argument("--audio_root", type=Path, help="folder that audio paths are relative to")
    parser.add_argument("--columns", nargs=2, metavar=("AUDIO", "SENTENCE"), help="names of the two columns")
    parser.add_argument("--num_workers", type=int, help="processes; one per processor by default")
    options = read_command_line(parser, args)
    source, folder = _source_and_folder(options.paths)
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    if options.audio_root is not None:
        local_path("--audio_root", str(options.audio_root))
    if folder is None:
        index = open_csv(source, options.audio_root, options.columns, num_workers=options.num_workers)
    else:
        index = build_shards(source, folder, options.audio_root, options.columns, num_workers=options.num_workers)
    num_bytes = sum(shard["bytes"] for shard in index.info["shards"])
    say(f"{len(index)} utterances, {index.info['total_seconds'] / 3600:.2f} h, {num_bytes / 1e6:.1f} MB")
    rejected = index.info["rejected"]
    say(f"{sum(rejected.values())} of {index.info['num_rows']} rows rejected {rejected or ''}")
    say(f"shards, and reasons in rejected.csv: {index.folder}")
    return 0


def _source_and_folder(paths: Sequence[Path]) -> tuple[Path, Path | None]:
    """Tell apart what was typed: a recording, which only says whose the subtitles are; a source; where shards go."""
    recording, *others = paths
    if others and others[0].suffix.lower() in SUBTITLE_SUFFIXES:
        found = find_recording(others[0])
        if found.resolve() != recording.resolve():
            raise UserError(
                f"{others[0]}: these are the subtitles of {found.name}, not of {recording}; two files that belong "
                "together have one name, such as talk.mp3 and talk.srt"
            )
        paths = others
    if len(paths) > 2:
        raise UserError(f"{paths[2]}: one source at a time, and one folder")
    return paths[0], paths[1] if len(paths) == 2 else None
