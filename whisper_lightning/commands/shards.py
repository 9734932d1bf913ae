"""Turn a CSV into a folder of shards apart from training; or subtitles beside a recording, or a folder of recordings.

whisper-lightning shards train.csv shards/train
whisper-lightning shards entrevista.srt shards/entrevista
"""

from __future__ import annotations

from pathlib import Path

from whisper_lightning.data.build import build_shards
from whisper_lightning.data.transfer import local_path
from whisper_lightning.errors import UserError
from whisper_lightning.terminal import CommandLine, read_command_line, say


def run(args: list[str]) -> int:
    """Build the shards and say what came out."""
    parser = CommandLine("shards", __doc__)
    parser.add_argument("source", type=Path, help="CSV of audio paths and sentences; subtitles; a folder")
    parser.add_argument("folder", type=Path, help="where the shards go; one that holds other shards is left as it is")
    parser.add_argument("--audio_root", type=Path, help="folder that audio paths are relative to")
    parser.add_argument("--columns", nargs=2, metavar=("AUDIO", "SENTENCE"), help="names of the two columns")
    parser.add_argument("--num_workers", type=int, help="processes; one per processor by default")
    options = read_command_line(parser, args)
    if not options.source.exists():
        raise UserError(f"{options.source}: no such file or folder")
    if options.audio_root is not None:
        local_path("--audio_root", str(options.audio_root))
    recipe = (options.source, options.folder, options.audio_root, options.columns)
    index = build_shards(*recipe, num_workers=options.num_workers)
    num_bytes = sum(shard["bytes"] for shard in index.info["shards"])
    say(f"{len(index)} utterances, {index.info['total_seconds'] / 3600:.2f} h, {num_bytes / 1e6:.1f} MB")
    rejected = index.info["rejected"]
    say(f"{sum(rejected.values())} of {index.info['num_rows']} rows rejected {rejected or ''}")
    say(f"reasons: {options.folder / 'rejected.csv'}")
    return 0
