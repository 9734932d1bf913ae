"""The benchmark against the usual recipe: that it compares like with like."""

from __future__ import annotations

import importlib
import re
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

ROUNDS = 3


@pytest.fixture
def bench() -> ModuleType:
    pytest.importorskip("datasets")
    pytest.importorskip("espeakng_loader")
    return importlib.import_module("benchmarks.bench")


def work(turns: Any, job: Any) -> None:
    """A program of some stages, which writes down when it works; half of them hold 64 MiB."""
    for number in range(ROUNDS):
        begin = time.monotonic()
        held = b"x" * (64 * 2**20) if number % 2 else b""
        time.sleep(0.3)
        with job.open("a", encoding="utf-8") as file:
            file.write(f"{job.stem} {begin} {time.monotonic()}\n")
        turns.done(f"stage {number}", utterances=4)
        del held


def fail(turns: Any, job: Any) -> None:
    turns.done("stage 0")
    raise ValueError("no such thing")


def test_only_one_program_works_at_a_time(bench: ModuleType, tmp_path: Path) -> None:
    programs = [bench.Program(name, tmp_path / f"{name}.log") for name in ("one", "two")]
    for program in programs:
        program.start("tests.test_bench.work", tmp_path / f"{program.name}.txt")
    bench.take_turns(programs, lambda: None)
    spans = [
        tuple(map(float, line.split()[1:]))
        for program in programs
        for line in (tmp_path / f"{program.name}.txt").read_text(encoding="utf-8").splitlines()
    ]
    assert len(spans) == 2 * ROUNDS
    assert all(end <= begin for (_, end), (begin, _) in zip(sorted(spans), sorted(spans)[1:], strict=False))
    for program in programs:
        assert [stage.name for stage in program.stages] == [f"stage {number}" for number in range(ROUNDS)]
        assert all(0.3 <= stage.seconds < 5 and stage.utterances == 4 for stage in program.stages)
        lean, holding, _ = (stage.peak_mib for stage in program.stages)
        assert 55 < holding - lean < 80


def test_a_program_that_fails_names_its_log_and_ends_the_others(bench: ModuleType, tmp_path: Path) -> None:
    programs = [bench.Program(name, tmp_path / f"{name}.log") for name in ("works", "fails")]
    for program, function in zip(programs, ("work", "fail"), strict=True):
        program.start(f"tests.test_bench.{function}", tmp_path / f"{program.name}.txt")
    with pytest.raises(RuntimeError, match=r"fails failed; see .*fails\.log"):
        bench.take_turns(programs, lambda: None)
    assert "no such thing" in (tmp_path / "fails.log").read_text(encoding="utf-8")
    assert not any(program._process.is_alive() for program in programs)


def test_ratios_are_per_utterance(bench: ModuleType) -> None:
    """Twice the utterances in half the time is four times as fast, however they fall into batches."""
    theirs = [bench.Stage("step", 8.0, 16, 0.0)] * 3
    ours = [bench.Stage("step", 2.0, 8, 0.0), bench.Stage("step", 4.0, 16, 0.0), bench.Stage("step", 4.0, 16, 0.0)]
    assert bench.ratio(theirs, ours) == "2.0× (2.0 to 2.0)"
    assert bench.ratio(theirs[:1], ours[:1]) == "2.0×"


@pytest.mark.slow
def test_the_whole_comparison_on_a_small_model(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both sides run to the end; what does not depend on the machine's speed is as promised."""
    small = {"d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256}
    heads = {"encoder_attention_heads": 1, "decoder_attention_heads": 1}
    monkeypatch.setitem(bench.SHAPES, "small", bench.COMMON | small | heads)
    steps = ["--max_steps=4", "--evaluations=4", "--num_train=32", "--num_test=4", "--tail=40"]
    assert bench.main([f"--out={tmp_path}", "--sizes=small", *steps]) == 0
    table = capsys.readouterr().out
    ratios = {
        name: float(value)
        for name, value in re.findall(r"^\| ([^|]+?) \| [^|]+ \| [^|]+\*\*([\d.]+)×", table, re.MULTILINE)
    }
    assert len(ratios) == 10, table
    assert ratios["data on disk, kB per utterance"] >= 9
    # The checkpoint before the last is kept as well: two with the optimizer's states, where it was one (3.4).
    assert ratios["checkpoints of a run of 4 evaluations, MB"] >= 1.8
    assert ratios["training step, s per utterance seen"] > 1
    assert ratios["evaluation with loss, s per utterance"] > 1


@pytest.mark.slow
def test_the_comparison_of_quality(
    quickstart_run: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows of the same seeds, the first compared with itself; what is trained already is not trained again."""
    best = quickstart_run / "runs" / "quickstart" / "best"
    arguments = [str(best), str(corpus / "train.csv"), str(corpus / "test.csv"), f"--out={tmp_path / 'out'}"]
    arguments += ["--tails", "exact", "10", "--seeds", "1", "2", "--max_steps=4", "--learning_rate=0.003"]
    tables = []
    for _ in range(2):
        assert importlib.import_module("benchmarks.bench_quality").main(arguments) == 0
        tables.append([line for line in capsys.readouterr().out.splitlines() if line.startswith("|")])
    assert tables[0] == tables[1]
    exact, ten = (line.split("|") for line in tables[0][-2:])
    assert (exact[1].strip(), ten[1].strip()) == ("exact", "10")
    assert exact[3].strip() == "0.00 [0.00, 0.00]"
    assert len(ten[2].split(";")) == 2


@pytest.mark.slow
def test_what_is_forgotten_and_what_guards_save(
    published: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A guard that is the validation itself gets better, so the best step is kept, and both rows are of one model."""
    csvs = [str(corpus / name) for name in ("train.csv", "test.csv", "test.csv")]
    arguments = [str(published), *csvs, "--guard", f"same={corpus / 'test.csv'}", f"--out={tmp_path / 'out'}"]
    arguments += ["--seeds", "1", "--max_steps=48", "--learning_rate=0.003", "--batch_size=8", "--alphas=[0.5]"]
    assert importlib.import_module("benchmarks.forgetting").main(arguments) == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith(("| best step", "| guarded"))]
    naive, guarded = ([cell.strip() for cell in line.split("|")[2:-1]] for line in lines)
    alphas = pd.read_csv(tmp_path / "out" / "guarded-1" / "alphas.csv")
    assert list(alphas["alpha"]) == [0, 0.5, 1]
    assert not (tmp_path / "out" / "naive-1" / "alphas.csv").exists()
    better = alphas["wer"].iloc[1] <= alphas["wer"].iloc[2]
    assert (float(guarded[0]) <= float(naive[0])) if better else guarded == naive
    assert float(naive[0]) < 100
