"""Several processes: each utterance once, the same totals, the same gradients, no hang; killed, stopped, continued."""

import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import GenerationConfig, WhisperForConditionalGeneration

from tests.conftest import copy_corpus, one_error, publish, quick_arguments
from tests.record import read, run_ranks
from tests.test_resume import differences, record
from tests.timed import speaking_corpus, write_timed_model
from whisper_lightning.cli import main
from whisper_lightning.data.build import build_shards

UTTERANCES = 26
FSDP = '{"class_path": "tests.record.CpuFSDP"}'


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven shards to train on, three to validate on."""
    folder = tmp_path_factory.mktemp("shards")
    copy_corpus(folder / "corpus", UTTERANCES, 11)
    for name in ("train", "test"):
        build_shards(folder / "corpus" / f"{name}.csv", folder / name, num_workers=0, rows_per_shard=4)
    assert len(list((folder / "train").glob("*.tar"))) == 7
    return folder


def arguments(shards: Path, folder: Path, *options: str) -> list[str]:
    return [
        *quick_arguments(shards / "corpus", folder),
        f"--data.train={shards / 'train'}",
        f"--data.val={shards / 'test'}",
        "--data.batch_size=2",
        "--data.eval_batch_size=2",
        "--trainer.max_steps=9",
        "--trainer.val_check_interval=4",
        "--resume.every_n_steps=2",
        *options,
    ]


def served(folder: Path, rank: int) -> dict[int, list[str]]:
    """Return the utterances of each epoch that a rank trained on."""
    found: dict[int, list[str]] = {}
    for line in read(folder.with_name(f"{folder.name}.record.{rank}")):
        if "batch" in line:
            found.setdefault(line["batch"][0], []).extend(line["keys"])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_each_utterance_once_per_epoch_and_equal_totals(
    num_ranks: int, shards: Path, quickstart_run: Path, tmp_path: Path
) -> None:
    """The trained quickstart is scored before the first step: its totals do not depend on the number of ranks."""
    several, one = tmp_path / "several", tmp_path / "one"
    best = quickstart_run / "runs" / "quickstart" / "best"
    options = [f"--model.checkpoint={best}", "--model.random_weights=false", "--data.num_workers=1"]
    codes = run_ranks([*arguments(shards, several, *options), *record(several)], num_ranks)
    assert codes == [0] * num_ranks
    assert main(arguments(shards, one, *options, "--trainer.max_steps=2")) == 0
    ranks = [served(several, rank) for rank in range(num_ranks)]
    first_epoch = Counter(key for rank in ranks for key in rank[0])
    assert sorted(first_epoch.values()) == [1] * UTTERANCES
    steps = [len(read(several.with_name(f"several.record.{rank}"))) for rank in range(num_ranks)]
    assert len(set(steps)) == 1
    first = [(folder / "transcripts" / "step-000000.csv").read_bytes() for folder in (one, several)]
    assert first[0] == first[1]
    totals = [pd.read_csv(f / "metrics.csv").filter(regex="^val/(?!loss)").iloc[0].to_dict() for f in (one, several)]
    assert totals[0] == totals[1]
    losses = [pd.read_csv(folder / "metrics.csv")["val/loss"].iloc[0] for folder in (one, several)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("adapters", [[], ["--model.lora_rank=4", "--model.dora=true"]], ids=["weights", "adapters"])
def test_two_ranks_have_the_gradients_of_one_process(adapters: list[str], tmp_path: Path) -> None:
    """A global batch of 16 utterances: one batch of 16, or 8 on each of two ranks. A mean of means would differ."""
    corpus, model = copy_corpus(tmp_path / "corpus", 16), publish(tmp_path / "model")
    options = [f"--model.checkpoint={model}", "--model.random_weights=false", "--trainer.val_check_interval=2"]
    options += ["--model.tail=exact", *adapters]
    one, two = tmp_path / "one", tmp_path / "two"
    assert main([*quick_arguments(corpus, one), *options, "--data.batch_size=16"]) == 0
    assert run_ranks([*quick_arguments(corpus, two), *options, "--data.batch_size=8"], 2) == [0, 0]
    metrics = [pd.read_csv(folder / "metrics.csv") for folder in (one, two)]
    for column in ("train/loss", "train/gradient_norm"):
        expected, ours = (list(table[column].dropna()) for table in metrics)
        assert len(expected) == 4
        assert ours == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_two_ranks_share_the_packed_windows(tmp_path: Path) -> None:
    """One process and two: each utterance once, in the same windows with the same sound, and the same gradients."""
    corpus, model = speaking_corpus(tmp_path / "corpus", UTTERANCES), write_timed_model(tmp_path / "model")
    options = ["--data.pack=0.7", "--data.timestamps=0.5", "--data.prompt=0.5", "--data.augment=true"]
    options += ["--data.speed=true", f"--data.noise={corpus / 'audio'}", f"--data.reverb={corpus / 'audio'}"]
    options += [f"--model.checkpoint={model}", "--model.tail=exact", "--model.label_smoothing=0.1"]
    options += ["--trainer.max_steps=5"]
    one, two = tmp_path / "one", tmp_path / "two"
    whole, half = "--data.batch_size=40", "--data.batch_size=20"  # an epoch is one step
    assert main([*quick_arguments(corpus, one), *record(one), *options, whole]) == 0
    assert run_ranks([*quick_arguments(corpus, two), *record(two), *options, half], 2) == [0, 0]
    expected, ranks = served(one, 0), [served(two, rank) for rank in (0, 1)]
    assert len(expected) == 5
    for epoch, keys in expected.items():
        assert sorted(ranks[0][epoch] + ranks[1][epoch]) == sorted(keys)
        assert sorted("+".join(keys).split("+")) == [f"{row:08d}" for row in range(2, UTTERANCES + 2)]
    assert any("+" in key for key in expected[0])
    for folder in (one, two):
        assert GenerationConfig.from_pretrained(folder / "best").tells_times
    metrics = [pd.read_csv(folder / "metrics.csv") for folder in (one, two)]
    for column in ("train/loss", "train/gradient_norm"):
        expected_values, ours = (list(table[column].dropna()) for table in metrics)
        assert len(expected_values) == 5
        assert ours == pytest.approx(expected_values, rel=1e-4)


@pytest.fixture(scope="module")
def straight(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks, not interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "straight"
    options = ["--model.spec_augment=true", "--data.num_workers=1"]
    assert run_ranks([*arguments(shards, folder, *options), *record(folder)], 2) == [0, 0]
    return folder


STOPS = {
    "one rank killed": (signal.SIGKILL, 1, None),
    "SIGTERM to rank 0": (signal.SIGTERM, 0, 75),
    "SIGTERM to rank 1": (signal.SIGTERM, 1, 75),
    "SIGTERM to the group with workers": (signal.SIGTERM, -1, 75),
    "Ctrl-C to the group with workers": (signal.SIGINT, -1, 130),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STOPS)
def test_two_ranks_stopped_and_continued(name: str, straight: Path, shards: Path) -> None:
    number, rank, code = STOPS[name]
    broken = straight.with_name(name)
    command = arguments(shards, broken, "--model.spec_augment=true", "--data.num_workers=1")
    start = time.monotonic()
    codes = run_ranks([*command, *record(broken, "train", 5, number=number, rank=rank)], 2, timeout_seconds=120)
    print(f"{name}: exit codes {codes} after {time.monotonic() - start:.1f} s")  # noqa: T201
    assert 1000 not in codes, "hangs"
    assert codes == [code, code] if code else 0 not in codes
    assert run_ranks([*command, *record(broken), "--ckpt_path=last"], 2) == [0, 0]
    assert differences(straight, broken, 0) + differences(straight, broken, 1) == []


@pytest.mark.slow
def test_another_number_of_ranks_is_refused(
    straight: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    options = ["--model.spec_augment=true", "--ckpt_path=last"]
    assert main(arguments(shards, run, *options)) == 2
    assert "number of processes was 2, now 1" in one_error(capsys)


@pytest.mark.slow
def test_a_sharded_model(
    shards: Path, quickstart_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """FSDP: the losses of DDP, and files that know nothing of shards."""
    plain, sharded = (tmp_path / name for name in ("plain", "sharded"))
    best = quickstart_run / "runs" / "quickstart" / "best"
    options = [f"--model.checkpoint={best}", "--model.random_weights=false", "--model.learning_rate=1e-3"]
    commands = {run: [*arguments(shards, run, *options), *record(run)] for run in (plain, sharded)}
    assert run_ranks(commands[plain], 2) == [0, 0]
    assert run_ranks(commands[sharded], 2, strategy=FSDP) == [0, 0]
    metrics = [pd.read_csv(run / "metrics.csv") for run in (plain, sharded)]
    for column in ("train/loss", "train/gradient_norm", "val/loss"):
        expected, ours = (list(table[column].dropna()) for table in metrics)
        assert ours == pytest.approx(expected, rel=1e-3), column
    clipping = ["--trainer.gradient_clip_algorithm=value", "--trainer.gradient_clip_val=1e-4"]
    for run, strategy in ((plain, "ddp"), (sharded, FSDP)):
        by_value = run.with_name(f"{run.name} by value")
        assert run_ranks([*arguments(shards, by_value, *options, *clipping)], 2, strategy=strategy) == [0, 0]
        metrics.append(pd.read_csv(by_value / "metrics.csv"))
    expected, ours, unclipped = (list(table["train/loss"].dropna()) for table in (*metrics[2:], metrics[0]))
    assert ours == pytest.approx(expected, rel=1e-3)
    assert ours[1:] != pytest.approx(unclipped[1:], rel=1e-3)
    assert main([*commands[sharded], "--ckpt_path=last", f"--trainer.strategy={FSDP}", "--trainer.devices=1"]) == 2
    assert "fsdp" in one_error(capsys)
    one, two = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in (plain, sharded)
    )
    assert {name: value.shape for name, value in one.items()} == {name: value.shape for name, value in two.items()}
    loaded = WhisperForConditionalGeneration.from_pretrained(sharded / "best").state_dict()
    assert loaded["model.encoder.conv1.weight"].shape == one["whisper.model.encoder.conv1.weight"].shape


@pytest.mark.slow
def test_the_command_starts_its_ranks_itself_and_stops_them(shards: Path, tmp_path: Path) -> None:
    """As typed in a terminal: one command, two devices; SIGTERM goes to the process that was typed."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "whisper_lightning", *arguments(shards, run, "--trainer.max_steps=4000")]
    command += ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.val_check_interval=4000"]
    process = subprocess.Popen(command, cwd=tmp_path)
    last = run / "checkpoints" / "last.ckpt"
    end = time.monotonic() + 120
    while not last.is_file() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    print(f"exit code 75 after {time.monotonic() - start:.1f} s")  # noqa: T201
    assert torch.load(last, weights_only=True)["global_step"] > 0
