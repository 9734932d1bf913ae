"""Adapters: what they are merged into is what other programs would make of them, and nothing else is trained."""

import copy
import logging
from pathlib import Path

import pandas as pd
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from tests.conftest import MODEL, copy_corpus, one_error, publish, quick_arguments
from whisper_lightning.cli import main
from whisper_lightning.model.adapters import TARGETS, add_adapters, merge, write_adapter
from whisper_lightning.model.load import load
from whisper_lightning.model.module import WhisperModule
from whisper_lightning.model.optim import layers_below_the_top, parameter_groups


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips, and a model with weights."""
    folder = tmp_path_factory.mktemp("adapters")
    copy_corpus(folder / "corpus", 16, 8)
    publish(folder / "model")
    return folder


def arguments(material: Path, run: Path, *options: str) -> list[str]:
    model = [f"--model.checkpoint={material / 'model'}", "--model.random_weights=false", "--model.lora_rank=4"]
    return [*quick_arguments(material / "corpus", run), *model, "--model.learning_rate=0.01", *options]


def read_state(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return state


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("targets", [None, ["q_proj", "fc2"]])
def test_merged_as_peft_merges(dora: bool, targets: list[str] | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = WhisperModule(str(MODEL), random_weights=True)
    plain, before = copy.deepcopy(module.whisper), module.state_dict()
    assert merge(before).keys() == before.keys()
    add_adapters(module.whisper, 4, targets, dora=dora)
    named = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    assert {name.split(".lora_")[0].split(".")[-1] for name in named} == set(targets or TARGETS)
    start = merge(module.state_dict())
    for name, weight in before.items():  # nothing is added yet
        assert torch.allclose(start[name], weight, atol=1e-7), name
    for weight in named.values():
        weight.data.add_(torch.randn_like(weight) / 20)
    state = module.state_dict()
    write_adapter(state, module.whisper, tmp_path / "adapter")
    expected = PeftModel.from_pretrained(plain, tmp_path / "adapter").merge_and_unload().state_dict()
    merged = {name.removeprefix("whisper."): weight for name, weight in merge(state).items()}
    assert merged.keys() == expected.keys()
    assert all(torch.allclose(merged[name], weight, atol=1e-6) for name, weight in expected.items())
    changed = {name for name in merged if not torch.equal(merged[name], before[f"whisper.{name}"])}
    assert {name.split(".")[-2] for name in changed} == set(targets or TARGETS)


def test_lengths_are_not_decayed_and_layers_have_their_depth() -> None:
    module = WhisperModule(str(MODEL), random_weights=True)
    whole = layers_below_the_top([(name, weight) for name, weight in module.named_parameters()])
    add_adapters(module.whisper, 2, None, dora=True)
    named = [(name, weight) for name, weight in module.named_parameters() if weight.requires_grad]
    for name, depth in layers_below_the_top(named).items():
        assert depth == whole[f"{name.split('.lora_')[0]}.weight"], name
    decayed = {
        id(weight): group["weight_decay"] for group in parameter_groups(named, 0.1) for weight in group["params"]
    }
    assert all((decayed[id(weight)] == 0) == ("magnitude" in name) for name, weight in named)


@pytest.fixture(scope="module")
def run(material: Path) -> Path:
    folder = material / "run"
    assert main(arguments(material, folder, f"--data.guard.same={material / 'corpus' / 'train.csv'}")) == 0
    return folder


def test_what_is_frozen_stays_and_what_leaves_the_run_is_whole(material: Path, run: Path) -> None:
    start = load_file(material / "model" / "model.safetensors")
    state = read_state(run)
    whole = {name.removeprefix("whisper."): weight for name, weight in merge(state).items()}
    for name, weight in start.items():
        kept = state.get(f"whisper.{name}", state.get(f"whisper.{name[:-7]}.base_layer.weight"))
        kept = state[f"whisper.{name[:-5]}.base_layer.bias"] if kept is None else kept
        assert torch.equal(kept, weight.float()), name
        is_matrix = name.split(".")[-2] in TARGETS and name.endswith("weight")
        assert torch.equal(whole[name], weight.float()) != is_matrix, name
    last = load(run / "checkpoints" / "last.ckpt")
    assert not any(".lora_" in name for name, _ in last.named_parameters())
    assert all(torch.equal(last.state_dict()[f"whisper.{name}"], weight) for name, weight in whole.items())
    best = load_file(run / "best" / "model.safetensors")
    assert best.keys() == start.keys()
    modes = {path.name: path.stat().st_mode for path in (run / "best").rglob("*") if path.is_file()}
    assert len(set(modes.values())) == 1, modes  # who may read the configuration may read the weights
    assert load(run).whisper.config.d_model == last.whisper.config.d_model


def test_the_way_between_start_and_end_goes_through_merged_weights(material: Path, run: Path) -> None:
    table = pd.read_csv(run / "alphas.csv")
    assert list(table["alpha"]) == [0, 0.25, 0.5, 0.75, 1]
    (chosen,) = table[table["chosen"] == 1]["alpha"]
    start = load_file(material / "model" / "model.safetensors")
    best, tuned = (load_file(run / name / "model.safetensors") for name in ("best", "tuned" if chosen < 1 else "best"))
    for name, weight in best.items():
        expected = torch.lerp(start[name].float(), tuned[name].float(), float(chosen))
        assert torch.allclose(weight.float(), expected, atol=1e-3, rtol=2e-3), name
    adapter = run / ("tuned" if chosen < 1 else "best") / "adapter"
    base = WhisperModule(str(material / "model")).whisper
    merged = PeftModel.from_pretrained(base, adapter).merge_and_unload().state_dict()
    assert all(torch.allclose(merged[name], weight.float(), atol=2e-3) for name, weight in tuned.items())


def test_a_run_continues_and_its_weights_begin_another(
    material: Path, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    parts = tmp_path / "parts"
    guard = f"--data.guard.same={material / 'corpus' / 'train.csv'}"
    constant = "--model.schedule=constant"
    assert main(arguments(material, tmp_path / "whole", guard, constant)) == 0
    assert main(arguments(material, parts, guard, constant, "--trainer.max_steps=2")) == 0
    assert main(arguments(material, parts, guard, constant, "--ckpt_path=last")) == 0
    states = [read_state(tmp_path / "whole"), read_state(parts)]
    assert all(torch.equal(weight, states[1][name]) for name, weight in states[0].items())
    assert "Trains 0.02 of 0.26 M weights (6.2 %)" in caplog.text
    caplog.clear()
    # On top of what adapters have made, all weights are trained.
    begun = [f"--model.initial_weights={run / 'checkpoints' / 'last.ckpt'}", "--model.lora_rank=0"]
    assert main(arguments(material, tmp_path / "next", *begun, "--trainer.max_steps=1", "--model.warmup_steps=0")) == 0
    assert "Trains" not in caplog.text
    next_state, merged = read_state(tmp_path / "next"), merge(read_state(run))
    assert next_state.keys() == merged.keys()
    assert all((next_state[name] - weight).abs().max() <= 0.011 for name, weight in merged.items())


@pytest.mark.parametrize(
    "options", [[], ["--model.lora_rank=0", "--model.freeze_encoder=true"]], ids=["lora", "frozen"]
)
def test_what_is_frozen_is_kept_in_half_and_continues(options: list[str], material: Path, tmp_path: Path) -> None:
    """In mixed precision; the model's weights are float16 on disk, as OpenAI's."""
    told = [*options, "--trainer.precision=bf16-mixed", "--model.schedule=constant"]
    assert main(arguments(material, tmp_path / "whole", *told)) == 0
    assert main(arguments(material, tmp_path / "parts", *told, "--trainer.max_steps=2")) == 0
    assert main(arguments(material, tmp_path / "parts", *told, "--ckpt_path=last")) == 0
    whole, parts = read_state(tmp_path / "whole"), read_state(tmp_path / "parts")
    assert all(torch.equal(weight, parts[name]) for name, weight in whole.items())
    start = load_file(material / "model" / "model.safetensors")
    halved = {name.replace(".base_layer", ""): weight for name, weight in whole.items() if weight.dtype == torch.half}
    assert "whisper.model.encoder.layers.0.fc1.weight" in halved
    assert all(torch.equal(weight.float(), start[name[8:]].float()) for name, weight in halved.items())
    best = load_file(tmp_path / "whole" / "best" / "model.safetensors")
    assert best.keys() == start.keys()
    assert load(tmp_path / "whole" / "checkpoints" / "last.ckpt").dtype == torch.float32


def test_the_mean_of_steps_is_of_merged_weights(material: Path, tmp_path: Path) -> None:
    assert main(arguments(material, tmp_path / "run", "--best.average=2")) == 0
    files = sorted((tmp_path / "run" / "checkpoints").glob("step-*.safetensors"))
    assert len(files) == 2
    whole = merge(read_state(tmp_path / "run"))
    last = load_file(files[-1])
    assert last.keys() == whole.keys() - {"whisper.proj_out.weight"}
    assert all(torch.allclose(weight.float(), whole[name], atol=1e-3) for name, weight in last.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.lora_rank=-1"], "model.lora_rank: -1"),
        (["--model.lora_rank=4000"], "a rank of at most"),
        (["--model.lora_targets=[conv1]"], "model.lora_targets: 'conv1'"),
        (["--model.lora_rank=0", "--model.dora=true"], "model.dora: there are no adapters"),
        (["--model.lora_rank=0", "--model.lora_targets=[fc1]"], "model.lora_targets: there are no adapters"),
        (["--model.random_weights=true"], "beside random weights"),
    ],
)
def test_mistakes_are_one_line(
    options: list[str], message: str, material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(material, tmp_path / "run", *options)) == 2
    assert message in one_error(capsys)
