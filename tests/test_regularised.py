"""Options against overfitting: each does what its formula says."""

import itertools
import logging
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from tests.conftest import MODEL, copy_corpus, one_error, publish, quick_arguments
from whisper_lightning.cli import main
from whisper_lightning.model.depth import leave_out
from whisper_lightning.model.module import WhisperModule
from whisper_lightning.model.optim import layers_below_the_top, parameter_groups
from whisper_lightning.model.whisper import decoder_states, label_loss


def test_label_smoothing_is_a_mean_over_all_tokens() -> None:
    """(1 - s) times the loss of the label, s times the mean of the losses of all tokens."""
    torch.manual_seed(0)
    whisper = WhisperModule(str(MODEL), random_weights=True).whisper
    states = torch.randn(2, 5, whisper.config.d_model)
    positions, tokens = torch.tensor([0, 3, 7]), torch.tensor([5, 6, 7])
    log_probs = F.log_softmax(whisper.proj_out(states.flatten(0, 1)[positions]), dim=-1)
    label, uniform = -log_probs[torch.arange(3), tokens].sum(), -log_probs.mean(dim=-1).sum()
    assert torch.allclose(label_loss(whisper, states, positions, tokens, 0.1), 0.9 * label + 0.1 * uniform)
    assert torch.allclose(label_loss(whisper, states, positions, tokens), label)


def test_layer_decay_falls_from_the_decoders_top_to_the_encoders_bottom() -> None:
    module = WhisperModule(str(MODEL), random_weights=True)
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    depths = layers_below_the_top(named)
    config = module.whisper.config
    below, above = config.encoder_layers, config.decoder_layers
    for name, depth in depths.items():
        if ".encoder.layers." in name:
            assert depth == above + below - 1 - int(name.split("layers.")[1].split(".")[0]), name
        elif ".decoder.layers." in name:
            assert depth == above - 1 - int(name.split("layers.")[1].split(".")[0]), name
    assert depths["whisper.model.decoder.embed_tokens.weight"] == depths["whisper.model.decoder.layer_norm.bias"] == 0
    assert depths["whisper.model.decoder.embed_positions.weight"] == above
    assert depths["whisper.model.encoder.layer_norm.bias"] == above
    assert depths["whisper.model.encoder.conv1.weight"] == above + below
    groups = parameter_groups(named, 0.1, 1e-3, 0.5)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert rates == {id(parameter): 1e-3 * 0.5 ** depths[name] for name, parameter in named}


def fitted(tmp_path: Path, name: str, *options: str) -> dict[str, torch.Tensor]:
    """Train a published model for four steps; return the weights of its last checkpoint."""
    corpus = tmp_path / "corpus"
    if not corpus.is_dir():
        copy_corpus(corpus, 8, 4)
        publish(tmp_path / "model")
    model = [f"--model.checkpoint={tmp_path / 'model'}", "--model.random_weights=false"]
    assert main([*quick_arguments(corpus, tmp_path / name), *model, *options]) == 0
    state = torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {key.removeprefix("whisper."): value for key, value in state.items()}


def test_a_frozen_encoder_never_changes(tmp_path: Path) -> None:
    state = fitted(tmp_path, "frozen", "--model.freeze_encoder=true")
    start = load_file(tmp_path / "model" / "model.safetensors")
    for name, weight in start.items():
        assert torch.equal(weight.float(), state[name]) == (".encoder." in name), name


def test_smoothing_and_layer_decay_train_otherwise(tmp_path: Path) -> None:
    plain, smooth, decayed = (
        fitted(tmp_path, name, *options)
        for name, options in (
            ("plain", []),
            ("smooth", ["--model.label_smoothing=0.1"]),
            ("decayed", ["--model.layer_decay=0.8"]),
        )
    )
    assert any(not torch.equal(plain[name], smooth[name]) for name in plain)
    assert any(not torch.equal(plain[name], decayed[name]) for name in plain)


@pytest.mark.parametrize("tail", ["exact", 10])
def test_layers_are_left_out_in_training_alone(tail: int | Literal["exact"]) -> None:
    """All for share 1; for a half some utterances have, and what comes out is decoded as if there were none."""
    modules = []
    for share in (0, 0.5, 1):
        torch.manual_seed(3)
        modules.append(WhisperModule(str(MODEL), random_weights=True, tail=tail, layer_drop=share))
    waveforms, ids = torch.randn(8, 32_000) / 10, torch.full((8, 5), 3)
    none, half, every = (
        [decoder_states(module.whisper, module.train(training).encode(waveforms), ids) for training in (False, True)]
        for module in modules
    )
    assert torch.equal(none[0], none[1])  # this model has no dropout
    assert torch.equal(none[0], half[0])
    assert torch.equal(none[0], every[0])
    decoder = modules[2].whisper.model.decoder
    embedded = decoder.embed_tokens(ids) + decoder.embed_positions.weight[:5]
    torch.testing.assert_close(every[1], decoder.layer_norm(embedded))
    kept = (half[1] - none[0]).abs().amax(dim=(1, 2)) == 0
    assert not kept.all()
    assert any(not torch.equal(a, b) for a, b in itertools.combinations(half[1] - none[0], 2))
    assert modules[1].whisper.config.encoder_layerdrop == modules[1].whisper.config.decoder_layerdrop == 0


def test_a_layer_is_left_out_for_its_share_of_the_utterances() -> None:
    before, after = torch.zeros(4_000, 2, 3), torch.ones(4_000, 2, 3, requires_grad=True)
    heard = leave_out(before, after, 0.3, training=True)
    assert set(heard.detach().flatten(1).sum(dim=1).tolist()) == {0.0, 6.0}
    assert float(heard.detach().mean()) == pytest.approx(0.7, abs=0.03)
    heard.sum().backward()  # type: ignore[no-untyped-call]
    assert after.grad is not None
    assert torch.equal(after.grad, heard.detach())
    assert leave_out(before, after, 0.3, training=False) is after


@pytest.mark.parametrize("option", ["label_smoothing=1.5", "layer_decay=-0.1", "layer_drop=2"])
def test_shares_beyond_one_are_refused(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = copy_corpus(tmp_path / "corpus", 2, 2)
    assert main([*quick_arguments(corpus, tmp_path / "run"), f"--model.{option}"]) == 2
    assert f"model.{option.split('=')[0]}: " in one_error(capsys)


def test_a_run_that_gets_no_better_is_stopped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The preset beside another configuration: here the learning rate is 0; the best step is tested all the same."""
    # By its name: `evaluate`, which another test may have run in this process, quiets Lightning's loggers.
    caplog.set_level(logging.INFO, logger="lightning.pytorch.callbacks.early_stopping")
    corpus = copy_corpus(tmp_path / "corpus", 8, 4)
    fit, config, *options = quick_arguments(corpus, tmp_path / "run")
    options += ["--trainer.max_steps=40", "--model.learning_rate=0", "--data.guard_windows=0"]
    assert main([fit, config, "--config=early_stop.yaml", *options]) == 0
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 10
    assert "did not improve in the last 4 records" in caplog.text
    assert (tmp_path / "run" / "transcripts" / "test.csv").is_file()
