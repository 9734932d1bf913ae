"""Spanish texts as they are scored: each scoring is a named function that says what it forgives.

A scoring maps one text to the words that are compared. It never decides which utterances are compared: one whose
reference becomes empty still counts, with the words of its hypothesis as insertions.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import NamedTuple

import jiwer

from whisper_lightning.errors import UserError
from whisper_lightning.scoring.normalize import normalize

MARKS = frozenset(".,;:…?!¿¡")
"""The punctuation that is scored. Quotes, dashes and brackets are a matter of house style."""

NUMBER = re.compile(
    r"(?P<minus>(?<![^\s(«\"'¿¡])[-\u2212])?"  # where a word could begin: not the dash of 10-20
    r"(?<![^\W_])(?P<digits>[0-9]+(?:[.,\u00a0\u202f][0-9]+)*)"
    r"(?:(?:\.?(?P<ordinal>[ºª]|er(?![^\W_])))|(?P<percent>[\s\u00a0\u202f]?%)|(?![^\W_]))"
)
TIME = re.compile(r"(?<![\w:.,])([01]?[0-9]|2[0-3]):([0-5][0-9])(?![\w:]|[.,][0-9])")
MAX_DIGITS = 12
"""Longer numbers are read digit by digit: nobody says an account's number as billions."""
FORMS = [
    (re.compile(r"\bveinti(?:ún|un|una)\b"), "veintiuno"),
    (re.compile(r"\b(treinta|cuarenta|cincuenta|sesenta|setenta|ochenta|noventa) y una?\b"), r"\1 y uno"),
    (re.compile(r"\b((?:dos|tres|cuatro|seis|sete|ocho|nove)cient|quinient)as\b"), r"\1os"),
    (re.compile(r"\b(ciento|\w+cientos|quinientos) una?\b"), r"\1 uno"),
    (re.compile(r"\buno (?=mil\b|mill[oó]n|bill[oó]n)"), "un "),
    (re.compile(r"\b(?:decimoprimer|onceav)([oa])\b"), r"undécim\1"),
    (re.compile(r"\b(?:decimosegund|doceav)([oa])\b"), r"duodécim\1"),
]
"""Spellings of one number that depend on the noun beside it; digits do not show which one was said."""


def orthographic(text: str) -> str:
    """Everything counts: case, punctuation, accents; only composed letters (NFC) and single blanks are made sure of."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def normalized(text: str) -> str:
    """Case and punctuation do not count; ñ, ü and accents do."""
    return normalize(text)


def accent_insensitive(text: str) -> str:
    """Case, punctuation and accents do not count (á = a, ü = u); ñ and ç stay letters of their own (año ≠ ano)."""
    letters = (c if c in "ñç" else _without_marks(c) for c in normalize(text))
    return " ".join("".join(letters).split())


def _without_marks(letter: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFD", letter) if unicodedata.category(c)[0] != "M")


def numbers_as_words(text: str) -> str:
    """As normalized, with numbers written out in Spanish: 20 = veinte, 3,5 = 3.5 = tres coma cinco, 1.000 = mil.

    A dot or comma before exactly three digits groups thousands, as Spain and Mexico write them, unless the number
    begins with 0. Ordinals (1.º, 2ª, 3.er), percentages and a minus sign are read out; 10:30 is "diez treinta" and
    10:00 "diez". Digits inside of a word (H2O) stay. Forms that the noun decides are one: veintiún = veintiuna =
    veintiuno, doscientas = doscientos.

    Raises:
        UserError: num2words is not installed.
    """
    composed = unicodedata.normalize("NFC", text)
    if any(c in "0123456789" for c in composed):
        composed = NUMBER.sub(_read_number, TIME.sub(_read_time, composed))
    words = normalize(composed)
    for pattern, replacement in FORMS:
        words = pattern.sub(replacement, words)
    return words


SCORINGS: dict[str, Callable[[str], str]] = {
    "orthographic": orthographic,
    "normalized": normalized,
    "accent_insensitive": accent_insensitive,
    "numbers_as_words": numbers_as_words,
}
"""Every scoring by its name, from the strictest on; the first line of each docstring is what reports say of it."""


def _cardinal(digits: str) -> str:
    """Read a whole number; with leading zeros, or when it is very long, digit by digit."""
    try:
        from num2words import num2words
    except ImportError:
        raise UserError("numbers are written out with num2words: pip install 'whisper-lightning[report]'") from None
    if len(digits) > MAX_DIGITS:
        return " ".join(str(num2words(int(digit), lang="es")) for digit in digits)
    zeros = len(digits) - len(digits.lstrip("0")) if digits.strip("0") else len(digits) - 1
    return " ".join(["cero"] * zeros + [str(num2words(int(digits), lang="es"))])


def _ordinal(digits: str, ending: str) -> str:
    from num2words import num2words

    number = int(digits)
    words = {11: "undécimo", 12: "duodécimo"}.get(number) or str(num2words(number, lang="es", to="ordinal"))
    words = re.sub(r"\bdécimo ?(?=[pstcqon])", "decimo", words)  # one word from 13.º to 19.º
    if ending == "ª":
        words = re.sub(r"o\b", "a", words)
    return re.sub(r"(primer|tercer)o$", r"\1", words) if ending == "er" else words


def _read_time(match: re.Match[str]) -> str:
    hours, minutes = str(int(match[1])), match[2]
    return _cardinal(hours) if minutes == "00" else f"{_cardinal(hours)} {_cardinal(minutes)}"


def _read_number(match: re.Match[str]) -> str:
    digits = match["digits"]
    if match["ordinal"] and digits.isdigit() and 0 < int(digits) < 1000:
        return f" {_ordinal(digits, match['ordinal'])} "
    words = _decimal(digits)
    if match["minus"]:
        words = f"menos {words}"
    return f" {words} por ciento " if match["percent"] else f" {words} "


def _decimal(digits: str) -> str:
    """Read digits with dots and commas among them: thousands, a decimal, or else number after number."""
    whole = re.fullmatch(r"([1-9][0-9]{0,2}(?:([.,\u00a0\u202f])[0-9]{3})(?:\2[0-9]{3})*)(?:[.,]([0-9]+))?", digits)
    plain = re.fullmatch(r"([0-9]+)[.,]([0-9]+)", digits)
    if whole and not (whole[3] and digits[len(whole[1])] == whole[2]):
        integer, fraction = re.sub(r"[^0-9]", "", whole[1]), whole[3]
    elif plain:
        integer, fraction = plain[1], plain[2]
    else:
        return " ".join(_cardinal(part) for part in re.split(r"[^0-9]", digits))
    if fraction is None:
        return _cardinal(integer)
    digit_by_digit = len(fraction) > 3
    read = " ".join(_cardinal(digit) for digit in fraction) if digit_by_digit else _cardinal(fraction)
    return f"{_cardinal(integer)} coma {read}"


def align_words(reference: str, hypothesis: str) -> str:
    """Align two texts word by word: a letter per step, `=` the same, `S` substituted, `D` deleted, `I` inserted."""
    if not reference.split():
        return "I" * len(hypothesis.split())
    letters = {"equal": "=", "substitute": "S", "delete": "D", "insert": "I"}
    (chunks,) = jiwer.process_words(reference, hypothesis).alignments
    spans = ((c, max(c.ref_end_idx - c.ref_start_idx, c.hyp_end_idx - c.hyp_start_idx)) for c in chunks)
    return "".join(letters[chunk.type] * length for chunk, length in spans)


def aligned_pairs(alignment: str) -> Iterator[tuple[str, int | None, int | None]]:
    """Return each step of an alignment with the positions of its words in reference and hypothesis."""
    i = j = 0
    for step in alignment:
        yield step, None if step == "I" else i, None if step == "D" else j
        i, j = i + (step != "I"), j + (step != "D")


class MarkCounts(NamedTuple):
    """How well marks, or capitals, were found; counts of utterances add up to a corpus-level F1."""

    found: int
    expected: int
    given: int

    @property
    def f1(self) -> float | None:
        """F1 in percent; None where neither text has any."""
        total = self.expected + self.given
        return 200.0 * self.found / total if total else None


def punctuation_counts(reference: str, hypothesis: str) -> MarkCounts:
    """Count the punctuation marks that stand at the same word in both texts.

    Words are aligned in normal form; ¿ and ¡ belong to the word after them, the others to the one before.
    """
    left, right = _marked_words(reference), _marked_words(hypothesis)
    found = sum((left[i][1] & right[j][1]).total() for i, j in _same_place(left, right))
    return MarkCounts(found, sum(m.total() for _, m in left), sum(m.total() for _, m in right))


def capitalisation_counts(reference: str, hypothesis: str) -> MarkCounts:
    """Count the words with a capital that have one in both texts, aligned in normal form."""
    left, right = _marked_words(reference), _marked_words(hypothesis)
    found = sum(left[i][0][:1].isupper() and right[j][0][:1].isupper() for i, j in _same_place(left, right))
    return MarkCounts(found, *(sum(word[:1].isupper() for word, _ in words) for words in (left, right)))


def _same_place(left: list[tuple[str, Counter[str]]], right: list[tuple[str, Counter[str]]]) -> list[tuple[int, int]]:
    texts = (" ".join(word.lower() for word, _ in words) for words in (left, right))
    pairs = aligned_pairs(align_words(*texts))
    return [(i, j) for _, i, j in pairs if i is not None and j is not None]


def _marked_words(text: str) -> list[tuple[str, Counter[str]]]:
    """Split into the words of `normalize`, case kept, each with its marks; a text of marks alone is one empty word."""
    composed = re.sub(r"\.{3,}", "…", unicodedata.normalize("NFC", text))
    runs = [(is_word, "".join(c)) for is_word, c in groupby(composed, lambda c: unicodedata.category(c)[0] in "LNM")]
    words: list[tuple[str, Counter[str]]] = []
    opening = ""
    for number, (is_word, run) in enumerate(runs):
        if is_word:
            words.append((run, Counter(opening)))
            opening = ""
        elif len(run) == 1 and 0 < number < len(runs) - 1 and _joins(runs[number - 1][1][-1], runs[number + 1][1][0]):
            continue
        else:
            marks = [c for c in run if c in MARKS]
            opening = "".join(c for c in marks if c in "¿¡" or not words)
            if words:
                words[-1][1].update(c for c in marks if c not in "¿¡")
    if not words:
        return [("", Counter(opening))]
    words[-1][1].update(opening)
    return words


def _joins(before: str, after: str) -> bool:
    """Say whether a mark between these two belongs to a number: 3,5 and 10:30 and 1.º."""
    return before.isdigit() and (after.isdigit() or after in "ºª")
