"""CSV files as people have them."""

import os
import unicodedata
from pathlib import Path
from typing import Literal

import pandas as pd
import pytest

from whisper_lightning.audio.decoders import AudioError
from whisper_lightning.audio.read import load_audio
from whisper_lightning.data.build import build_shards
from whisper_lightning.data.manifest import Row, read_manifest
from whisper_lightning.errors import UserError


def rows(tmp_path: Path, content: str | bytes, name: str = "train.csv", **options: object) -> list[Row]:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_manifest(path, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "content",
    [
        "audio,sentence\na.wav,el niño\n",
        "\ufeffaudio;sentence\na.wav;el niño\n",
        "Path\tText\na.wav\tel niño\n",
        '"audio","sentence"\r\n"a.wav","el niño"\r\n',
        "sentence,file\nel niño,a.wav\n",
        "uno,dos\na.wav,el niño\n",
        "frase;grabación\nel niño;a.wav\n",
        "Transcripcio\u0301n;otra\nel niño;a.wav\n",
        "\ufeffaudio,sentence\r\na.wav,el niño\r\n,\r\n\r\n",
        "audio,sentence\na.wav, el nin\u0303o \n",
    ],
)
def test_forms_of_the_same_table(tmp_path: Path, content: str) -> None:
    (row,) = rows(tmp_path, content)
    assert (row.row, row.audio, row.sentence) == (2, "a.wav", "el niño")
    assert Path(row.path) == tmp_path.resolve() / "a.wav"


def test_a_file_without_a_header_loses_no_row(tmp_path: Path) -> None:
    assert [(r.row, r.sentence) for r in rows(tmp_path, "a.wav,uno\nb.wav,dos\n")] == [(1, "uno"), (2, "dos")]


@pytest.mark.parametrize(
    "content",
    [
        "a.wav;hola, ¿qué tal, Ana?, bien\n",
        '"a.wav";"hola, ¿qué tal, Ana?, bien"\n',
        "a.wav\thola, ¿qué tal, Ana?, bien\n",
        '"hola, ¿qué tal, Ana?, bien",a.wav\n',
    ],
)
def test_commas_of_a_sentence_are_not_the_separator(tmp_path: Path, content: str) -> None:
    (row,) = rows(tmp_path, content)
    assert (row.row, row.audio, row.sentence) == (1, "a.wav", "hola, ¿qué tal, Ana?, bien")


def test_a_line_break_inside_quotes_is_one_row_and_no_sentence(tmp_path: Path) -> None:
    content = 'audio,sentence,notes\na.wav,"hola\namigo",\nb.wav,adiós,"ruido,\ntos"\nc.wav,"sí\n",\n'
    first, second, third = rows(tmp_path, content)
    assert (first.row, first.reason) == (2, "broken row")
    assert "line break" in first.problem
    assert second == Row(3, "b.wav", str(tmp_path.resolve() / "b.wav"), "adiós", {"notes": "ruido,\ntos"})
    assert (third.row, third.sentence, third.reason) == (4, "sí", "")


@pytest.mark.parametrize(
    ("lines", "broken", "whole"),
    [
        # The quote that seems to close it belongs to another row.
        ('a.wav,"hola\nb.wav,adiós\nc.wav,"sí, claro"\nd.wav,no\n', [2], {3: "adiós", 4: "sí, claro", 5: "no"}),
        ('a.wav,"hola\nb.wav,adiós"\nc.wav,sí\n', [2], {3: 'adiós"', 4: "sí"}),
        ('a.wav,hola\nb.wav,"adiós\n', [3], {2: "hola"}),
        ('a.wav,hola\nb.wav,"adiós\n\n\n', [3], {2: "hola"}),
        ('a,"hola\nb,adiós\nc,"sí"\n', [2], {3: "adiós", 4: "sí"}),
        ('"hola,a.wav\nadiós,b.wav\nfin",c.wav\n', [2], {3: "adiós", 4: 'fin"'}),
        ('a.wav,"hola\n' + "b.wav,adiós\n" * 500, [2], dict.fromkeys(range(3, 503), "adiós")),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_an_open_quote_costs_its_row_alone(
    tmp_path: Path, lines: str, broken: list[int], whole: dict[int, str], end: str
) -> None:
    """Everything after it used to be one field, up to the next quote."""
    header = "sentence,audio\n" if lines.startswith('"') else "audio,sentence\n"
    read = rows(tmp_path, (header + lines).replace("\n", end))
    assert {row.row: row.sentence for row in read if not row.reason} == whole
    assert [(row.row, row.problem) for row in read if row.reason] == [(row, "a quote is not closed") for row in broken]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("separator", [";", "\t"])
def test_utf_16_as_excel_writes_it(tmp_path: Path, encoding: str, separator: str) -> None:
    content = f'audio{separator}sentence\r\na.wav{separator}"el ""niño"""\r\n'
    (row,) = rows(tmp_path, content.encode(encoding))
    assert (row.row, row.audio, row.sentence) == (2, "a.wav", 'el "niño"')


def test_a_wrong_byte_is_named(tmp_path: Path) -> None:
    content = b"audio,sentence\n" + b"a.wav,hola\n" * 5000 + b"b.wav,ni\xf1o\n"
    with pytest.raises(UserError, match=r"UTF-8 in line 5002: byte 0xF1, .*'ñ' in Windows-1252; .*Excel .*'CSV UTF-8'"):
        rows(tmp_path, content)
    with pytest.raises(UserError, match="not UTF-16"):
        rows(tmp_path, "audio;sentence\r\na.wav;hola\r\n".encode("utf-16")[:-1])


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "SEP=;", "sep=;;;", "sep=;\r"])
@pytest.mark.parametrize("columns", [1, 2, 3])
def test_the_line_that_tells_excel_the_separator(tmp_path: Path, first: str, columns: int) -> None:
    """Excel does not show it: the header stays row 1."""
    header, values = ("audio", "sentence", "notes"), ("a.wav", "hola, amigo", "x")
    content = "\n".join([first, ";".join(header[:columns]), ";".join(values[:columns])])
    (row,) = rows(tmp_path, content, require_sentence=columns > 1)
    assert (row.row, row.audio, row.sentence) == (2, "a.wav", "hola, amigo" if columns > 1 else "")


def test_prediction_needs_no_sentence_column(tmp_path: Path) -> None:
    """The same data.columns serve a file that has only the audio column."""
    (row,) = rows(tmp_path, "id,toma\n7,a.wav\n", columns=["toma", "frase"], require_sentence=False)
    assert (row.audio, row.sentence) == ("a.wav", "")


def test_common_voice_as_it_is(tmp_path: Path) -> None:
    content = 'client_id\tpath\tsentence\taccents\n1\tx.mp3\tdijo "hola\tChile\n2\ty.mp3\tadiós\t\n'
    first, second = rows(tmp_path, content, "train.tsv", audio_root=tmp_path / "clips")
    assert (first.sentence, first.extra) == ('dijo "hola', {"client_id": "1", "accents": "Chile"})
    assert Path(second.path) == tmp_path.resolve() / "clips" / "y.mp3"


@pytest.mark.parametrize(
    ("field", "sentence"),
    [
        ('"dijo ""hola"" y calló"', 'dijo "hola" y calló'),
        ('"""Hola"" dijo"', '"Hola" dijo'),
        ('"a\tb"', "a\tb"),
        ('"Hola", dijo', '"Hola", dijo'),
        ('"Hola, dijo', '"Hola, dijo'),
        ('dijo "hola"', 'dijo "hola"'),
    ],
)
def test_quoted_fields_of_a_tsv(tmp_path: Path, field: str, sentence: str) -> None:
    """As pandas and Excel quote them, where they do; as Common Voice does not, where not."""
    content = f"path\tsentence\taccents\na.mp3\t{field}\tChile\nb.mp3\tadiós\t\n"
    first, second = rows(tmp_path, content, "train.tsv")
    assert (first.sentence, first.extra) == (sentence, {"accents": "Chile"})
    assert (second.row, second.sentence) == (3, "adiós")


def test_what_pandas_writes_is_what_is_read(tmp_path: Path) -> None:
    sentences = ['"¡Hola!", dijo.', "uno, dos; tres", 'un "tab"\t', '"', "sin más", "'"]
    table = pd.DataFrame({"audio": [f"{i}.wav" for i in range(len(sentences))], "sentence": sentences})
    for separator in (",", ";", "\t"):
        table.to_csv(tmp_path / "pandas.csv", sep=separator, index=False, encoding="utf-8")
        read = list(read_manifest(tmp_path / "pandas.csv"))
        assert [row.sentence for row in read] == [sentence.strip() for sentence in sentences]


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ("ho\u200bla ni\u00adño\ufeff", "hola niño"),
        ("\u200e¿Qué\u2060?\u200f", "¿Qué?"),
        ("nin\u00ad\u0303o", "niño"),
        ("gato\u200dperro \u200csí", "gatoperro sí"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("क्\u200dष", "क्\u200dष"),
        ("\u200b\u200d\u2060 \ufe0f\u0301", ""),
    ],
)
def test_what_is_not_seen_is_not_learnt(tmp_path: Path, written: str, sentence: str) -> None:
    (row,) = rows(tmp_path, f"audio,sentence\na.wav,{written}\n")
    assert (row.sentence, row.reason) == (sentence, "")


@pytest.mark.parametrize("character", ["\u2028", "\x85", "\x0b", "\x00", "\x1b"])
def test_control_characters_reject_the_row(tmp_path: Path, character: str) -> None:
    first, second = rows(tmp_path, f"audio,sentence\na.wav,hola{character}amigo\nb.wav,adiós\n")
    assert (first.row, first.reason, second.sentence) == (2, "broken row", "adiós")
    assert f"U+{ord(character):04X}" in first.problem


@pytest.mark.parametrize("token", ["<|endoftext|>", "<|0.00|>", "<|es|>", "<|startoftranscript|>"])
def test_special_tokens_reject_the_row_by_name(tmp_path: Path, token: str) -> None:
    first, second = rows(tmp_path, f"audio,sentence\na.wav,hola {token} amigo\nb.wav,a < b | c > d\n")
    assert (first.row, first.reason, second.reason) == (2, "special token", "")
    assert token in first.problem


def test_words_that_pandas_would_take_for_missing_survive(tmp_path: Path) -> None:
    assert [row.sentence for row in rows(tmp_path, "audio,sentence\na.wav,NA\nb.wav,null\nc.wav,\n")] == [
        "NA",
        "null",
        "",
    ]


def test_windows_separators_find_the_file(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.wav").touch()
    (row,) = rows(tmp_path, "audio,sentence\nclips\\a.wav,hola\n")
    assert Path(row.path).is_file()


@pytest.mark.parametrize(("on_disk", "other"), [("NFC", "NFD"), ("NFD", "NFC")])
@pytest.mark.parametrize("separator", ["/", "\\"])
def test_names_with_accents_find_each_other(
    tmp_path: Path, on_disk: Literal["NFC", "NFD"], other: Literal["NFC", "NFD"], separator: str
) -> None:
    """Typed on Linux or Windows and recorded on a Mac, or the other way round; the folder may be of the other kind."""
    folder = tmp_path / unicodedata.normalize(on_disk, "grabación")
    folder.mkdir()
    (folder / unicodedata.normalize(other, "niño.wav")).touch()
    for form in (on_disk, other):
        written = unicodedata.normalize(form, f"grabación{separator}niño.wav")
        (row,) = rows(tmp_path, f"audio,sentence\n{written},hola\n")
        assert Path(row.path).is_file()
        assert row.audio == written


@pytest.mark.parametrize("audio", ["pipe:touch canary", "http://example.org/a.wav", "file:///etc/passwd"])
def test_what_is_no_local_file_is_refused(tmp_path: Path, audio: str) -> None:
    (row,) = rows(tmp_path, f"audio,sentence\n{audio},hola\n")
    assert row.reason == "not a local file"


def test_a_ragged_row_is_one_bad_row(tmp_path: Path) -> None:
    good, bad, last = rows(tmp_path, "audio,sentence\na.wav,hola\nb.wav,hola, qué tal\nc.wav,sí\n")
    assert "3 fields" in bad.problem
    assert (good.problem, last.problem) == ("", "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ("a,b,c\n1,2,3\n", "data.columns"),
        ("audio,sentence\na.wav,ni\u00f1o\n".encode("latin-1"), "UTF-8"),
    ],
)
def test_unusable_files_are_named(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rows(tmp_path, content)


@pytest.mark.parametrize("content", ["1,a.wav,hola\n2,b.wav,sí\n", "a.wav,b.wav\n", "hola;a.wav;;\n"])
def test_columns_that_cannot_be_told_apart_are_refused(tmp_path: Path, content: str) -> None:
    """The first of three used to be the sentence."""
    first = content.split("\n")[0].replace(";", ",").split(",")
    with pytest.raises(UserError, match=r"no header.*first row is \['.*audio,sentence") as caught:
        rows(tmp_path, content)
    assert str(first) in str(caught.value)


def test_the_audio_of_a_file_without_a_header_is_known(tmp_path: Path) -> None:
    (row,) = rows(tmp_path, "1,a.wav,hola\n", require_sentence=False)
    assert (row.row, row.audio, row.sentence) == (1, "a.wav", "")


@pytest.mark.parametrize("header", ["audio,sentence,sentence", "audio,Sentence,sentence", "audio,nota,sentence,nota"])
def test_columns_of_the_same_name_are_refused(tmp_path: Path, header: str) -> None:
    with pytest.raises(UserError, match=r"two columns are named '(sentence|nota)'; give one of them another name"):
        rows(tmp_path, f"{header}\na.wav,hola,adiós,x\n")


def test_columns_without_a_name_may_be_several(tmp_path: Path) -> None:
    """Excel saves those that were once filled."""
    (row,) = rows(tmp_path, "audio;sentence;;\na.wav;hola;;\n")
    assert (row.sentence, row.reason) == ("hola", "")


@pytest.mark.parametrize("size", [131_073, 5_000_000, 20_000_000])
@pytest.mark.parametrize(
    "place", ["a.wav,{},x", "a.wav,hola,{}", "{},hola,x", 'a.wav,"{}",x', 'a.wav,hola,"{}', "{}", '"{}"']
)
def test_a_huge_cell_costs_its_row_alone(tmp_path: Path, size: int, place: str) -> None:
    good = "c.wav,adiós,x\n"
    read = rows(tmp_path, "audio,sentence,notes\n" + good + place.format("a" * size) + "\n" + good)
    assert [(row.row, row.reason, row.sentence) for row in read] == [
        (2, "", "adiós"),
        (3, "broken row", ""),
        (4, "", "adiós"),
    ]
    assert "131,072 characters" in read[1].problem
    assert len(read[1].audio) <= 100


def test_a_row_of_many_large_cells_is_huge_too(tmp_path: Path) -> None:
    """It used to be built, into an index that was then called damaged."""
    names = [f"n{i}" for i in range(200)]
    content = [["audio", "sentence", *names], ["a.wav", "hola", *["a" * 100_000] * 200], ["b.wav", "sí", *names]]
    first, second = rows(tmp_path, "\n".join(",".join(row) for row in content))
    assert (first.reason, first.audio, second.sentence) == ("broken row", "a.wav", "sí")


def test_a_header_that_is_no_text_is_one_short_line(tmp_path: Path) -> None:
    for content in ("x" * 10_000_000, ",".join("abcdefgh" * 1000), '"audio,sentence\na.wav,hola\n'):
        with pytest.raises(UserError) as caught:
            rows(tmp_path, content)
        assert len(str(caught.value)) < 1000
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions are others")
def test_a_csv_that_may_not_be_read_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("audio,sentence\na.wav,hola\n", encoding="utf-8")
    path.chmod(0)
    user = os.geteuid()
    if user == 0:  # who may read everything
        os.seteuid(65534)
    try:
        with pytest.raises(UserError, match=r"train\.csv: cannot be read \(Permission denied\)"):
            list(read_manifest(path))
        with pytest.raises(UserError, match=r"train\.csv: cannot be read \(Permission denied\)"):
            build_shards(path, tmp_path / "shards", num_workers=0)
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("name", ["x" * 300 + "\\ñ.wav", "ñ" * 5000])
def test_a_name_that_no_file_system_takes(tmp_path: Path, name: str) -> None:
    first, second = rows(tmp_path, f"audio,sentence\n{name},hola\nb.wav,adiós\n")
    assert (first.audio, first.reason, second.sentence) == (name, "", "adiós")
    with pytest.raises(AudioError):
        load_audio(Path(first.path))


def test_columns_by_name_and_no_sentence_needed(tmp_path: Path) -> None:
    content = "id,grabacion,frase final\n7,a.wav,hola\n"
    (row,) = rows(tmp_path, content, columns=["grabacion", "frase final"])
    assert (row.audio, row.sentence, row.extra) == ("a.wav", "hola", {"id": "7"})
    with pytest.raises(UserError, match="nada"):
        rows(tmp_path, content, columns=["nada", "frase final"])
    (row,) = rows(tmp_path, "audio\na.wav\n", require_sentence=False)
    assert row.audio == "a.wav"
