"""CSV files as people have them, to checked rows."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from whisper_lightning.audio import AUDIO_SUFFIXES, REMOTE
from whisper_lightning.errors import UserError

AUDIO_NAMES = ("audio", "path", "file", "filename", "file_name", "wav", "audio_path", "audio_filepath", "audio_file")
SENTENCE_NAMES = ("sentence", "text", "transcript", "transcription", "transcripcion", "transcripción", "frase", "texto")


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
    or by position where a file has two columns of other names or no header. Rows without any content are skipped.

    Args:
        path: The CSV; Common Voice's TSV files as they are.
        audio_root: Folder that audio paths are relative to; the CSV's own by default.
        columns: Names of the audio and the sentence column.
        require_sentence: False when transcripts are not needed.

    Raises:
        UserError: The file cannot be read as a table of audio and sentences.
    """
    root = (path.parent if audio_root is None else audio_root).resolve()
    row = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first_line = file.readline()
            if not first_line.strip():
                raise UserError(f"{path}: the file is empty")
            file.seek(0)
            # The first one: in a file without a header, the sentence may have more commas than there are semicolons.
            found = re.search(r"[\t;,]", re.sub(r'"[^"]*"', "", first_line))
            separator = found[0] if found else ","
            # Common Voice's TSV has unpaired quotes; with tabs nothing needs quoting.
            quotes: dict[str, Any] = {"quoting": csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL}
            records = csv.reader(file, delimiter=separator, **quotes)
            header = [unicodedata.normalize("NFC", name).strip() for name in next(records)]
            headless = any(name.lower().endswith(AUDIO_SUFFIXES) for name in header)
            if headless:
                header = _name_columns(header)
                file.seek(0)
                records = csv.reader(file, delimiter=separator, **quotes)
            audio, sentence = _find_columns(path, header, None if headless else columns, require_sentence)
            for row, record in enumerate(records, start=1 if headless else 2):
                if any(field.strip() for field in record):
                    yield _row(row, record, header, audio, sentence, root)
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 after row {row}; save it as 'CSV UTF-8'") from None
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV file ({error})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _name_columns(first_row: list[str]) -> list[str]:
    """Name the columns of a file without a header: what looks like an audio file, then the first of the others."""
    is_audio = [field.lower().endswith(AUDIO_SUFFIXES) for field in first_row]
    names = [f"column{i}" for i in range(1, len(first_row) + 1)]
    names[is_audio.index(True)] = "audio"
    if False in is_audio:
        names[is_audio.index(False)] = "sentence"
    return names


def _find_columns(
    path: Path, header: list[str], columns: Sequence[str] | None, require_sentence: bool
) -> tuple[int, int | None]:
    """Give the positions of the audio and the sentence column."""
    lowered = [name.lower() for name in header]
    if columns is not None:
        wanted = list(columns[:1] if not require_sentence and columns[-1] not in header else columns)
        if len(columns) != 2 or any(name not in header for name in wanted):
            raise UserError(f"data.columns: {list(columns)} are not two columns of {path}, which has {header}")
        return header.index(wanted[0]), header.index(wanted[1]) if len(wanted) == 2 else None
    audio = next((lowered.index(name) for name in AUDIO_NAMES if name in lowered), None)
    sentence = next((lowered.index(name) for name in SENTENCE_NAMES if name in lowered), None)
    if len(header) == 2 and (audio is None or sentence is None):
        audio = audio if audio is not None else 0 if sentence is None else 1 - sentence
        return audio, 1 - audio
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
    if REMOTE.match(written) or "\0" in written:
        return Row(number, written, "", text, extra, "not a local file")
    return Row(number, written, str(_resolve(written, root)), text, extra)


def _resolve(written: str, root: Path) -> Path:
    """Join a path to its root; backslashes separate folders where that finds the file."""
    path = root / written
    if "\\" in written and not path.exists():
        path = root / written.replace("\\", "/")
    return path
