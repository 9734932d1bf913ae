"""What utterances are read from: a table, subtitles beside their recording, or a folder of recordings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from whisper_lightning.audio.read import find_audio
from whisper_lightning.data.manifest import Row, read_manifest
from whisper_lightning.data.subtitles import SUBTITLE_SUFFIXES, find_recording, find_subtitles, read_subtitles
from whisper_lightning.errors import UserError


def read_source(
    source: Path,
    audio_root: Path | None = None,
    columns: Sequence[str] | None = None,
    require_sentence: bool = True,
) -> Iterator[Row]:
    """Read the rows of what a user names.

    Args:
        source: A table (see `read_manifest`); subtitles with their recording beside them; or a folder of recordings,
            at any depth, whose subtitles stand beside them.
        audio_root: Of a table.
        columns: Of a table.
        require_sentence: False when transcripts are not needed.

    Raises:
        UserError: It cannot be read, or has no sentences.
    """
    if _is_folder(source):
        yield from _read_folder(source, require_sentence)
    elif source.suffix.lower() in SUBTITLE_SUFFIXES:
        audio = find_recording(source)
        yield from read_subtitles(source, audio, audio.name)
    else:
        yield from read_manifest(source, audio_root, columns, require_sentence)


def is_table(source: Path) -> bool:
    """Say whether a source is a table, or will be taken for one."""
    return not _is_folder(source) and source.suffix.lower() not in SUBTITLE_SUFFIXES


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # who reads it as a table says why
        return False


def _read_folder(folder: Path, require_sentence: bool) -> Iterator[Row]:
    recordings = find_audio([folder])
    found = find_subtitles(recordings)
    if require_sentence and not any(found):
        raise UserError(
            f"{folder}: no sentences; give a CSV of audio paths and sentences, or put subtitles beside the "
            f"recordings ({recordings[0].stem}.srt)"
        )
    root, number = folder.resolve(), 1
    for audio, subtitles in zip(recordings, found, strict=True):
        written = audio.relative_to(root).as_posix()
        if subtitles is None:
            yield Row(number, written, str(audio), "", {})
            number += 1
            continue
        last = number
        for row in read_subtitles(subtitles, audio, written, number):
            yield row
            last = row.row
        number = last + 1


def identity(source: Path) -> Iterator[bytes]:
    """Give what changes when a source has other rows, in blocks; audio is looked at where shards are opened.

    Raises:
        UserError: It cannot be read.
    """
    files = [source]
    if _is_folder(source):
        recordings = find_audio([source])
        yield "\n".join(audio.relative_to(source.resolve()).as_posix() for audio in recordings).encode()
        files = list(filter(None, find_subtitles(recordings)))
    elif source.suffix.lower() in SUBTITLE_SUFFIXES:
        yield find_recording(source).name.encode()
    for path in files:
        try:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    yield block
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
