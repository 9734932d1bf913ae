"""What each Spanish scoring forgives and what it does not, case by case."""

import unicodedata

import pytest

from whisper_lightning.scoring.edits import word_edits
from whisper_lightning.scoring.spanish import (
    SCORINGS,
    accent_insensitive,
    align_words,
    aligned_pairs,
    capitalisation_counts,
    normalized,
    numbers_as_words,
    orthographic,
    punctuation_counts,
)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("¿Dónde está  la\u00a0Ñ?", "¿Dónde está la Ñ?"),
        ("nin\u0303o", "niño"),
        ("  20 %\n", "20 %"),
        ("", ""),
    ],
)
def test_orthographic_keeps_all_but_blanks(text: str, kept: str) -> None:
    assert orthographic(text) == kept


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("¿Dónde está la Ñ?", "dónde está la ñ"),
        ("Pingüino… ¡ÁRBOL!", "pingüino árbol"),
        ("¡…!", ""),
    ],
)
def test_normalized_keeps_accents(text: str, kept: str) -> None:
    assert normalized(text) == kept


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("El año pasado", "el año pasado"),
        ("ano", "ano"),
        ("an\u0303o", "año"),
        ("ÁÉÍÓÚ Ü", "aeiou u"),
        ("pingüino, cigüeña", "pinguino cigueña"),
        ("¿Qué? ¡Tú!", "que tu"),
        ("Barça", "barça"),
        ("à la façon", "a la façon"),
    ],
)
def test_accent_insensitive_keeps_the_letter_ñ(text: str, kept: str) -> None:
    assert accent_insensitive(text) == kept
    assert accent_insensitive(unicodedata.normalize("NFD", text)) == kept


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("20", "veinte"),
        ("Tiene 20 años.", "tiene veinte años"),
        ("3,5", "tres coma cinco"),
        ("3.5", "tres coma cinco"),
        ("0,05", "cero coma cero cinco"),
        ("3,14", "tres coma catorce"),
        ("3,1416", "tres coma uno cuatro uno seis"),
        ("1.000", "mil"),
        ("1,000", "mil"),
        ("1\u00a0000", "mil"),
        ("1.234.567", "un millón doscientos treinta y cuatro mil quinientos sesenta y siete"),
        ("1.234,5", "mil doscientos treinta y cuatro coma cinco"),
        ("1,234.5", "mil doscientos treinta y cuatro coma cinco"),
        ("0.125", "cero coma ciento veinticinco"),
        ("20 %", "veinte por ciento"),
        ("El 20% de todo", "el veinte por ciento de todo"),
        ("3,5 %", "tres coma cinco por ciento"),
        ("1.º", "primero"),
        ("1º", "primero"),
        ("la 1.ª vez", "la primera vez"),
        ("1.er piso", "primer piso"),
        ("el 3er día", "el tercer día"),
        ("11.º", "undécimo"),
        ("12.ª", "duodécima"),
        ("13.º", "decimotercero"),
        ("17ª", "decimoséptima"),
        ("21.ª", "vigésima primera"),
        ("en 1998", "en mil novecientos noventa y ocho"),
        ("2024", "dos mil veinticuatro"),
        ("-5 grados", "menos cinco grados"),
        ("\u22125", "menos cinco"),
        ("10-20", "diez veinte"),
        ("a las 10:30", "a las diez treinta"),
        ("a las 10:00.", "a las diez"),
        ("08:05", "ocho cero cinco"),
        ("25:30", "veinticinco treinta"),
        ("007", "cero cero siete"),
        ("1.2.3", "uno dos tres"),
        ("12/05/2020", "doce cero cinco dos mil veinte"),
        ("9001234567890", "nueve cero cero uno dos tres cuatro cinco seis siete ocho nueve cero"),
        ("1 millón", "un millón"),
        ("2 millones", "dos millones"),
        ("H2O y A4", "h2o y a4"),
        ("COVID-19", "covid diecinueve"),
        ("Eran 3.Luego", "eran tres luego"),
        ("0", "cero"),
        ("000", "cero cero cero"),
        ("sin cifras, ¿no?", "sin cifras no"),
        ("¡…!", ""),
    ],
)
def test_numbers_as_words(written: str, said: str) -> None:
    assert numbers_as_words(written) == said
    assert numbers_as_words(said) == said


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("21 años", "veintiún años"),
        ("21 personas", "veintiuna personas"),
        ("31 días", "treinta y un días"),
        ("200 páginas", "doscientas páginas"),
        ("501 horas", "quinientas una horas"),
        ("21.000 euros", "veintiún mil euros"),
        ("31.000", "treinta y un mil"),
        ("101 noches", "ciento una noches"),
        ("11.ª hora", "decimoprimera hora"),
    ],
)
def test_digits_and_the_form_that_the_noun_asks_for_are_one(written: str, said: str) -> None:
    assert numbers_as_words(written).split() == numbers_as_words(said).split()


def test_articles_are_not_numbers() -> None:
    assert word_edits(numbers_as_words("un libro"), numbers_as_words("una libro")).errors == 1


@pytest.mark.parametrize("scoring", SCORINGS)
def test_scorings_are_stable_and_say_what_they_do(scoring: str) -> None:
    function = SCORINGS[scoring]
    assert function.__name__ == scoring
    assert len((function.__doc__ or "").split("\n")[0]) > 40
    for text in ("¿Dónde está el pingüino n.º 3, señor?", "a\u0301", "", "…", "20 %, 3.5"):
        assert function(function(text)) == function(text)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "alignment"),
    [
        ("a b c", "a x c d", "=S=I"),
        ("a b c", "b c", "D=="),
        ("", "a b", "II"),
        ("a b", "", "DD"),
        ("", "", ""),
    ],
)
def test_alignment(reference: str, hypothesis: str, alignment: str) -> None:
    assert align_words(reference, hypothesis) == alignment
    edits = word_edits(reference, hypothesis)
    assert (edits.hits, edits.substitutions, edits.deletions, edits.insertions) == tuple(map(alignment.count, "=SDI"))


def test_pairs_of_an_alignment() -> None:
    assert list(aligned_pairs("=SDI")) == [("=", 0, 0), ("S", 1, 1), ("D", 2, None), ("I", None, 2)]


@pytest.mark.parametrize(
    ("reference", "hypothesis", "counts"),
    [
        ("¿Qué tal, Ana?", "¿Qué tal, Ana?", (3, 3, 3)),
        ("¿Qué tal, Ana?", "Qué tal Ana", (0, 3, 0)),
        ("¿Qué tal, Ana?", "¿Qué tal Ana?", (2, 3, 2)),
        ("Hola, mundo.", "Hola mundo, cruel.", (0, 2, 2)),  # both at other words
        ("Son 3,5 a las 10:30.", "Son 3,5 a las 10:30.", (1, 1, 1)),
        ("Bueno...", "Bueno…", (1, 1, 1)),
        ("El 1.º", "El 1.º", (0, 0, 0)),
        ("«Hola» — dijo", "Hola dijo", (0, 0, 0)),
        ("", "Sí.", (0, 0, 1)),
        ("¡…!", "", (0, 3, 0)),
    ],
)
def test_punctuation(reference: str, hypothesis: str, counts: tuple[int, int, int]) -> None:
    assert punctuation_counts(reference, hypothesis) == counts


@pytest.mark.parametrize(
    ("reference", "hypothesis", "counts", "f1"),
    [
        ("Ana vive en León", "Ana vive en León", (2, 2, 2), 100.0),
        ("Ana vive en León", "ana vive En León", (1, 2, 2), 50.0),
        ("Ana vive en León", "ana vive", (0, 2, 0), 0.0),
        ("Ángel", "Angel", (1, 1, 1), 100.0),  # another word, but a capital where one belongs
        ("hola", "hola", (0, 0, 0), None),
    ],
)
def test_capitals(reference: str, hypothesis: str, counts: tuple[int, int, int], f1: float | None) -> None:
    found = capitalisation_counts(reference, hypothesis)
    assert found == counts
    assert found.f1 == f1
