"""Text files of separated values, as spreadsheets, programs and people write them, to records."""

from __future__ import annotations

import codecs
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO

from whisper_lightning.audio.constants import AUDIO_SUFFIXES
from whisper_lightning.errors import UserError

MAX_ROW_CHARACTERS = 131_072
"""A longer row is no utterance; nothing longer is held in memory."""
MAX_ROW_LINES = 100
"""How far the end of a quoted field is looked for."""
_WRONG_BYTE = re.compile("[\udc80-\udcff]")
"""What `surrogateescape` makes of bytes that are not in the encoding."""
_IN_EXCEL = "in Excel save it as 'CSV UTF-8'"
_REMEDIES = dict.fromkeys((".srt", ".vtt"), "save it as UTF-8, in any editor")
_EXCEL_SEPARATOR = re.compile(r'"?sep=([\t;,|])?"?[\t;,|]*', re.IGNORECASE)


class Record(NamedTuple):
    """One record of a table.

    Attributes:
        row: Row in a spreadsheet, from 1.
        fields: Its fields, without their quotes.
        problem: Why it cannot be relied on; "" if it can.
    """

    row: int
    fields: list[str]
    problem: str = ""


def names_audio(fields: list[str]) -> bool:
    """Say whether one of the fields looks like the name of an audio file."""
    return any(field.strip().lower().endswith(AUDIO_SUFFIXES) for field in fields)


def read_table(path: Path) -> Iterator[Record]:
    """Read a table record by record, whatever its size.

    The separator is a comma, semicolon or tab (the first one in the file), or what Excel's `sep=` line says; the
    encoding UTF-8, or UTF-16 where its mark or its zeros prove it. A field is quoted where it begins with a quote and
    the quote that ends it stands before a separator or the end of the line; otherwise quotes are characters. A quote
    that is not closed costs its own row alone: the lines after it are read as if it were not there.

    Raises:
        UserError: The file cannot be opened, or is in another encoding.
    """
    with _opened(path) as lines:
        for number, (fields, problem) in enumerate(_records(lines), start=1):
            yield Record(number, fields, problem)


def read_lines(path: Path) -> Iterator[str]:
    """Read a text file line by line, without the lines' ends; in the encodings of `read_table`.

    Raises:
        UserError: The file cannot be opened, or is in another encoding.
    """
    with _opened(path) as lines:
        yield from lines


@contextmanager
def _opened(path: Path) -> Iterator[_Lines]:
    """Open a text file, and say in one line why it cannot be read."""
    encoding, lines = "", None
    try:
        encoding = _encoding(path)
        with path.open(encoding=encoding, errors="surrogateescape", newline="") as file:
            lines = _Lines(file)
            yield lines
    except _WrongByteError as error:
        character = bytes([error.byte]).decode("cp1252", "backslashreplace")
        raise UserError(
            f"{path}: not {encoding.upper().removesuffix('-SIG')} in line {error.line}: byte 0x{error.byte:02X}, "
            f"which is '{character}' in Windows-1252; {_REMEDIES.get(path.suffix.lower(), _IN_EXCEL)}"
        ) from None
    except UnicodeDecodeError:
        count = lines.count if lines else 0
        raise UserError(
            f"{path}: not {encoding.upper()} after line {count}; {_REMEDIES.get(path.suffix.lower(), _IN_EXCEL)}"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(2)
    if head in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    if b"\0" in head:  # a letter of ASCII in two bytes
        return "utf-16-be" if head[0] == 0 else "utf-16-le"
    return "utf-8-sig"


class _WrongByteError(ValueError):
    def __init__(self, line: int, byte: int) -> None:
        super().__init__(line, byte)
        self.line, self.byte = line, byte


class _Lines:
    """Lines without their ends, of which some can be looked at before it is their turn."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._ahead: deque[str] = deque()
        self.count = 0

    def __iter__(self) -> Iterator[str]:
        while (line := self._ahead.popleft() if self._ahead else self._read()) is not None:
            yield line

    def ahead(self) -> Iterator[str]:
        """Return the lines that come next and leave them where they are."""
        for i in range(MAX_ROW_LINES):
            if i == len(self._ahead):
                if (line := self._read()) is None:
                    return
                self._ahead.append(line)
            yield self._ahead[i]

    def skip(self, count: int) -> None:
        """Leave out lines that have been looked at."""
        for _ in range(count):
            self._ahead.popleft()

    def _read(self) -> str | None:
        line = rest = self._file.readline(MAX_ROW_CHARACTERS + 3)
        while rest and rest[-1] not in "\r\n":  # too long, or the last one; what is too long is not held whole
            rest = self._file.readline(MAX_ROW_CHARACTERS)
        if not line:
            return None
        self.count += 1
        if not line.isascii() and (wrong := _WRONG_BYTE.search(line)):
            raise _WrongByteError(self.count, ord(wrong[0]) - 0xDC00)
        return line.rstrip("\r\n")


class _Splitter:
    """Splits records into fields."""

    def __init__(self, separator: str) -> None:
        self.separator = separator
        self._quoted = re.compile(rf'"((?:[^"]+|"")*+)"(?={re.escape(separator)}|\Z)')
        self._unclosed = re.compile(r'"(?:[^"]+|"")*+\Z')

    def split(self, text: str) -> tuple[list[str], bool]:
        """Return the fields, and whether they are whole: no quote is open, no line break outside of quotes."""
        if '"' not in text:
            return text.split(self.separator), "\n" not in text
        fields, whole, position = [], True, 0
        while True:
            if match := self._quoted.match(text, position):
                field, end = match[1].replace('""', '"'), match.end()
            else:
                whole = whole and self._unclosed.match(text, position) is None
                end = text.find(self.separator, position)
                end = len(text) if end < 0 else end
                field = text[position:end]
                whole = whole and "\n" not in field
            fields.append(field)
            if end == len(text):
                return fields, whole
            position = end + 1


def _records(lines: _Lines) -> Iterator[tuple[list[str], str]]:
    """Return the fields of each record, and what is wrong with it."""
    splitter = _Splitter(_find_separator(lines))
    width = 0
    for line in lines:
        fields, whole = splitter.split(line)
        width = width or len(fields)
        problem = ""
        if len(line) > MAX_ROW_CHARACTERS:
            fields, problem = [field[:100] for field in fields], f"more than {MAX_ROW_CHARACTERS:,} characters"
        elif not whole:
            closed = _close(splitter, lines, line, width)
            # Common Voice's TSV has unpaired quotes: with tabs, nothing else needs quoting.
            problem = "" if closed or splitter.separator == "\t" else "a quote is not closed"
            fields = closed or fields
        yield fields, problem


def _find_separator(lines: _Lines) -> str:
    first = next(lines.ahead(), "")
    if declared := _EXCEL_SEPARATOR.fullmatch(first):
        lines.skip(1)
        if declared[1]:
            return declared[1]
        first = next(lines.ahead(), "")
    # The first one: in a file without a header, the sentence may have more commas than there are semicolons.
    found = re.search(r"[\t;,]", re.sub(r'"[^"]*"', "", first))
    return found[0] if found else ","


def _close(splitter: _Splitter, lines: _Lines, line: str, width: int) -> list[str] | None:
    """Join a line whose quote is open with those up to its end; None where one of these is a row of its own."""
    named = names_audio(splitter.split(line)[0])
    for count, more in enumerate(lines.ahead(), start=1):
        alone, _ = splitter.split(more)
        if len(alone) == width and (names_audio(alone) or not named):
            return None
        line = f"{line}\n{more}"
        if len(line) > MAX_ROW_CHARACTERS:
            return None
        fields, whole = splitter.split(line)
        if whole:
            lines.skip(count)
            return fields
    return None
