"""CSV files as people have them."""

from pathlib import Path

import pytest

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


def test_a_line_break_inside_quotes_is_one_row(tmp_path: Path) -> None:
    first, second = rows(tmp_path, 'audio,sentence\na.wav,"hola\namigo"\nb.wav,adiós\n')
    assert (first.row, second.row, second.sentence) == (2, 3, "adiós")


def test_the_row_before_a_wrong_byte_is_named(tmp_path: Path) -> None:
    content = b"audio,sentence\n" + b"a.wav,hola\n" * 5000 + b"b.wav,ni\xf1o\n"
    with pytest.raises(UserError, match=r"after row [1-9]\d+; save it as 'CSV UTF-8'"):
        rows(tmp_path, content)


def test_prediction_needs_no_sentence_column(tmp_path: Path) -> None:
    """The same data.columns serve a file that has only the audio column."""
    (row,) = rows(tmp_path, "id,toma\n7,a.wav\n", columns=["toma", "frase"], require_sentence=False)
    assert (row.audio, row.sentence) == ("a.wav", "")


def test_common_voice_as_it_is(tmp_path: Path) -> None:
    content = 'client_id\tpath\tsentence\taccents\n1\tx.mp3\tdijo "hola\tChile\n2\ty.mp3\tadiós\t\n'
    first, second = rows(tmp_path, content, "train.tsv", audio_root=tmp_path / "clips")
    assert (first.sentence, first.extra) == ('dijo "hola', {"client_id": "1", "accents": "Chile"})
    assert Path(second.path) == tmp_path.resolve() / "clips" / "y.mp3"


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


@pytest.mark.parametrize("audio", ["pipe:touch canary", "http://example.org/a.wav", "file:///etc/passwd"])
def test_what_is_no_local_file_is_refused(tmp_path: Path, audio: str) -> None:
    (row,) = rows(tmp_path, f"audio,sentence\n{audio},hola\n")
    assert row.problem == "not a local file"


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


def test_columns_by_name_and_no_sentence_needed(tmp_path: Path) -> None:
    content = "id,grabacion,frase final\n7,a.wav,hola\n"
    (row,) = rows(tmp_path, content, columns=["grabacion", "frase final"])
    assert (row.audio, row.sentence, row.extra) == ("a.wav", "hola", {"id": "7"})
    with pytest.raises(UserError, match="nada"):
        rows(tmp_path, content, columns=["nada", "frase final"])
    (row,) = rows(tmp_path, "audio\na.wav\n", require_sentence=False)
    assert row.audio == "a.wav"
