"""A run that is killed and continued is the run that was never interrupted: a property, tried with real kills."""

import json
import random
import shutil
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import MODEL, one_error, publish, quick_arguments
from tests.record import read, run
from tests.timed import speaking_corpus, write_timed_model
from whisper_lightning.cli import main
from whisper_lightning.model.load import load

STEPS = 8

CONFIGURATIONS = {
    "validation in mid-epoch, dropout, masks, cosine, activations in parts": [
        "--model.spec_augment=true",
        "--model.layer_drop=0.2",
        "--model.schedule=cosine",
        "--model.activation_seconds=5",
    ],
    "two workers, a checkpoint at each step": [
        "--data.num_workers=2",
        "--model.spec_augment=true",
        "--resume.every_n_steps=1",
        "--data.augment=true",
    ],
    "accumulation, two workers": [
        "--trainer.accumulate_grad_batches=3",
        "--trainer.val_check_interval=6",
        "--data.num_workers=2",
        "--data.augment=true",
    ],
    "accumulation over the epoch's end": ["--trainer.accumulate_grad_batches=4", "--trainer.val_check_interval=8"],
    "validation at the epoch's end": ["--trainer.val_check_interval=6", "--model.spec_augment=true"],
    "validation once per epoch, adapters": [
        "--trainer.val_check_interval=1.0",
        "--trainer.check_val_every_n_epoch=1",
        "--model.checkpoint={published}",
        "--model.random_weights=false",
        "--model.lora_rank=4",
        "--model.dora=true",
    ],
    "limited epochs": ["--trainer.limit_train_batches=5", "--trainer.val_check_interval=4"],
    "a checkpoint on an epoch's last batch": ["--resume.every_n_steps=6", "--trainer.val_check_interval=7"],
    "every position": ["--model.tail=exact", "--data.max_batch_seconds=12"],
    "averaged weights": [
        "--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging",
        "--trainer.callbacks.decay=0.7",
        "--best.average=2",
    ],
    "packed windows with time stamps and prompts, a worker, accumulation": [
        "--data.pack=0.7",
        "--data.timestamps=0.5",
        "--data.prompt=0.5",
        "--model.checkpoint={timed}",
        "--data.augment=true",
        "--data.speed=true",
        "--data.noise={corpus}/audio",
        "--data.reverb={corpus}/audio",
        "--data.num_workers=1",
        "--trainer.accumulate_grad_batches=2",
        "--trainer.val_check_interval=4",
    ],
}
SHORT = ["a checkpoint on an epoch's last batch"]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips, their shards and a model with dropout, for all runs of this file."""
    folder = tmp_path_factory.mktemp("material")
    speaking_corpus(folder / "corpus")
    shutil.copytree(MODEL, folder / "model")
    config = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))
    text = json.dumps(config | {"dropout": 0.1, "activation_dropout": 0.1})
    (folder / "model" / "config.json").write_text(text, encoding="utf-8")
    write_timed_model(folder / "timed", dropout=0.1, activation_dropout=0.1)
    publish(folder / "published", dropout=0.1, activation_dropout=0.1)
    return folder


def arguments(material: Path, folder: Path, options: list[str]) -> list[str]:
    """A run over six batches an epoch, with a validation every third."""
    places = {name: material / name for name in ("timed", "published", "corpus")}
    return [
        *quick_arguments(material / "corpus", folder),
        f"--model.checkpoint={material / 'model'}",
        f"--trainer.max_steps={STEPS}",
        "--trainer.val_check_interval=3",
        "--trainer.logger=true",
        "--data.batch_size=4",
        "--data.eval_batch_size=2",
        "--resume.every_n_steps=2",
        *(option.format(**places) for option in options),
    ]


def record(
    folder: Path, at: str = "", count: int = 1, delay_seconds: float = 0.0, number: int = 9, rank: int = 0
) -> list[str]:
    return [
        "--trainer.callbacks+=tests.record.Record",
        f"--trainer.callbacks.rank={rank}",
        f"--trainer.callbacks.path={folder}.record",
        f"--trainer.callbacks.at={at}",
        f"--trainer.callbacks.count={count}",
        f"--trainer.callbacks.delay_seconds={delay_seconds}",
        f"--trainer.callbacks.number={number}",
    ]


def resume(folder: Path) -> list[str]:
    return ["--ckpt_path=last"] if (folder / "config.yaml").is_file() else []


def differences(straight: Path, broken: Path, rank: int = 0) -> list[str]:
    """Name everything in which an interrupted run differs from the straight one."""
    found = []
    expected, ours = ({}, {})  # type: dict[str, object], dict[str, object]
    for folder, lines in ((straight, expected), (broken, ours)):
        for line in read(folder.with_name(f"{folder.name}.record.{rank}")):
            key = str(line.get("batch", line.get("validation")))
            if lines.setdefault(key, line) != line:
                found.append(f"{folder.name} does {key} differently the second time: {line}, {lines[key]}")
    found += [f"{key}: {ours.get(key)} instead of {line}" for key, line in expected.items() if ours.get(key) != line]
    found += [f"{key} is too much" for key in ours.keys() - expected.keys()]
    one, two = (torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in (straight, broken))
    for name in ("global_step", "callbacks", "lr_schedulers", "run", "loggers"):
        if one[name] != two[name]:
            found.append(f"{name}: {two[name]} instead of {one[name]}")
    if not same(one["state_dict"], two["state_dict"]) or not same(one["optimizer_states"], two["optimizer_states"]):
        found.append("last.ckpt: other weights or another state of the optimizer")
    if not same(*(load_file(folder / "best" / "model.safetensors") for folder in (straight, broken))):
        found.append("best/: other weights")
    one, two = (pd.read_csv(f / "metrics.csv").filter(regex="step|train|val|test") for f in (straight, broken))
    if not one.equals(two[one.columns]):
        found.append(f"metrics.csv:\n{two}\ninstead of\n{one}")
    tables = [
        {
            str(path.relative_to(folder)): path.read_text(encoding="utf-8")
            for path in (folder / "transcripts").rglob("*.csv")
        }
        for folder in (straight, broken)
    ]
    for name in sorted(tables[0].keys() | tables[1].keys()):
        if tables[0].get(name) != tables[1].get(name):
            found.append(f"{name}: other transcripts")
    leftovers = [path.name for path in broken.rglob("*") if path.suffix in (".new", ".old")]
    return found + [f"{name} is left over" for name in leftovers]


def same(one: object, two: object) -> bool:
    """Compare nested states to the last bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and torch.equal(one, two)
    if isinstance(one, dict):
        return isinstance(two, dict) and one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return isinstance(two, list) and len(one) == len(two) and all(map(same, one, two))
    return one == two


def interrupt(material: Path, folder: Path, options: list[str], kills: list[tuple[str, int, float]]) -> None:
    """Run with a kill at each of the given points, one process after the other, then to the end."""
    for at, count, delay_seconds in [*kills, ("", 1, 0.0)]:
        code = run([*arguments(material, folder, options), *record(folder, at, count, delay_seconds), *resume(folder)])
        assert code in ((-9, 0) if at else (0,)), code


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_killed_and_continued_is_the_same_run(name: str, material: Path, tmp_path: Path) -> None:
    """On the batch that ends an epoch with a checkpoint, in a validation, and in the one after the last step."""
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    options = [*CONFIGURATIONS[name], "--model.spec_augment=true"]
    interrupt(material, straight, options, [])
    interrupt(material, broken, options, [("save", 1, 0.2), ("validation", 2, 0.0), ("validation", 6, 0.0)])
    assert differences(straight, broken) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_killed_at_random_and_continued_is_the_same_run(name: str, material: Path, tmp_path: Path) -> None:
    draw = random.Random(name)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    interrupt(material, straight, CONFIGURATIONS[name], [])
    batches = len([line for line in read(tmp_path / "straight.record.0") if "batch" in line])
    kills = [
        ("train", draw.randint(2, batches // 2), 0.0),
        ("validation", draw.randint(1, 4), 0.0),
        draw.choice(
            [("save", 1, draw.uniform(0, 0.05)), ("train", draw.randint(1, batches // 3), draw.uniform(0, 0.5))]
        ),
    ]
    draw.shuffle(kills)
    interrupt(material, broken, CONFIGURATIONS[name], kills)
    assert differences(straight, broken) == []


SIGNALS = {
    "SIGTERM": (signal.SIGTERM, 75, "train", 3, 0, []),
    "SIGTERM in a validation": (signal.SIGTERM, 75, "validation", 2, 0, []),
    "SIGTERM in the last validation": (signal.SIGTERM, 75, "validation", 7, 0, ["--trainer.max_steps=6"]),
    "SIGTERM to the group, with workers": (signal.SIGTERM, 75, "train", 4, -1, ["--data.num_workers=2"]),
    "SIGUSR1": (signal.SIGUSR1, 75, "train", 5, 0, ["--trainer.accumulate_grad_batches=3"]),
    "Ctrl-C to the group, with workers": (signal.SIGINT, 130, "train", 1, -1, ["--data.num_workers=2"]),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in SIGNALS])
def test_a_signal_saves_and_the_same_command_goes_on(name: str, material: Path, tmp_path: Path) -> None:
    """As in a job that SLURM stops and requeues: it is the environment that says so, the command is the same."""
    number, expected, at, count, rank, options = SIGNALS[name]
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    interrupt(material, straight, options, [])
    first = [*arguments(material, broken, options), *record(broken, at, count, number=number, rank=rank)]
    assert run(first) == expected
    saved = torch.load(broken / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    batches = [line["batch"] for line in read(tmp_path / "broken.record.0") if "batch" in line]
    assert saved == len(batches) // (3 if "--trainer.accumulate_grad_batches=3" in options else 1)
    again = [*arguments(material, broken, options), *record(broken)]
    assert run(again, {"SLURM_RESTART_COUNT": "1"}) == 0
    assert differences(straight, broken) == []


@pytest.mark.slow
def test_a_job_requeued_before_its_first_checkpoint_begins_again(material: Path, tmp_path: Path) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    interrupt(material, straight, ["--trainer.max_steps=3"], [])
    command = [*arguments(material, broken, ["--trainer.max_steps=3"]), *record(broken, "train", 1)]
    assert run(command) == -9
    command = [*arguments(material, broken, ["--trainer.max_steps=3"]), *record(broken)]
    assert run(command) == 2, "without SLURM's word, a used folder is refused"
    assert run(command, {"SLURM_RESTART_COUNT": "1"}) == 0
    assert differences(straight, broken) == []


@pytest.fixture(scope="module")
def finished(material: Path) -> Path:
    """A run of two steps."""
    folder = material / "finished"
    assert run(arguments(material, folder, ["--trainer.max_steps=2"])) == 0
    return folder


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--seed_everything=7", "seed_everything was 42, now 7"),
        ("--model.learning_rate=0.5", "model.learning_rate was 0.003, now 0.5"),
        ("--model.weight_decay=0.5", "model.weight_decay was 0.01, now 0.5"),
        ("--trainer.accumulate_grad_batches=3", "trainer.accumulate_grad_batches was 1, now 3"),
        ("--data.batch_size=3", "data.batch_size was 4, now 3"),
        ("--data.prompt=0.5", "data.prompt was 0.0, now 0.5"),
        ("--data.train={corpus}/test.csv", "data.train: other utterances"),
        ("--data.val={corpus}/train.csv", "data.val: other utterances"),
        ("--trainer.precision=bf16-mixed", "trainer.precision was 32-true, now bf16-mixed"),
    ],
)
def test_what_cannot_be_continued_is_refused_by_name(
    option: str, message: str, material: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line is not overridden by what the checkpoint holds; nor is it ignored."""
    before = (finished / "checkpoints" / "last.ckpt").read_bytes()
    changed = [f"--ckpt_path={finished}/checkpoints/last.ckpt", option.format(corpus=material / "corpus")]
    assert main(arguments(material, finished, ["--trainer.max_steps=3", *changed])) == 2
    error = one_error(capsys)
    assert message in error
    assert "--model.initial_weights" in error
    assert (finished / "checkpoints" / "last.ckpt").read_bytes() == before


@pytest.mark.slow
def test_a_finished_run_goes_on_to_more_steps_as_if_it_had_had_them_from_the_start(
    material: Path, tmp_path: Path
) -> None:
    straight, longer = tmp_path / "straight", tmp_path / "longer"
    # The shorter run validates its last step, as every run does; so the straight one validates that step too.
    options = ["--model.schedule=constant", "--trainer.val_check_interval=4"]
    interrupt(material, straight, options, [])
    assert run([*arguments(material, longer, [*options, "--trainer.max_steps=4"]), *record(longer)]) == 0
    assert run([*arguments(material, longer, options), *record(longer), "--ckpt_path=last"]) == 0
    # The shorter run has validated its last step, which has nothing to say in the longer one.
    extra = ("metrics.csv", '["validation", 4]', "4 is too much", "step-000004")
    assert [line for line in differences(straight, longer) if not any(word in line for word in extra)] == []


def test_starting_anew_from_the_weights_alone(material: Path, finished: Path, tmp_path: Path) -> None:
    saved = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    option = f"--model.initial_weights={finished / 'checkpoints' / 'last.ckpt'}"
    fresh = tmp_path / "fresh"
    assert main(arguments(material, fresh, ["--model.learning_rate=1e-9", "--trainer.max_steps=2", option])) == 0
    checkpoint = torch.load(fresh / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    assert all(torch.allclose(saved[name], value, atol=1e-6) for name, value in checkpoint["state_dict"].items())


@pytest.mark.slow
def test_a_base_model_that_moved_with_its_run_is_the_same(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given as a relative folder; afterwards from elsewhere, by its whole path. Another model is still refused."""
    first, then = tmp_path / "first", tmp_path / "then"
    shutil.copytree(material / "model", first / "model")
    monkeypatch.chdir(first)
    options = ["--model.checkpoint=model", "--trainer.max_steps=2"]
    assert main(arguments(material, Path("run"), options)) == 0
    first.rename(then)
    monkeypatch.chdir(tmp_path)
    more = [f"--model.checkpoint={then / 'model'}", "--trainer.max_steps=3", "--ckpt_path=last"]
    assert main(arguments(material, then / "run", more)) == 0
    (then / "model").rename(then / "gone")
    last = then / "run" / "checkpoints" / "last.ckpt"
    saved = torch.load(last, weights_only=True)["state_dict"]["whisper.proj_out.weight"]
    assert torch.equal(load(str(last)).whisper.proj_out.weight, saved)
    another = [f"--model.checkpoint={MODEL}", "--trainer.max_steps=4", "--ckpt_path=last"]
    assert main(arguments(material, then / "run", another)) == 2
    assert "model.checkpoint: another model than before" in one_error(capsys)


def test_best_is_tested_and_not_continued(material: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(material, finished, ["--trainer.max_steps=3", "--ckpt_path=best"])) == 2
    assert f"--model.checkpoint {finished / 'best'}" in one_error(capsys)
    assert main(["test", f"--config={finished / 'config.yaml'}", "--ckpt_path=best"]) == 0
    assert "test at step 0: WER" in capsys.readouterr().out
    assert main(arguments(material, finished / "new", ["--trainer.enable_checkpointing=false"])) == 2
    assert "trainer.enable_checkpointing" in one_error(capsys)
