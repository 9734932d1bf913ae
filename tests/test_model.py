"""The model against transformers: loss, gradients, context, accumulation, learning rate."""

from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
import torch
from lightning.pytorch import Trainer
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from transformers import WhisperForConditionalGeneration

from tests.conftest import MODEL, publish, quick_arguments
from whisper_lightning.batch import Batch
from whisper_lightning.cli import main
from whisper_lightning.data.format import Utterance
from whisper_lightning.data.loader import collate
from whisper_lightning.errors import UserError
from whisper_lightning.model.gradients import GRADIENT_SCALE
from whisper_lightning.model.module import WhisperModule
from whisper_lightning.model.optim import learning_rate_factor, parameter_groups

SENTENCES = ["enciende la luz de la cocina", "apaga la radio", "sube la música del baño", "baja la luz"]

WAITING = {torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select}
"""Operations whose result, or its size, the host must know before it can go on."""


def make_module(**options: object) -> WhisperModule:
    torch.manual_seed(0)
    return WhisperModule(checkpoint=str(MODEL), random_weights=True, **options)  # type: ignore[arg-type]


def make_batch(module: WhisperModule, rows: slice = slice(None), num_samples: int = 64_000) -> Batch:
    generator = torch.Generator().manual_seed(1)
    utterances = [
        Utterance(f"{i}", 0.1 * torch.randn(20_000 + 8_000 * i, generator=generator), sentence, i, "", {})
        for i, sentence in enumerate(SENTENCES)
    ]
    return collate(utterances[rows], num_samples, module.encoder)


def reference_model(module: WhisperModule) -> WhisperForConditionalGeneration:
    reference = WhisperForConditionalGeneration(module.whisper.config)
    assert reference.load_state_dict(module.whisper.state_dict()).missing_keys == []
    return reference


def padded_labels(module: WhisperModule, batch: Batch) -> torch.Tensor:
    """Labels as transformers takes them, padded with -100."""
    labels = torch.full(batch.decoder_input_ids.shape, -100)  # which transformers' loss leaves out
    for row, sentence in enumerate(batch.sentences):
        ids = module.encoder.encode(sentence)[1:]
        labels[row, : len(ids)] = torch.tensor(ids)
    return labels


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def test_loss_and_gradients_equal_transformers_at_full_context() -> None:
    module = make_module()
    batch = make_batch(module)
    reference = reference_model(module)
    features = module.log_mel(batch.waveforms)
    expected = reference(
        input_features=features, decoder_input_ids=batch.decoder_input_ids, labels=padded_labels(module, batch)
    ).loss
    expected.backward()
    ours = loss_of(module, batch)
    ours.backward()  # type: ignore[no-untyped-call]
    assert float(ours) == pytest.approx(float(expected), rel=1e-6)
    gradients = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    for name, parameter in module.whisper.named_parameters():
        if name in gradients:
            assert parameter.grad is not None
            assert relative(parameter.grad, gradients[name]) < 1e-5, name


def loss_of(module: WhisperModule, batch: Batch) -> torch.Tensor:
    """The training step's loss, per token."""
    return module.training_step(batch, 0) / GRADIENT_SCALE / len(batch.label_tokens)


def test_random_weights_have_sinusoidal_positions() -> None:
    positions = make_module().whisper.model.encoder.embed_positions.weight
    assert float(positions[0, :32].abs().max()) == 0.0
    assert torch.equal(positions[0, 32:], torch.ones(32))


@pytest.mark.parametrize("rows", [1, 3])
def test_activations_in_parts_change_no_gradient(rows: int) -> None:
    """Batches of 4 utterances of 4 s, all at once and by 1 or 3 (and a rest of 1)."""
    gradients = []
    for seconds in (16.0, 4.0 * rows):
        module = make_module(activation_seconds=seconds).train()
        loss_of(module, make_batch(module)).backward()  # type: ignore[no-untyped-call]
        gradients.append([p.grad for p in module.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-7, rtol=1e-5) for a, b in zip(*gradients, strict=True))


def test_activations_in_parts_draw_the_same_dropout_again() -> None:
    """The backward pass computes what the forward pass computed: a gradient is that of the loss that was given."""
    module = make_module(activation_seconds=4.0).train()
    for part in module.modules():
        if hasattr(part, "dropout") and isinstance(part.dropout, float):
            part.dropout = 0.3  # type: ignore[assignment]
    batch, direction = make_batch(module), torch.randn_like(module.whisper.model.encoder.layer_norm.weight)

    def loss() -> torch.Tensor:
        torch.manual_seed(5)
        return loss_of(module, batch).double()

    loss().backward()  # type: ignore[no-untyped-call]
    weight = module.whisper.model.encoder.layer_norm.weight
    assert weight.grad is not None
    slope = float((weight.grad * direction).sum())
    with torch.no_grad():
        weight += 1e-2 * direction
        above = float(loss())
        weight -= 2e-2 * direction
        below = float(loss())
    assert (above - below) / 2e-2 == pytest.approx(slope, rel=0.05)


def test_the_training_step_does_not_wait_for_the_device() -> None:
    """On a GPU each number that Python reads from a tensor stops the host until the device is idle."""
    module = make_module(activation_seconds=4.0, spec_augment=True).train()
    batch = make_batch(module)

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            assert func.overloadpacket not in WAITING, func
            return func(*args, **(kwargs or {}))

    with Watch():  # type: ignore[no-untyped-call]
        loss_of(module, batch).backward()  # type: ignore[no-untyped-call]


@pytest.mark.filterwarnings("error::FutureWarning")
def test_no_step_uses_what_transformers_gives_up() -> None:
    module = make_module(max_tokens=3)
    batch: Any = make_batch(module)
    assert torch.isfinite(module.training_step(batch, 0))
    with torch.no_grad():
        assert len(module.eval().validation_step(batch, 0).hypotheses) == len(SENTENCES)


def test_gradients_live_only_until_the_optimizer_step(tmp_path: Path) -> None:
    kept = []

    class Watched(WhisperModule):
        def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
            kept.append(any(p.grad is not None for p in self.parameters()))
            return super().training_step(batch, batch_idx)

    module = Watched(checkpoint=str(MODEL), random_weights=True)
    trainer = Trainer(
        max_steps=2, accumulate_grad_batches=2, accelerator="cpu", default_root_dir=tmp_path, logger=False
    )
    batches: DataLoader[Batch] = DataLoader([make_batch(module)] * 4, batch_size=None)  # type: ignore[arg-type]
    trainer.fit(module, batches)
    assert kept == [False, True, False, True]


def test_padding_of_the_batch_changes_no_loss_at_equal_context() -> None:
    """Sum over the batch = sum over its utterances one by one."""
    module = make_module()
    together = make_batch(module)
    total = loss_of(module, together) * len(together.label_tokens)
    parts = [make_batch(module, slice(i, i + 1)) for i in range(4)]
    assert float(total) == pytest.approx(sum(float(loss_of(module, b)) * len(b.label_tokens) for b in parts), rel=1e-5)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_learning_rate(schedule: str) -> None:
    factors = [
        learning_rate_factor(step, warmup_steps=10, max_steps=100, schedule=schedule)  # type: ignore[arg-type]
        for step in range(100)
    ]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9] == factors[10] == 1.0
    assert all(a >= b for a, b in pairwise(factors[9:]))
    assert factors[-1] == 1.0 if schedule == "constant" else 0 < factors[-1] < 0.02


def test_only_matrices_decay() -> None:
    module = make_module()
    decayed, plain = parameter_groups(module.named_parameters(), 0.1)
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert all(p.ndim < 2 for p in plain["params"])
    assert plain["weight_decay"] == 0
    frozen = module.whisper.model.encoder.embed_positions.weight
    assert not any(p is frozen for p in decayed["params"])


def test_dropout_acts_in_training_a_saved_model(
    published: Path, corpus: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """transformers gives a loaded model in evaluation mode, in which nothing is dropped, and Lightning leaves it so."""
    losses = []
    for name, model in (("none", published), ("half", publish(tmp_path / "model", dropout=0.5))):
        options = [f"--model.checkpoint={model}", "--model.random_weights=false", "--trainer.max_steps=2"]
        assert main([*quick_arguments(corpus, tmp_path / name), *options]) == 0
        losses.append(pd.read_csv(tmp_path / name / "metrics.csv"))
    assert losses[0]["val/loss"].iloc[0] == losses[1]["val/loss"].iloc[0], "a validation drops nothing"
    none, half = (table["train/gradient_norm"].dropna().iloc[0] for table in losses)
    assert none != pytest.approx(half, rel=1e-3)
    assert not [warning for warning in recwarn if "eval mode" in str(warning.message)]


@pytest.mark.parametrize(
    ("option", "share", "acts"),
    [
        ("dropout", 0.5, True),
        ("attention_dropout", 0.5, True),
        ("activation_dropout", 0.5, True),
        ("encoder_layerdrop", 1.0, False),
        ("decoder_layerdrop", 1.0, False),
    ],
)
def test_what_a_checkpoint_drops(option: str, share: float, acts: bool, published: Path, tmp_path: Path) -> None:
    """Its dropout acts in training alone; its LayerDrop does not act at all."""
    losses: dict[bool, list[float]] = {True: [], False: []}
    for model in (published, publish(tmp_path / "model", **{option: share})):
        module = WhisperModule(checkpoint=str(model))
        for mode, found in losses.items():
            module.train(mode)
            found.append(float(loss_of(module, make_batch(module)).detach()))
    assert losses[False][0] == losses[False][1]
    assert (losses[True][0] != losses[True][1]) == acts


class Clipped(WhisperModule):
    """Keeps the gradients that each optimizer step gets."""

    steps: ClassVar[list[list[torch.Tensor]]] = []

    def configure_gradient_clipping(self, optimizer: Any, *arguments: Any, **options: Any) -> None:
        super().configure_gradient_clipping(optimizer, *arguments, **options)
        self.steps.append([p.grad.clone() for p in self.parameters() if p.grad is not None])


def clipped(tmp_path: Path, **options: Any) -> list[torch.Tensor]:
    """The gradients of one step, as the optimizer gets them."""
    torch.manual_seed(0)
    module = Clipped(checkpoint=str(MODEL), random_weights=True)
    batches: DataLoader[Batch] = DataLoader([make_batch(module)], batch_size=None)  # type: ignore[arg-type]
    trainer = Trainer(max_steps=1, accelerator="cpu", default_root_dir=tmp_path, logger=False, **options)
    trainer.fit(module, batches)
    return Clipped.steps.pop()


def test_gradients_are_clipped_as_the_trainer_is_told(tmp_path: Path) -> None:
    free = clipped(tmp_path)
    norm = float(torch.nn.utils.get_total_norm(free))
    largest = max(float(gradient.abs().max()) for gradient in free)
    by_norm = clipped(tmp_path, gradient_clip_val=norm / 2)
    by_value = clipped(tmp_path, gradient_clip_val=largest / 2, gradient_clip_algorithm="value")
    for gradient, halved, cut in zip(free, by_norm, by_value, strict=True):
        assert torch.allclose(halved, gradient / 2, rtol=1e-4)
        assert torch.equal(cut, gradient.clamp(-largest / 2, largest / 2))
    assert clipped(tmp_path, gradient_clip_val=2 * norm)[0].equal(free[0])


def test_a_folder_without_weights_names_the_remedy() -> None:
    with pytest.raises(UserError, match="random_weights"):
        WhisperModule(checkpoint=str(MODEL))


def test_saved_generation_config(tmp_path: Path) -> None:
    module = make_module(language="Spanish")
    module.save_pretrained(tmp_path)
    loaded = WhisperForConditionalGeneration.from_pretrained(tmp_path)
    assert {weight.dtype for weight in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    assert loaded.dtype == torch.float32  # a CPU is very slow in float16
    for mine, theirs in zip(module.whisper.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(mine.half().float(), theirs)
    assert loaded.config.architectures == ["WhisperForConditionalGeneration"]
    generation = loaded.generation_config
    assert (generation.language, generation.task) == ("es", "transcribe")
    assert generation.forced_decoder_ids is None
    assert not generation.suppress_tokens
    assert generation.lang_to_id["<|es|>"] > 0
    assert (tmp_path / "preprocessor_config.json").is_file()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_runs_and_stays_near(dtype: torch.dtype) -> None:
    """Training, and a validation, whose decoder has a cache in that type."""
    module = make_module(max_tokens=8)
    batch: Any = make_batch(module)
    expected = float(loss_of(module, batch))
    with torch.autocast("cpu", dtype=dtype):
        assert module.log_mel(batch.waveforms).dtype == torch.float32
        loss = loss_of(module, batch)
        with torch.no_grad():
            decoded = module.eval().validation_step(batch, 0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(
        p.grad is None or (p.grad.dtype == torch.float32 and p.grad.isfinite().all()) for p in module.parameters()
    )
    assert loss.dtype == decoded.loss_sum.dtype == torch.float32
    assert float(loss) == pytest.approx(expected, rel=0.02)
    assert float(decoded.loss_sum) / decoded.num_tokens == pytest.approx(expected, rel=0.02)
    assert len(decoded.hypotheses) == len(SENTENCES)
