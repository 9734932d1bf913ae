"""CSV files as people have them, to checked rows."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from whisper_lightning.addresses import REMOTE
from whisper_lightning.data.table import Record, names_audio, read_table
from whisper_lightning.errors import UserError

AUDIO_NAMES = ("audio", "path", "file", "filename", "file_name", "wav", "audio_path", "audio_filepath", "audio_file")
SENTENCE_NAMES = ("sentence", "text", "transcript", "transcription", "transcripcion", "transcripción", "frase", "texto")
START, END = "start", "end"
"""Columns that together say which stretch of a recording is meant."""
READING = 3
"""Raised when the same CSV and audio give other utterances than before: their shards are built again then."""
_JOINERS = "\u200c\u200d"
"""Zero-width joiner and non-joiner: invisible in Spanish, part of the spelling of Persian and of Indian languages."""


class Row(NamedTuple):
    """One row of a CSV.

    Attributes:
        row: Row in a spreadsheet: the header is 1, the first utterance 2.
        audio: Audio path as written.
        path: The path it means.
        sentence: Transcript as `clean_sentence` gives it; "" where it is empty or not needed.
        extra: Further columns.
        start: Where in the file it begins, in seconds.
        end: Where it ends; infinite for the end of the file.
        reason: Why the row itself cannot be used, in the few words that reports count by; "" if it can.
        problem: The same in full.
    """

    row: int
    audio: str
    path: str
    sentence: str
    extra: dict[str, str]
    start: float = 0.0
    end: float = math.inf
    reason: str = ""
    problem: str = ""


def read_manifest(
    path: Path,
    audio_root: Path | None = None,
    columns: Sequence[str] | None = None,
    require_sentence: bool = True,
) -> Iterator[Row]:
    """Read the rows of a CSV one by one, whatever its size; see `read_table` for what is read as one.

    Columns are found by name, or by position where a file has two columns of other names or no header. Rows without
    any content are skipped. Where there are columns `start` and `end`, a row is that stretch of its recording.

    Args:
        path: The CSV; Common Voice's TSV files as they are.
        audio_root: Folder that audio paths are relative to; the CSV's own by default.
        columns: Names of the audio and the sentence column.
        require_sentence: False when transcripts are not needed.

    Raises:
        UserError: The file cannot be read as a table of audio and sentences.
    """
    root = (path.parent if audio_root is None else audio_root).resolve()
    records = read_table(path)
    first = next(records, None)
    if first is None or not any(field.strip() for field in first.fields):
        raise UserError(f"{path}: the file is empty")
    if first.problem:
        raise UserError(f"{path}: the first row, which should name the columns, cannot be read: {first.problem}")
    if names_audio(first.fields):
        audio, sentence = _find_columns_by_content(path, first.fields, require_sentence)
        header = [f"column{i}" for i in range(1, len(first.fields) + 1)]
        records = chain([first], records)
    else:
        header = [unicodedata.normalize("NFC", name).strip() for name in first.fields]
        audio, sentence = _find_columns(path, header, columns, require_sentence)
    for record in records:
        if any(field.strip() for field in record.fields):
            yield _row(record, header, audio, sentence, root)


def _find_columns_by_content(path: Path, first_row: list[str], require_sentence: bool) -> tuple[int, int | None]:
    """Return the positions of the audio and the sentence column of a file without a header."""
    is_audio = [names_audio([field]) for field in first_row]
    if sum(is_audio) == 1 and (len(first_row) == 2 or not require_sentence):
        return is_audio.index(True), is_audio.index(False) if len(first_row) == 2 else None
    raise UserError(
        f"{path}: it has no header, and its columns cannot be told apart; the first row is {_shown(first_row)}. "
        "Name them in a row above, such as audio,sentence"
    )


def _find_columns(
    path: Path, header: list[str], columns: Sequence[str] | None, require_sentence: bool
) -> tuple[int, int | None]:
    """Return the positions of the audio and the sentence column."""
    lowered = [name.lower() for name in header]
    twice = next((name for name, count in Counter(lowered).items() if name and count > 1), None)
    if twice is not None:
        raise UserError(f"{path}: two columns are named {twice!r}; give one of them another name")
    if columns is not None:
        wanted = list(columns[:1] if not require_sentence and columns[-1] not in header else columns)
        if len(columns) != 2 or any(name not in header for name in wanted):
            raise UserError(f"data.columns: {list(columns)} are not two columns of {path}, which has {_shown(header)}")
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
        raise UserError(f"{path}: no column of {_shown(header)} is known as the {what}; name both in data.columns")
    return audio, sentence


def _shown(fields: list[str]) -> str:
    """Show a row in an error: the beginnings of its first fields."""
    shown = [field if len(field) <= 40 else f"{field[:40]}…" for field in fields[:10]]
    return f"{shown}" + (f" and {len(fields) - 10} more" if len(fields) > 10 else "")


def _row(record: Record, header: list[str], audio: int, sentence: int | None, root: Path) -> Row:
    fields = record.fields
    written = fields[audio].strip() if audio < len(fields) else ""
    problem = record.problem
    if not problem and len(fields) != len(header):
        problem = f"{len(fields)} fields where the header has {len(header)}"
    if problem:
        return Row(record.row, written, "", "", {}, reason="broken row", problem=problem)
    text = "" if sentence is None else clean_sentence(fields[sentence])
    extra = {header[i]: value for i, value in enumerate(fields) if i not in (audio, sentence)}
    if REMOTE.match(written) or "\0" in written:
        return Row(record.row, written, "", text, extra, reason="not a local file", problem="not a local file")
    if control := _control_character(written + text):
        problem = f"a line break or another control character (U+{ord(control):04X}) in the path or the sentence"
        return Row(record.row, written, "", text, extra, reason="broken row", problem=problem)
    if token := special_token(text):
        problem = f"the sentence holds {token}, which is no text but a token of Whisper's"
        return Row(record.row, written, "", text, extra, reason="special token", problem=problem)
    start, end = _stretch(extra)
    if not 0 <= start < end:
        problem = f"from {extra[START]!r} to {extra[END]!r} is no stretch of time; write seconds, or h:mm:ss"
        return Row(record.row, written, "", text, extra, reason="broken row", problem=problem)
    return Row(record.row, written, _resolve(written, root), text, extra, start, end)


def _stretch(extra: Mapping[str, str]) -> tuple[float, float]:
    """Return the seconds between which a row is; what is no time is no number."""
    if START not in extra or END not in extra:
        return 0.0, math.inf
    start, end = extra[START].strip(), extra[END].strip()
    return seconds(start) if start else 0.0, seconds(end) if end else math.inf


def seconds(text: str) -> float:
    """Read seconds (`75.5`), or hours, minutes and seconds (`1:15.5`, `00:01:15,500`); NaN where it is no time."""
    found = re.fullmatch(r"(?:(?:([0-9]+):)?([0-9]+):)?([0-9]+(?:[.,][0-9]*)?)", text)
    if found is None:
        return math.nan
    hours, minutes, rest = found.groups()
    return 3600 * int(hours or 0) + 60 * int(minutes or 0) + float(rest.replace(",", "."))


def clean_sentence(text: str) -> str:
    """Return a sentence as it is learnt: composed (NFC), stripped, without what is not seen and not said.

    Format characters (category Cf: zero-width spaces, soft hyphens, marks of direction) are left out, but for joiners
    after a letter of a script without capitals. Where nothing remains that can be seen, the sentence is "".
    """
    if text.isascii():
        return text.strip()
    kept: list[str] = []
    for c in text:
        if unicodedata.category(c) != "Cf" or (c in _JOINERS and kept and _is_joined(kept[-1])):
            kept.append(c)
    cleaned = unicodedata.normalize("NFC", "".join(kept)).strip()
    return cleaned if any(unicodedata.category(c)[0] in "LNPS" for c in cleaned) else ""


def special_token(sentence: str) -> str:
    """Return the first part of a sentence that Whisper's tokenizers take for a special token; "" if there is none.

    By the form that all have, time stamps and languages too: shards may serve several checkpoints.
    """
    found = re.search(r"<\|[^|<>]{0,40}\|>", sentence)
    return found[0] if found else ""


def _is_joined(letter: str) -> bool:
    return unicodedata.category(letter) in ("Lo", "Mn", "Mc")


def _control_character(text: str) -> str:
    if text.isprintable():
        return ""
    return next((c for c in text if unicodedata.category(c) in ("Cc", "Zl", "Zp") and c != "\t"), "")


def _resolve(written: str, root: Path) -> str:
    """Join a path to its root, and find the file whose name has the same letters.

    Backslashes may separate folders, and letters with accents be composed (NFC) or not (NFD, as macOS writes them).
    """
    path = root / written
    if (written.isascii() and "\\" not in written) or _exists(path):
        return str(path)
    for separated in dict.fromkeys((written, written.replace("\\", "/"))):
        found = root
        for part in Path(separated).parts:
            spellings = (found / part, *(found / unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
            found = next((each for each in spellings if _exists(each)), found / part)
        if _exists(found):
            return str(found)
    return str(path)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # such as a name that is too long
        return False
