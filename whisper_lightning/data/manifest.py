"""CSV files as people have them, to checked rows."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from whisper_lightning.errors import UserError

AUDIO_NAMES = ("audio", "path", "file", "filename", "file_name", "wav", "audio_path", "audio_filepath", "audio_file")
SENTENCE_NAMES = ("sentence", "text", "transcript", "transcription", "transcripcion", "transcripción", "frase", "texto")
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aac", ".aiff", ".aif", ".webm", ".mp4")


class Row(NamedTuple):
    """One row of a CSV.

    Attributes:
        row: Row in a spreadsheet: the header is 1, the first utterance 2.
        audio: Audio path as written.
        path: The path it means.
        sentence: Transcript, composed (NFC) and stripped; "" where it is empty or not needed.
        extra: Further columns.
        problem: What is wrong with the row itself; "" if nothing.
    """

    row: int
    audio: str
    path: str
    sentence: str
    extra: dict[str, str]
    problem: str = ""


def read_manifest(
    path: Path,
    audio_root: Path | None = None,
    columns: Sequence[str] | None = None,
    require_sentence: bool = True,
) -> Iterator[Row]:
    """Read the rows of a CSV one by one, whatever its size.

    The separator is a comma, semicolon or tab; the encoding UTF-8 with or without a mark. Columns are found by name,
    or by position where a file has two columns of other names or no header.

    Args:
        path: The CSV; Common Voice's TSV files as they are.
        audio_root: Folder that audio paths are relative to; the CSV's own by default.
        columns: Names of the audio and the sentence column.
        require_sentence: False when transcripts are not needed.

    Raises:
        UserError: The file cannot be read as a table of audio and sentences.
    """
    root = (path.parent if audio_root is None else audio_root).resolve()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first_line = file.readline()
            if not first_line.strip():
                raise UserError(f"{path}: the file is empty")
            file.seek(0)
            # Common Voice's TSV has unpaired quotes; with tabs nothing needs quoting.
            separator = max("\t;,", key=first_line.count)
            quotes: dict[str, Any] = {"quoting": csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL}
            records = csv.reader(file, delimiter=separator, **quotes)
            header = [name.strip() for name in next(records)]
            headless = any(name.lower().endswith(AUDIO_SUFFIXES) for name in header)
            if headless:
                header = ["audio", "sentence", *(f"column{i}" for i in range(3, len(header) + 1))][: len(header)]
                file.seek(0)
                records = csv.reader(file, delimiter=separator, **quotes)
            audio, sentence = _find_columns(path, header, columns, require_sentence)
            for row, record in enumerate(records, start=1 if headless else 2):
                if record:
                    yield _row(row, record, header, audio, sentence, root)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; save it as 'CSV UTF-8'") from None
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV file ({error})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _find_columns(
    path: Path, header: list[str], columns: Sequence[str] | None, require_sentence: bool
) -> tuple[int, int | None]:
    """Give the positions of the audio and the sentence column."""
    lowered = [name.lower() for name in header]
    if columns is not None:
        if len(columns) != 2 or any(name not in header for name in columns):
            raise UserError(f"data.columns: {list(columns)} are not two columns of {path}, which has {header}")
        return header.index(columns[0]), header.index(columns[1])
    audio = next((lowered.index(name) for name in AUDIO_NAMES if name in lowered), None)
    sentence = next((lowered.index(name) for name in SENTENCE_NAMES if name in lowered), None)
    if len(header) == 2 and (audio is None or sentence is None):
        return 0, 1
    if audio is None and not require_sentence and len(header) == 1:
        audio = 0
    if audio is None or (sentence is None and require_sentence):
        what = "audio" if audio is None else "sentence"
        raise UserError(f"{path}: no column of {header} is known as the {what}; name both in data.columns")
    return audio, sentence


def _row(number: int, record: list[str], header: list[str], audio: int, sentence: int | None, root: Path) -> Row:
    if len(record) != len(header):
        problem = f"{len(record)} fields where the header has {len(header)}"
        return Row(number, record[audio] if audio < len(record) else "", "", "", {}, problem)
    text = "" if sentence is None else unicodedata.normalize("NFC", record[sentence]).strip()
    extra = {header[i]: value for i, value in enumerate(record) if i not in (audio, sentence)}
    written = record[audio].strip()
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", written) or "\0" in written:
        return Row(number, written, "", text, extra, "not a local file")
    return Row(number, written, str(_resolve(written, root)), text, extra)


def _resolve(written: str, root: Path) -> Path:
    """Join a path to its root; backslashes separate folders where that finds the file."""
    path = root / written
    if "\\" in written and not path.exists():
        path = root / written.replace("\\", "/")
    return path
