"""Each option of ours changes what it says, and nothing else: a table over all of `fit --help`."""

import contextlib
import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
import wandb

from tests import test_adapters, test_guards, test_regularised, test_suppressed
from tests.conftest import copy_corpus, one_error, quick_arguments, read_rows
from tests.faulty_server import Faults, serve
from tests.timed import write_timed_model
from whisper_lightning.cli import main
from whisper_lightning.data import transfer
from whisper_lightning.data.build import build_shards
from whisper_lightning.model.module import WhisperModule

TRAINING = {"training batches", "training seconds", "training audio", "training sentences"}
VALIDATION = {"validation batches", "validation audio", "validation sentences"}
BATCHES = {"validation batches", "validation frames", "test batches"}
TABLE: dict[str, tuple[str, set[str]]] = {
    "model.checkpoint": ("{folder}/other", {"weights at the start"}),
    "model.random_weights": ("true", {"weights at the start"}),
    "model.initial_weights": ("{folder}/base/checkpoints/last.ckpt", {"weights at the start"}),
    "model.language": ("gl", {"prompts"}),
    "model.task": ("translate", {"prompts"}),
    "model.tail": ("exact", {"every position", "validation frames"}),
    "model.learning_rate": ("0.002", {"learning rates"}),
    "model.warmup_steps": ("3", {"learning rates"}),
    "model.schedule": ("cosine", {"learning rates"}),
    "model.weight_decay": ("0.1", {"weight decay"}),
    "model.layer_decay": ("0.5", {"weight decay"}),  # each layer has groups of its own; the first is the top
    "model.activation_seconds": ("5", {"encoder calls"}),
    "model.max_tokens": ("7", {"tokens decoded"}),
    "model.num_beams": ("2", {"beams"}),
    "model.spec_augment": ("true", {"masks"}),
    "data.train": ("{folder}/corpus/other.csv", TRAINING),
    "data.val": ("{folder}/corpus/other.csv", {*VALIDATION, "test batches", "validation frames"}),
    "data.test": ("{folder}/corpus/other.csv", {"test batches", "rows shown"}),  # it is decoded before training as well
    "data.audio_root": ("{folder}/quiet", {"training audio", "validation audio"}),
    "data.columns": ("[audio, english]", {"training sentences", "validation sentences"}),
    "data.batch_size": ("8", {"training batches", "training seconds"}),
    "data.eval_batch_size": ("2", BATCHES),
    "data.max_batch_seconds": ("5", {*BATCHES, "training batches", "training seconds"}),
    "data.augment": ("true", {"training audio"}),
    "data.speed": ("true", {"training audio", "training seconds"}),
    "data.noise": ("{folder}/quiet", {"training audio"}),
    "data.reverb": ("{folder}/quiet", {"training audio"}),
    "data.timestamps": ("1", {"prompts"}),
    "data.pack": ("1", {*TRAINING, "prompts"}),
    "data.prompt": ("1", {"prompts"}),
    "data.num_workers": ("1", {"workers"}),
    "evaluate.num_shown": ("1", {"rows shown"}),
    "resume.every_n_steps": ("3", {"saves"}),
    "report.enabled": ("false", {"report"}),
}
"""Option, another value than the runs' own, and all that it changes."""
ELSEWHERE = {
    "model.suppress_tokens": "test_fit_lets_it_write_what_its_sentences_have",
    "model.freeze_encoder": "test_a_frozen_encoder_never_changes",
    "model.lora_rank": "test_what_is_frozen_stays_and_what_leaves_the_run_is_whole",
    "model.lora_targets": "test_merged_as_peft_merges",
    "model.dora": "test_merged_as_peft_merges",
    "model.label_smoothing": "test_smoothing_and_layer_decay_train_otherwise",
    "model.layer_drop": "test_layers_are_left_out_in_training_alone",
    "data.predict": "test_predict_transcribes_its_own_csv",
    "data.cache_dir": "test_remote_shards_are_kept_where_the_option_says",
    "data.cache_gib": "test_a_small_cache_is_warned_of",
    "data.min_kib_per_second": "test_a_server_slower_than_the_option_is_given_up",
    "data.max_rejected_fraction": "test_rows_that_may_be_rejected",
    "data.guard": "test_guards_are_measured_before_while_and_after_training",
    "data.guard_languages": "test_a_guard_is_decoded_in_its_rows_languages",
    "data.guard_windows": "test_clips_of_the_validation_are_a_guard_in_long_windows",
    "data.guard_utterances": "test_guards_are_measured_before_while_and_after_training",
    "best.average": "test_the_mean_of_the_best_steps_takes_part",
    "best.alphas": "test_a_run_whose_guards_all_become_worse_ends_where_it_began",
    "best.guard_margin": "test_a_run_whose_guards_all_become_worse_ends_where_it_began",
    "wandb.enabled": "test_weights_and_biases_are_told_project_and_name",
    "wandb.project": "test_weights_and_biases_are_told_project_and_name",
    "wandb.name": "test_weights_and_biases_are_told_project_and_name",
}
"""Options that need another run than the table's: the test that they have below it, or beside."""

Observed = dict[str, Any]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips with two columns of sentences, the same clips at half their loudness, and two models."""
    folder = tmp_path_factory.mktemp("options")
    corpus = copy_corpus(folder / "corpus", 8, 4)
    for path in (corpus / "audio").iterdir():
        samples, rate = soundfile.read(path)
        (folder / "quiet" / "audio").mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / "quiet" / "audio" / path.name, samples / 2, rate, format="OGG", subtype="OPUS")
    for name, rows in (
        ("train", read_rows(corpus / "train.csv")),
        ("test", read_rows(corpus / "test.csv")),
        ("other", read_rows(corpus / "train.csv")[2:6]),
    ):
        with (corpus / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["audio", "sentence", "english"])
            writer.writerows([row["audio"], row["sentence"], "the light"] for row in rows)
    timed = str(write_timed_model(folder / "timed"))
    for name in ("model", "other"):
        WhisperModule(timed, random_weights=True).save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def base(material: Path) -> Observed:
    """What a run with the table's own values does."""
    return observe(material, "base")


def arguments(material: Path, name: str) -> list[str]:
    """A run of four steps, two batches an epoch."""
    return [
        *quick_arguments(material / "corpus", material / name),
        f"--model.checkpoint={material / 'model'}",
        "--model.random_weights=false",
        "--trainer.max_steps=4",
        "--data.batch_size=4",
        "--trainer.logger=true",
        "--data.guard_windows=0",
    ]


def observe(material: Path, name: str, *options: str) -> Observed:
    """Run, and give what was observed."""
    path, shown = material / f"{name}.json", io.StringIO()
    callback = ["--trainer.callbacks+=tests.observe.Observe", f"--trainer.callbacks.path={path}"]
    with contextlib.redirect_stdout(shown):
        assert main([*arguments(material, name), *callback, *options]) == 0
    observed: Observed = json.loads(path.read_text(encoding="utf-8"))
    rows = len(re.findall(r"^│ +\d+ │", shown.getvalue(), re.MULTILINE))
    return observed | {"rows shown": rows, "report": (material / name / "report" / "index.html").is_file()}


SLOW = {"data.num_workers"}  # it starts processes


@pytest.mark.parametrize("option", [pytest.param(o, marks=[pytest.mark.slow] * (o in SLOW)) for o in TABLE])
def test_an_option_changes_its_observable_and_nothing_else(option: str, material: Path, base: Observed) -> None:
    value, expected = TABLE[option]
    observed = observe(material, option, f"--{option}={value.format(folder=material)}")
    changed = {name for name in {*base, *observed} if base.get(name) != observed.get(name)}
    assert changed == expected, {name: (base.get(name), observed.get(name)) for name in changed ^ expected}


def test_the_table_has_every_option_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--help"])
    groups = "model|data|evaluate|best|resume|steps|wandb|report"
    options = set(re.findall(rf"^ +--((?:{groups})\.[a-z_]+)", capsys.readouterr().out, re.MULTILINE))
    assert options == TABLE.keys() | ELSEWHERE.keys()
    others = vars(test_adapters) | vars(test_suppressed) | vars(test_guards) | vars(test_regularised)
    assert set(ELSEWHERE.values()) <= globals().keys() | others.keys()


def test_predict_transcribes_its_own_csv(material: Path) -> None:
    options = [f"--model.checkpoint={material / 'model'}", "--model.random_weights=false", "--model.max_tokens=4"]
    options += [
        f"--data.val={material / 'corpus' / 'test.csv'}",
        f"--trainer.default_root_dir={material / 'predicted'}",
    ]
    transcribed = []
    for predict in ([], [f"--data.predict={material / 'corpus' / 'other.csv'}"]):
        assert main(["predict", "--config=quickstart.yaml", *options, *predict]) == 0
        transcribed.append([row["audio"] for row in read_rows(material / "predicted" / "predictions.csv")])
    for audio, name in zip(transcribed, ("test.csv", "other.csv"), strict=True):
        assert audio == [row["audio"] for row in read_rows(material / "corpus" / name)]


def test_rows_that_may_be_rejected(material: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = material / "corpus" / "gaps.csv"
    text = (material / "corpus" / "train.csv").read_text(encoding="utf-8")
    path.write_text(f"{text}audio/absent.wav,luz,light\n", encoding="utf-8")
    options = [*arguments(material, "gaps"), f"--data.train={path}"]
    assert main(options) == 2
    assert "1 of 9 rows" in one_error(capsys)
    assert main([*options, "--data.max_rejected_fraction=0.2"]) == 0


@pytest.fixture
def remote(material: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Options of a run whose training shards are on a server."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    build_shards(material / "corpus" / "train.csv", material / "served" / "train", num_workers=0)
    with serve(material / "served", Faults()) as address:
        yield [f"--data.train={address}/train", f"--data.cache_dir={material / 'cache'}"]


def test_remote_shards_are_kept_where_the_option_says(remote: list[str], material: Path, base: Observed) -> None:
    observed = observe(material, "remote", *remote)
    assert {name for name in base if base[name] != observed[name]} == set()
    assert len(list((material / "cache" / "shards").glob("*.tar"))) == 1


def test_a_small_cache_is_warned_of(remote: list[str], material: Path, caplog: pytest.LogCaptureFixture) -> None:
    for gib, warned in (("1", False), ("0.0001", True)):
        caplog.clear()
        assert main([*arguments(material, f"cache-{gib}"), *remote, f"--data.cache_gib={gib}"]) == 0
        assert ("data.cache_gib" in caplog.text) == warned


def test_a_server_slower_than_the_option_is_given_up(
    remote: list[str], material: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(transfer, "PACE_SECONDS", 0.0)
    remote = [*remote, f"--data.cache_dir={material / 'slow cache'}"]
    assert main([*arguments(material, "too slow"), *remote, "--data.min_kib_per_second=1e9"]) == 2
    assert "lower data.min_kib_per_second (now 1e+09)" in one_error(capsys)
    assert main([*arguments(material, "fast enough"), *remote]) == 0


def test_weights_and_biases_are_told_project_and_name(material: Path, base: Observed) -> None:
    observed = observe(material, "told", "--wandb.enabled=true", "--wandb.project=voces", "--wandb.name=primera")
    wandb.finish()
    changed = {name: value for name, value in observed.items() if base.get(name) != value}
    loggers = [*base["loggers"], "RunOnWandb"]
    assert changed == {"loggers": loggers, "W&B project": "voces", "W&B name": "primera"}
