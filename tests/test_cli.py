"""The command line for real: runs of a few steps, what they leave, and one line for each mistake."""

import csv
import json
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
import wandb
from safetensors.torch import load_file

from tests.conftest import MODEL, copy_corpus, one_error, quick_arguments
from tests.test_shards import to_version_1
from whisper_lightning.cli import main
from whisper_lightning.data.build import build_shards


def test_fit_leaves_everything_in_its_folder(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "uno"
    assert main([*quick_arguments(corpus, run), "--data.num_workers=1"]) == 0
    names = {path.name for path in run.iterdir()}
    assert names >= {"config.yaml", "checkpoints", "transcripts", "metrics.csv", "rejected.csv", "best", "tensorboard"}
    transcripts = {path.name for path in (run / "transcripts").iterdir()}
    assert transcripts == {"before.csv", "step-000000.csv", "step-000002.csv", "step-000004.csv", "test.csv"}
    metrics = pd.read_csv(run / "metrics.csv")
    assert metrics["train/loss"].count() == 4
    assert list(metrics.loc[metrics["val/wer"].notna(), "step"]) == [0, 2, 4]
    assert metrics["test/wer"].count() == 1
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4


def _ask_for_too_much(*_: object) -> torch.Tensor:
    return torch.empty(2**58)


def _find_too_little(*_: object) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nAnd more.")  # as torch words it


@pytest.mark.parametrize("step", [_ask_for_too_much, _find_too_little])
def test_no_memory_is_one_line(
    step: Callable[..., torch.Tensor],
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("whisper_lightning.model.module.training_states", step)
    assert main(quick_arguments(corpus, tmp_path / "run")) == 2
    error = one_error(capsys)
    assert "there is no memory for this (" in error
    assert "--data.max_batch_seconds" in error
    assert "whisper-lightning plan" in error


def test_second_run_into_a_used_folder_is_refused(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").touch()
    assert main(quick_arguments(corpus, run)) == 2
    assert one_error(capsys).startswith(f"error: trainer.default_root_dir: {run} already holds a run")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--model.lerning_rate=1", "lerning_rate"),
        ("--model.learning_rate=rápido", "learning_rate"),
        ("--model.warmup_steps=4", "warmup_steps: 4 is not below"),
        ("--model.language=klingon", "klingon"),
        ("--data.train=no.csv", "no.csv"),
        ("--config=no.yaml", "rtx3060.yaml"),
        ("--ckpt_path=last", "no checkpoint"),
        ("--model.checkpoint=no/such/model", "no/such/model"),
        ("--trainer.accumulate_grad_batches=3", "set it to 6"),
        ("--trainer.max_steps=-1", "max_steps"),
        ("--data.val=1.5", "1.5"),
    ],
)
def test_one_line_for_each_mistake(
    argument: str, message: str, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*quick_arguments(corpus, tmp_path / "run"), argument]) == 2
    assert message in one_error(capsys)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_too_many_bad_rows_stop_before_training(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (corpus / "train.csv").open("a", encoding="utf-8") as file:
        file.write("audio/no está.wav,hola\n" * 4 + "pipe:touch canary,hola\n")
    run = tmp_path / "run"
    assert main(quick_arguments(corpus, run)) == 2
    assert "5 of 29 rows" in one_error(capsys)
    with (run / "rejected.csv").open(encoding="utf-8", newline="") as file:
        rejected = list(csv.DictReader(file))
    assert [row["reason"] for row in rejected] == ["missing"] * 4 + ["not a local file"]
    assert rejected[0]["row"] == "26"
    assert main([*quick_arguments(corpus, tmp_path / "b"), "--data.max_rejected_fraction=0.5"]) == 0


def test_too_long_for_the_model_is_rejected_not_cut(corpus: Path, tmp_path: Path) -> None:
    import numpy as np
    import soundfile

    soundfile.write(corpus / "largo.wav", np.sin(np.arange(5 * 16_000) * 0.1) * 0.1, 16_000)
    with (corpus / "train.csv").open("a", encoding="utf-8") as file:
        file.write(f"largo.wav,demasiado largo\naudio/000000.opus,{'luz ' * 100}\n")
    run = tmp_path / "run"
    assert main(quick_arguments(corpus, run)) == 0
    reasons = set(pd.read_csv(run / "rejected.csv")["reason"])
    assert reasons == {"too long", "too many tokens"}


def test_special_tokens_are_rejected_and_other_text_stays_as_it_is(corpus: Path, tmp_path: Path) -> None:
    """In a CSV, and in a folder of shards that was built when they were let through.

    What a spreadsheet would take for a formula is data: our CSVs are read by programs, and a dash begins many a line of
    dialogue.
    """
    formulas = ["=1+1", "+34 es España", "- Hola", "@ana", '=HYPERLINK("http://127.0.0.1:9")', "'=1"]
    with (corpus / "train.csv").open("a", encoding="utf-8") as file:
        file.write("audio/000000.opus,hola <@0.00@> amigo\n")
    with (corpus / "test.csv").open("a", encoding="utf-8") as file:
        file.write("audio/000000.opus,hola<|endoftext|>\n")
        csv.writer(file).writerows(("audio/000000.opus", formula) for formula in formulas)
    folder = tmp_path / "shards"
    build_shards(corpus / "train.csv", folder, num_workers=0)
    content = (folder / "000000.tar").read_bytes().replace(b"<@0.00@>", b"<|0.00|>")
    (folder / "000000.tar").write_bytes(content)
    to_version_1(folder)
    run = tmp_path / "run"
    arguments = [f"--data.train={folder}", "--data.max_rejected_fraction=0.5", "--trainer.max_steps=2"]
    assert main([*quick_arguments(corpus, run), *arguments]) == 0
    rejected = pd.read_csv(run / "rejected.csv")
    assert list(rejected["split"][:2]) == ["train", "val"]
    assert list(rejected["reason"][:2]) == ["special token", "special token"]
    assert list(rejected["row"][:2]) == [26, 10]
    assert "<|0.00|>" in rejected["detail"][0]
    assert "<|endoftext|>" in rejected["detail"][1]
    assert list(pd.read_csv(run / "transcripts" / "step-000000.csv")["reference"])[-6:] == formulas


def losses(run: Path) -> list[float]:
    return list(pd.read_csv(run / "metrics.csv")["train/loss"].dropna())


def weights(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return state


def test_accumulation_gives_the_gradients_of_one_large_batch(corpus: Path, tmp_path: Path) -> None:
    """16 x 1 and 4 x 4: the same losses, gradient norms and weights. A mean of means would differ."""
    for name, size, group in (("one", 16, 1), ("four", 4, 4)):
        arguments = [
            *quick_arguments(copy_corpus(tmp_path / f"data-{name}", 16), tmp_path / name),
            f"--data.batch_size={size}",
            f"--trainer.accumulate_grad_batches={group}",
            f"--trainer.val_check_interval={2 * group}",
            "--model.tail=exact",  # the sample of the silence depends on where a batch's speech ends
        ]
        assert main(arguments) == 0
    one, four = (pd.read_csv(tmp_path / name / "metrics.csv") for name in ("one", "four"))
    for column in ("train/loss", "train/gradient_norm"):
        assert list(one[column].dropna()) == pytest.approx(list(four[column].dropna()), rel=1e-4)


def test_resume_continues_the_same_run(corpus: Path, tmp_path: Path) -> None:
    """Interrupted after step 2 and continued: the losses and weights of the straight run, to the last bit."""
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    options = ["--model.spec_augment=true", "--resume.every_n_steps=1", "--trainer.val_check_interval=3"]
    assert main([*quick_arguments(corpus, straight), *options]) == 0
    # A file where transcripts of step 3 should go: the run breaks there, as with a full disk.
    (broken / "transcripts" / "step-000003.csv").mkdir(parents=True)
    with pytest.raises(OSError, match="step-000003"):
        main([*quick_arguments(corpus, broken), *options])
    assert torch.load(broken / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    (broken / "transcripts" / "step-000003.csv").rmdir()
    assert main([*quick_arguments(corpus, broken), *options, "--ckpt_path=last"]) == 0
    assert losses(broken)[-2:] == losses(straight)[-2:]
    expected, ours = weights(straight), weights(broken)
    assert all(torch.equal(expected[name], ours[name]) for name in expected)


def test_validate_test_and_predict_with_the_best_model(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(quick_arguments(corpus, run)) == 0
    common = [f"--config={run / 'config.yaml'}", f"--model.checkpoint={run / 'best'}", "--model.random_weights=false"]
    assert main(["validate", *common]) == 0
    assert main(["test", *common]) == 0
    (corpus / "new.csv").write_text("audio\naudio/000000.opus\naudio/000001.opus\n", encoding="utf-8")
    assert main(["predict", *common, f"--data.predict={corpus / 'new.csv'}"]) == 0
    predictions = pd.read_csv(run / "predictions.csv")
    assert list(predictions["audio"]) == ["audio/000000.opus", "audio/000001.opus"]
    best = load_file(run / "best" / "model.safetensors")
    assert {weight.dtype for weight in best.values()} == {torch.float16}
    assert "proj_out.weight" not in best


def test_share_of_the_training_utterances_as_validation(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main([*quick_arguments(corpus, run), "--data.val=0.25"]) == 0
    assert len(pd.read_csv(run / "transcripts" / "step-000002.csv")) == 6


@pytest.mark.slow
def test_wandb_goes_offline_without_a_login(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    run = tmp_path / "run"
    assert main([*quick_arguments(corpus, run), "--wandb.enabled=true"]) == 0
    wandb.finish()
    (folder,) = (run / "wandb").glob("offline-run-*")
    identifier = (run / "wandb_run_id.txt").read_text(encoding="utf-8")
    assert folder.name.endswith(identifier)
    (record,) = folder.glob("*.wandb")
    content = record.read_bytes()
    for name in (b"train/loss", b"train/learning_rate", b"val/wer", b"speed/audio_seconds_per_second", b"warmup_steps"):
        assert name in content, name
    tables = list(folder.glob("files/media/table/val/transcripts_*.json"))
    heard = next(iter(folder.glob("files/media/table/val/shown_*.json"))).read_text(encoding="utf-8")
    assert json.loads(heard)["columns"] == ["key", "audio", "reference", "hypothesis", "wer"]
    assert b"media/audio/" in content
    assert json.loads(tables[0].read_text(encoding="utf-8"))["columns"] == ["key", "reference", "hypothesis", "wer"]
    # A continued run is the same run there.
    again = [*quick_arguments(corpus, run), "--wandb.enabled=true", "--trainer.max_steps=6", "--ckpt_path=last"]
    time.sleep(1.1)  # wandb names folders by the second
    assert main(again) == 0
    wandb.finish()
    names = [folder.name for folder in (run / "wandb").glob("offline-run-*")]
    assert len(names) == 2
    assert all(name.endswith(identifier) for name in names)


@pytest.mark.slow
def test_the_key_of_wandb_is_nowhere_in_the_run(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = "0123456789abcdef" * 2 + "feedbeef"
    monkeypatch.setenv("WANDB_API_KEY", secret)
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "run"
    assert main([*quick_arguments(corpus, run), "--wandb.enabled=true"]) == 0
    wandb.finish()
    files = [path for path in run.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if secret.encode() in path.read_bytes()] == []
    assert secret not in "".join(capfd.readouterr())


def test_loss_that_is_not_finite_names_the_utterances(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*quick_arguments(corpus, tmp_path / "run"), "--model.learning_rate=1e30"]) == 2
    error = one_error(capsys)
    assert "not finite" in error
    assert "0000000" in error


def test_model_folder_given_by_path(corpus: Path, tmp_path: Path) -> None:
    arguments = [*quick_arguments(corpus, tmp_path / "run"), f"--model.checkpoint={MODEL}"]
    assert main([*arguments, "--trainer.fast_dev_run=true"]) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("cuda", "said"), [("13.0", "finds no GPU"), (None, "pytorch.org")], ids=["no GPU", "torch without CUDA"]
)
def test_a_run_that_ends_up_on_the_cpu_says_so(
    cuda: str | None,
    said: str,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As `rtx3060.yaml` does where torch was installed without CUDA; not where the CPU was asked for."""
    monkeypatch.setattr(torch.version, "cuda", cuda)
    for accelerator, expected in (("auto", True), ("cpu", False)):
        caplog.clear()
        arguments = [*quick_arguments(corpus, tmp_path / accelerator), f"--trainer.accelerator={accelerator}"]
        assert main(arguments) == 0
        assert ("Training on the CPU" in caplog.text and said in caplog.text) == expected
