"""Figures with intervals, tables, and the tool that makes a report of models and a test set."""

import csv
import json
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jiwer
import numpy as np
import pytest

from tests.command import evaluate as main
from tests.conftest import MODEL, QUICKSTART, copy_corpus, one_error, read_rows
from whisper_lightning.commands.evaluate import name_models
from whisper_lightning.model.module import WhisperModule
from whisper_lightning.report.evaluate import evaluate
from whisper_lightning.report.scores import Confusion, Confusions, compare, confusions
from whisper_lightning.report.tables import make_tables, to_latex, to_markdown
from whisper_lightning.report.transcripts import Decode, ReferenceUtterance, Transcripts
from whisper_lightning.scoring.intervals import Estimate, paired_difference
from whisper_lightning.scoring.oddities import is_loop, is_unlikely_speed, speed_limits
from whisper_lightning.scoring.spanish import SCORINGS

SCLITE = shutil.which("sclite") or shutil.which("sclite", path="/usr/lib/sctk/bin")
WORDS = [word for row in read_rows(QUICKSTART / "train.csv") for word in row["sentence"].split()]


def noisy(sentence: str, chance: random.Random, rate: float) -> str:
    """Substitute, lose and insert words, each error apart from the next, so that the alignment is unambiguous."""
    heard: list[str] = []
    calm = 0
    for word in sentence.split():
        error = calm >= 3 and chance.random() < rate
        calm = 0 if error else calm + 1
        heard += chance.choice([["zzz"], [], [word, "zzz"]]) if error else [word]
    return " ".join(heard)


def transcripts(number: int, *rates: float, path: Path | None = None) -> Transcripts:
    """A made-up test set, and models that err at these rates."""
    chance = random.Random(0)
    sentences = [" ".join(chance.sample(WORDS, chance.randint(1, 14))) for _ in range(number)]
    sentences = [each.capitalize() + chance.choice(".?") for each in sentences]
    utterances = [
        ReferenceUtterance(
            i + 2,
            f"clips/{i}.mp3",
            path,
            max(0.5, len(sentence) / 15),
            sentence,
            {"accent": chance.choice(["Andes", "México", ""]), "file_id": str(i), "locale": "es"},
        )
        for i, sentence in enumerate(sentences)
    ]
    hypotheses = [
        [noisy(each, random.Random(f"{rate}/{i}"), rate) for i, each in enumerate(sentences)] for rate in rates
    ]
    return Transcripts(
        "test.csv", utterances, [f"model {i}" for i in range(len(rates))], hypotheses, [], [Decode(1, [])] * len(rates)
    )


def holds_its_figure(estimate: Estimate) -> bool:
    value, low, high = estimate
    return low is not None and high is not None and low < value < high


def test_identical_models_do_not_differ_and_others_do() -> None:
    chance = np.random.default_rng(0)
    lengths = chance.integers(4, 12, size=400).tolist()
    errors = chance.binomial(lengths, 0.2).tolist()
    assert paired_difference(errors, errors, lengths) == (0.0, 0.0, 0.0, 1.0)
    fewer = [max(0, count - 1) for count in errors]
    better = paired_difference(fewer, errors, lengths)
    _, low, high, p_value = better
    assert low is not None
    assert high is not None
    assert p_value is not None
    assert low < better.value < high < 0
    assert p_value < 0.001
    worse = paired_difference(errors, fewer, lengths)
    assert worse.value == pytest.approx(-better.value)
    assert worse.p_value == better.p_value


def test_chance_alone_is_called_significant_one_time_in_twenty() -> None:
    found = 0
    for seed in range(200):
        chance = np.random.default_rng(seed)
        first, second = chance.binomial(8, 0.2, size=(2, 100)).tolist()
        difference = paired_difference(first, second, [8] * 100)
        _, low, high, p_value = difference
        assert low is not None
        assert high is not None
        assert p_value is not None
        found += p_value < 0.05
        # Interval and p-value are of the same draws and say the same, but for the count that p never falls below.
        if p_value > 0.06:
            assert low <= 0 <= high
    assert 3 <= found <= 19


@pytest.mark.parametrize(
    ("reference", "hypothesis", "loop"),
    [
        ("hola", "hola gracias por ver gracias por ver gracias por ver", True),
        ("hola", "Sí, sí, sí.", True),
        ("no, no, no", "no no no", False),
        ("hola", "no no", False),
        ("no, no, no", "no no no gracias por ver gracias por ver gracias por ver", True),
        ("ah", "aaaaaaaaah", True),
        ("ah", "jajajajajajaja", True),
        ("un millón", "1000000000", False),
        ("hola", "", False),
    ],
)
def test_loops(reference: str, hypothesis: str, loop: bool) -> None:
    assert is_loop(reference, hypothesis) is loop


def test_unlikely_speeds_are_found_whatever_they_are() -> None:
    speeds = np.random.default_rng(0).normal(15, 2, size=500).tolist()
    low, high = speed_limits([*speeds, 400.0, 0.01, 0.0])
    assert 8 < low < 11
    assert 20 < high < 28


@pytest.mark.parametrize(
    ("reference", "hypothesis", "seconds", "odd"),
    [
        ("pausa", "Pausa.", 2.0, False),  # one word and a silence, heard right
        ("pausa", "paus", 2.0, False),  # slow as its reference is
        ("pausa", "pausa gracias por ver el vídeo y hasta la próxima, suscríbete al canal", 2.0, True),
        ("una frase de lo más normal", "una", 2.0, True),
        ("una frase de lo más normal", "una frase de lo mas normal", 2.0, False),
        ("una frase de lo más normal", "", 2.0, False),
    ],
)
def test_right_transcripts_are_not_called_unlikely(reference: str, hypothesis: str, seconds: float, odd: bool) -> None:
    assert is_unlikely_speed(reference, hypothesis, seconds, (8.0, 28.0)) is odd


def test_few_utterances_have_no_interval_and_references_without_marks_no_f1() -> None:
    made = transcripts(40, 0.3, 0.1)
    plain = [replace(each, reference=each.reference.lower().strip(".?")) for each in made.utterances]
    plain = [replace(each, columns={"accent": "rare" if i < 4 else "common"}) for i, each in enumerate(plain)]
    results, _ = evaluate(Transcripts(made.source, plain, made.models, made.hypotheses, [], made.decodes))
    for model in results.models:
        assert model.punctuation_f1 is None
        assert model.capitalisation_f1 is None
    (accents,) = (each.values for each in results.slices if each.column == "accent")
    wers = {each.value: each.wer["orthographic"][0] for each in accents}
    assert wers["rare"].low is None
    assert holds_its_figure(wers["common"])
    assert results.models[0].flags["empty"].share == (0.0, None, None)
    markdown = to_markdown(make_tables(results))
    assert re.search(r"\| rare \| 4 \| [\d.]+ \| [\d.]+ \|", markdown)
    assert "| model 0 | \u2013 | \u2013 | 0.00 |" in markdown
    assert paired_difference([1, 0], [0, 0], [4, 4]) == (12.5, None, None, None)


def test_figures_agree_with_jiwer() -> None:
    made = transcripts(200, 0.3)
    results, _ = evaluate(made)
    for name, scoring in SCORINGS.items():
        references = [scoring(each.reference) for each in made.utterances]
        hypotheses = [scoring(each) for each in made.hypotheses[0]]
        out = jiwer.process_words(references, hypotheses)
        scores = results.models[0].scores[name]
        assert scores.wer.value == pytest.approx(100 * out.wer)
        assert scores.cer.value == pytest.approx(100 * jiwer.cer(references, hypotheses))
        assert scores.counts == (out.hits, out.substitutions, out.deletions, out.insertions)
        rates = (scores.wer, scores.cer, scores.substitutions, scores.deletions, scores.insertions)
        assert all(map(holds_its_figure, rates))
    assert results.models[0].scores["orthographic"].wer.value > 5


@pytest.mark.skipif(SCLITE is None, reason="sclite is not installed (Debian: sctk)")
def test_figures_agree_with_sclite(tmp_path: Path) -> None:
    """sclite weighs a substitution 4, a loss and an insertion 3; where errors stand apart both align alike."""
    made = transcripts(200, 0.3)
    results, _ = evaluate(made)
    texts = {"ref": [each.reference for each in made.utterances], "hyp": made.hypotheses[0]}
    for name, lines in texts.items():
        marked = "".join(f"{line} (speaker-{i:04d})\n" for i, line in enumerate(lines))
        (tmp_path / name).write_text(marked, encoding="utf-8")
    command = [
        str(SCLITE),
        "-s",
        "-e",
        "utf-8",
        "-r",
        "ref",
        "trn",
        "-h",
        "hyp",
        "trn",
        "-i",
        "rm",
        "-o",
        "rsum",
        "stdout",
    ]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=True).stdout
    (total,) = re.findall(r"\| Sum .*", out)
    _, words, hits, substitutions, deletions, insertions, errors, _ = map(int, re.findall(r"\d+", total))
    scores = results.models[0].scores["orthographic"]
    assert scores.counts == (hits, substitutions, deletions, insertions)
    assert scores.wer.value == pytest.approx(100 * errors / words)


def test_what_becomes_empty_is_scored_all_the_same() -> None:
    utterances = [
        ReferenceUtterance(2, "a.mp3", None, 1.0, "…", {}),
        ReferenceUtterance(3, "b.mp3", None, 1.0, "Uno", {}),
    ]
    results, _ = evaluate(Transcripts("t", utterances, ["m"], [["hola a todos", "uno"]], [], [Decode(1, [])]))
    assert results.models[0].scores["normalized"].counts.insertions == 3
    assert results.models[0].scores["normalized"].wer.value == 300.0
    assert len(results.utterances) == 2


def test_slices_hold_every_utterance_once() -> None:
    results, _ = evaluate(transcripts(120, 0.2, 0.1))
    columns = {each.column: each.values for each in results.slices}
    assert set(columns) == {"duration", "accent"}  # not the column of one value, nor the one of names
    assert {value.value for value in columns["accent"]} == {"Andes", "México", "(empty)"}
    for values in columns.values():
        assert sorted(i for value in values for i in value.utterances) == list(range(120))
        assert all(len(value.wer["normalized"]) == 2 for value in values)


def test_confusions_are_counted() -> None:
    texts = [compare("el año nuevo", heard)["normalized"] for heard in ("el ano nuevo", "el ano", "el año nuevo ya")]
    assert confusions(texts) == Confusions(
        substitutions=[Confusion("año", "ano", 2)],
        deletions=[Confusion("nuevo", "", 1)],
        insertions=[Confusion("", "ya", 1)],
    )


def test_tables_survive_any_name() -> None:
    made = transcripts(40, 0.2, 0.1)
    odd = Transcripts(made.source, made.utterances, ["a_b|c & 50%\n", "#1<img>"], made.hypotheses, [], made.decodes)
    tables = make_tables(evaluate(odd)[0])
    assert [len(table.rows) for table in tables][:3] == [8, 2, 4]
    for block in to_markdown(tables).strip().split("\n\n**"):
        lines = [line for line in block.split("\n") if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    latex = to_latex(tables)
    assert "&lt;img&gt;" in to_markdown(tables)
    assert "<" not in to_markdown(tables)
    assert r"a\_b|c \& 50\%" in latex
    assert r"\#1" in latex
    for line in re.findall(r"^.* \\\\$", latex, re.MULTILINE):
        assert len(re.findall(r"(?<!\\)&", line)) + 1 in {len(table.header) for table in tables}
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == len(tables)


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["runs/quickstart"], ["quickstart"]),
        (["runs/a/best", "runs/b/best"], ["a", "b"]),
        (["runs/a/checkpoints/last.ckpt", "runs/a"], ["a/last.ckpt", "runs/a"]),
        (["x/small", "y/small"], ["x/small", "y/small"]),
        (["runs/a", "runs/a"], ["a", "a (2)"]),
        (["openai/whisper-small", "runs/small"], ["whisper-small", "small"]),
        (["."], ["."]),
    ],
)
def test_names_of_models_are_short_and_different(sources: list[str], names: list[str]) -> None:
    assert name_models(sources) == names


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("modelos") / "al azar"
    WhisperModule(checkpoint=str(MODEL), random_weights=True, max_tokens=8).save_pretrained(folder)
    return folder


def add_columns(path: Path) -> None:
    """Return a CSV a column to slice by, and a row that cannot be used."""
    rows = read_rows(path)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["audio", "sentence", "accent"])
        writer.writerows([row["audio"], row["sentence"], "ñandú" if i % 2 else "<b>"] for i, row in enumerate(rows))
        writer.writerow(["audio/gone.opus", "nadie lo oye", "<b>"])


def test_the_tool_writes_a_whole_report(
    corpus: Path, random_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_columns(corpus / "test.csv")
    report = tmp_path / "report"
    arguments = [str(random_model), str(random_model), f"--report={report}", "--num_workers=0"]
    assert main([*arguments, f"--data={corpus / 'test.csv'}"]) == 0
    printed = capsys.readouterr().out
    assert "al azar minus al azar (2): 0.00 [0.00, 0.00] points, p 1.000" in printed
    assert "8 utterances" in printed
    assert "1 rows left out" in printed
    assert {path.name for path in report.iterdir()} == {
        *("index.html", "results.csv", "results.json", "table.md", "table.tex", "rejected.csv")
    }
    results = json.loads((report / "results.json").read_text(encoding="utf-8"))
    assert all(each["p_value"] == 1 and each["value"] == 0 for each in results["differences"])
    assert [row["reason"] for row in read_rows(report / "rejected.csv")] == ["missing"]
    assert [each["column"] for each in results["slices"]] == ["duration", "accent"]
    rows = read_rows(report / "results.csv")
    assert len(rows) == 16
    assert {row["csv.accent"] for row in rows} == {"ñandú", "<b>"}
    wrong = sum(int(row["orthographic.errors"]) for row in rows[:8]) / sum(
        int(row["orthographic.words"]) for row in rows[:8]
    )
    assert results["models"][0]["scores"]["orthographic"]["wer"][0] == pytest.approx(100 * wrong)
    page = (report / "index.html").read_text(encoding="utf-8")
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    assert "mis%20grabaciones%20en%20espa%C3%B1ol/audio/" in page
    # Without the CSV there are the slices by duration and by what the shards keep, and nothing to play.
    assert main([*arguments[:1], *arguments[2:], f"--data={corpus / 'test.shards'}"]) == 0
    again = json.loads((report / "results.json").read_text(encoding="utf-8"))
    assert again["models"][0]["scores"] == results["models"][0]["scores"]
    assert all(each["path"] is None for each in again["utterances"])


def test_models_are_compared_on_what_all_can_take(
    corpus: Path, random_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = tmp_path / "corto"
    shutil.copytree(MODEL, tmp_path / "config")
    config = json.loads((tmp_path / "config" / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config" / "config.json").write_text(
        json.dumps(config | {"max_source_positions": 100}), encoding="utf-8"
    )
    WhisperModule(checkpoint=str(tmp_path / "config"), random_weights=True, max_tokens=8).save_pretrained(short)
    report = tmp_path / "report"
    arguments = [
        str(short),
        str(random_model),
        f"--data={corpus / 'test.csv'}",
        f"--report={report}",
        "--num_workers=0",
    ]
    assert main([*arguments, "--names", "two seconds", "four seconds"]) == 0
    results = json.loads((report / "results.json").read_text(encoding="utf-8"))
    assert 0 < len(results["utterances"]) < 8
    assert all(each["seconds"] <= 2 for each in results["utterances"])
    assert {row["reason"] for row in results["data"]["rejected"]} == {"too long"}
    assert len(results["data"]["rejected"]) + len(results["utterances"]) == 8
    assert "two seconds minus four seconds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data=none.csv"], "none.csv"),
        (["--data=none.csv", "--names", "a", "b"], "--names: 1 different names"),
        (["--data=none.csv", "--batch_size=0"], "--batch_size: 0"),
        (["--data=none.csv", "--num_workers=-1"], "--num_workers: -1"),
        (["--data=none.csv", "--language=klingon"], "klingon"),
        (["--data=pipe:cat x"], "pipe:cat x"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], said: str, random_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(random_model), f"--report={tmp_path / 'report'}", *arguments]) == 2
    assert said in one_error(capsys)


def test_a_wrong_second_model_is_named_before_anything_is_decoded(
    corpus: Path, random_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report"
    none = str(tmp_path / "none")
    assert main([str(random_model), none, f"--data={corpus / 'test.csv'}", f"--report={report}"]) == 2
    assert none in one_error(capsys)
    assert list(report.iterdir()) == []  # reading the test set leaves a rejected.csv


def test_a_missing_package_is_named_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "num2words", None)
    assert main(["nothing", "--data=none.csv", f"--report={tmp_path / 'report'}"]) == 2
    assert "pip install 'whisper-lightning[report]'" in one_error(capsys)


@pytest.mark.slow
def test_fine_tuned_beats_zero_shot_and_the_figure_is_that_of_the_run(
    quickstart_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zero_shot = tmp_path / "zero-shot"
    WhisperModule(checkpoint=str(MODEL), random_weights=True).save_pretrained(zero_shot)
    copy = copy_corpus(tmp_path / "corpus", num_train=1, num_test=100)
    report = tmp_path / "report"
    models = [str(zero_shot), str(quickstart_run / "runs" / "quickstart")]
    assert main([*models, f"--data={copy / 'test.csv'}", f"--report={report}", "--num_workers=0"]) == 0
    results = json.loads((report / "results.json").read_text(encoding="utf-8"))
    (wer,) = re.findall(
        r"^WER ([\d.]+) % \[", (quickstart_run / "output.txt").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert f"{results['models'][1]['scores']['orthographic']['wer'][0]:.2f}" == wer
    for each in results["differences"]:
        assert each["value"] > 80 or each["rate"] == "cer"
        assert each["low"] > 0
        assert each["p_value"] < 0.001
