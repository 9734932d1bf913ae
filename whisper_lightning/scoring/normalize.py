"""The normal form of a text, in which case and punctuation do not count."""

from __future__ import annotations

import unicodedata


def normalize(text: str) -> str:
    """Return the words that `wer_normalized` compares: lower case, no punctuation, ñ, ü and accents kept.

    Everything that is no letter, digit or mark separates words; letters are composed (NFC) first, so that
    "n" + tilde and "ñ" are the same letter.
    """
    composed = unicodedata.normalize("NFC", text).lower()
    kept = (c if unicodedata.category(c)[0] in "LNM" else " " for c in composed)
    return " ".join("".join(kept).split())
