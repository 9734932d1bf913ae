"""One line for each mistake, that says what to do instead; and untrusted configurations."""

from pathlib import Path

import pytest

from tests.conftest import one_error
from whisper_lightning.cli import main


@pytest.fixture(autouse=True)
def nothing_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder: who has just run the quickstart has runs/quickstart in theirs."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.lerning_rate=1"], "did you mean --model.learning_rate?"),
        (["--model.learning_rat=1"], "did you mean --model.learning_rate?"),
        (["--model.learning_rat", "1"], "did you mean --model.learning_rate?"),
        (["--learning_rate=1"], "did you mean --model.learning_rate?"),
        (
            ["--model.schedule=lineal"],
            "model.schedule: 'lineal' is none of linear, cosine, constant; did you mean linear?",
        ),
        (["--model.learning_rate=rapido"], "model.learning_rate: 'rapido' is not a number"),
        (["--trainer.precision=bf16-mixd"], "did you mean bf16-mixed?"),
        (["--trainer.limit_val_batches=x"], "'x' is not a whole number or a number or null"),
        (
            ["--trainer.callbacks=foo.Bar"],
            "trainer.callbacks: Problem with given class_path 'foo.Bar': No module named 'foo'",
        ),
        (["--config=quickstart.yaml", "--trainer.accelerator=gpuu"], "Available names are: auto"),
        (["train.csv"], "'train.csv' is no option; options begin with --"),
        (["--config=rtx3600.yaml"], "did you mean rtx3060.yaml?"),
        (["--data.batch_size=0"], "data.batch_size: 0; the least is 1"),
        (["--data.num_workers=-1"], "data.num_workers: -1; the least is 0"),
        (["--trainer.accumulate_grad_batches=0"], "the least is 1"),
        (["--resume.every_n_steps=0"], "the least is 1"),
    ],
)
def test_a_mistyped_option_is_one_short_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *arguments]) == 2
    error = one_error(capsys)
    assert message in error
    assert len(error) < 300
    assert "Union" not in error


def test_a_mistyped_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fti"]) == 2
    commands = "fit, validate, test, predict, plan, shards, evaluate, export, transcribe"
    assert one_error(capsys) == f"error: 'fti' is no command ({commands}); did you mean fit?"


def test_no_arguments_print_a_short_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert "fit --config quickstart.yaml" in printed
    assert "quickstart.yaml, rtx3060.yaml" in printed
    assert len(printed.splitlines()) < 15


def test_our_options_come_first_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    printed = capsys.readouterr().out
    places = [printed.index(f"--{key} ") for key in ("model.checkpoint", "data.train", "evaluate.num_shown")]
    assert places == sorted(places)
    assert places[-1] < printed.index("--trainer.accelerator ")


def test_options_in_the_environment_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PL_FIT__TRAINER__MAX_STEPS", "7")
    assert main(["fit", "--config=quickstart.yaml"]) == 2
    assert "give --trainer.max_steps 7 on the command line" in one_error(capsys)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("data:\n  val: café.csv\n".encode("cp1252"), "is not UTF-8 (byte 17)"),
        (BOMB.encode(), "stands for more than 10,000 values"),
        (b"a: &a [*a]\n", "stands for more than 10,000 values"),
        (b"trainer: [\n", "is no YAML that can be read"),
        (b"\x00\x01", "is no YAML that can be read"),
        (b"hola", "holds no options"),
        (b"", "holds no options"),
        (b"trainer:\n  max_stepz: 5\n", "did you mean --trainer.max_steps?"),
        (b"trainr:\n  max_steps: 5\n", "did you mean --trainer.max_steps?"),
    ],
)
def test_a_configuration_that_is_none_is_one_line(
    content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    assert main(["fit", f"--config={tmp_path / 'mine.yaml'}"]) == 2
    assert message in one_error(capsys)
