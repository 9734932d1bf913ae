"""Say beforehand what a run needs: memory of its largest batch, steps, disk; and what else a card could hold.

whisper-lightning plan --config rtx3060.yaml --card 12

Takes every option of fit. The model need not be downloaded where it is one of OpenAI's.
"""

from __future__ import annotations

import math
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from jsonargparse import Namespace
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import WhisperConfig

from whisper_lightning.audio.constants import POSITIONS_PER_SECOND, SAMPLE_RATE_HZ, SAMPLES_PER_POSITION
from whisper_lightning.audio.decoders import promised_seconds
from whisper_lightning.commands.training import fit_options
from whisper_lightning.data.generations import holds_recordings, open_folder
from whisper_lightning.data.plan import Plan, PlanOptions, plan_epoch
from whisper_lightning.data.source import read_source
from whisper_lightning.data.transfer import is_remote
from whisper_lightning.errors import UserError
from whisper_lightning.hub import load_config
from whisper_lightning.model.cost import rows_at_once
from whisper_lightning.model.rehearsal import Load, Mode, Rehearsal
from whisper_lightning.terminal import CommandLine, say

GIB = 2**30
USUAL_CARD_GIB = 12.0
USABLE = 0.85
"""Share of a card's memory that a run's tensors may fill; CUDA itself, the screen and gaps take the rest."""
SHAPES = {  # width, layers of encoder and decoder, bands of the log-mel, vocabulary
    "tiny": (384, 4, 4, 80, 51_865),
    "base": (512, 6, 6, 80, 51_865),
    "small": (768, 12, 12, 80, 51_865),
    "medium": (1024, 24, 24, 80, 51_865),
    "large-v2": (1280, 32, 32, 80, 51_865),
    "large-v3": (1280, 32, 32, 128, 51_866),
    "large-v3-turbo": (1280, 32, 4, 128, 51_866),
}
PROMPT_TOKENS, TOKENS_PER_SECOND = 5, 6.0
"""Of a label: what stands around the text, and what Spanish read aloud has, rather more."""
SILENT_SECONDS = 0.25
"""What is computed of the silence beside `model.tail` positions."""
SHARD_BYTES_PER_SECOND = 19_000
MEASURED_ROWS = 4
LORA_RANK = 32
"""Of the table, where the configuration has no adapters."""


def run(args: list[str]) -> int:
    """Print the plan."""
    parser = CommandLine("plan", __doc__)
    parser.add_argument("--card", type=float, metavar="GIB", help="its memory; by default this machine's, or 12")
    parser.add_argument("--measure", action="store_true", help="take two steps of random weights here, for the time")
    parser.add_argument("--table", action="store_true", help="which published models the card holds, trained how")
    given, rest = parser.parse_known_args(args)
    if given.card is not None and not given.card > 0:
        raise UserError(f"--card: {given.card:g}; its memory in GiB, such as 12")
    card = given.card or _this_card()
    options = fit_options(rest)
    shape, mode = _shape(options.model.checkpoint), _mode(options)
    told = _lengths(options.data)
    lengths = told[(told > 0) & (told <= shape.max_source_positions * SAMPLES_PER_POSITION)]
    if not len(lengths):
        raise UserError(f"data.train: no clip in {options.data.train} is as short as what the model hears at once")
    rule = PlanOptions(options.data.batch_size, options.data.max_batch_seconds)
    plan = plan_epoch(lengths, np.zeros(len(lengths), np.int64), rule, seed=0, epoch=0)
    training = _training_load(options, shape, plan)
    evaluated = PlanOptions(options.data.eval_batch_size, options.data.max_batch_seconds).rows(
        lengths.max(keepdims=True)
    )
    validation = _load(options, shape, int(evaluated[0]), lengths.max())
    rehearsal = Rehearsal(shape, mode)
    trained = 100 * rehearsal.num_trained / rehearsal.num_weights
    say(f"{options.model.checkpoint}: {rehearsal.num_weights / 1e6:.1f} M weights, {trained:.3g} % of them trained")
    needs = rehearsal.training_bytes(training), rehearsal.validation_bytes(validation)
    for name, load, size in zip(("training", "validation"), (training, validation), needs, strict=True):
        say(f"{name}, at most {load.rows} x {load.seconds:.1f} s of {load.num_tokens} tokens: {size / GIB:.1f} GiB")
    verdict = "it fits" if max(needs) <= USABLE * card * GIB else "it does NOT fit"
    say(f"a card of {card:.3g} GiB has {USABLE * card:.1f} GiB for that: {verdict}")
    hours = lengths.sum() / SAMPLE_RATE_HZ / 3600
    say(f"an epoch: {len(lengths):,} utterances, {hours:.2f} h, in {len(plan):,} batches (fewer with data.pack)")
    if len(lengths) < len(told):
        say(f"{len(told) - len(lengths):,} rows are not counted: no such file, no audio, longer than the model hears")
    if given.measure:
        say(_measure(options, shape, rehearsal, lengths))
    shards, checkpoints = 3600 * hours * SHARD_BYTES_PER_SECOND, 2 * _checkpoint_bytes(rehearsal)
    say(f"disk: {shards / 1e9:.2f} GB of shards, {checkpoints / 1e9:.2f} GB of checkpoints")
    if given.table:
        say(f"\n{_table(mode, training, card)}")
    return 0


def _this_card() -> float:
    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory) / GIB
    return USUAL_CARD_GIB


def _shape(checkpoint: str) -> WhisperConfig:
    """Return a published model's shape by its name, or what a folder says."""
    name = checkpoint.removeprefix("openai/whisper-")
    return _published(name) if name in SHAPES and not Path(checkpoint).is_dir() else load_config(checkpoint)


def _published(name: str) -> WhisperConfig:
    width, encoder_layers, decoder_layers, bands, vocabulary = SHAPES[name]
    return WhisperConfig(
        d_model=width,
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        encoder_attention_heads=width // 64,
        decoder_attention_heads=width // 64,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        num_mel_bins=bands,
        vocab_size=vocabulary,
    )


def _mode(options: Namespace) -> Mode:
    model, precision = options.model, str(options.trainer.precision or "32-true")
    precision = {"16": "16-mixed", "bf16": "bf16-mixed"}.get(precision, precision)  # as Lightning reads them
    return Mode(precision, model.lora_rank, model.lora_targets, model.dora, model.freeze_encoder)


def _lengths(data: Namespace) -> NDArray[np.int64]:
    """Return the samples of each row, as the files' headers or the shards' index tell them; 0 where nothing does."""
    if is_remote("data.train", data.train):
        raise UserError(f"data.train: {data.train} is remote; give a local copy, or shards of the same lengths")
    source = Path(data.train)
    if source.is_dir() and not holds_recordings(source):
        return np.asarray(open_folder(source).table["num_samples"], np.int64)
    if not source.exists():
        raise UserError(f"data.train: {source}: no such file or folder")
    root = None if data.audio_root is None else Path(data.audio_root)
    told = [
        0.0 if row.reason else min(row.end, promised_seconds(Path(row.path))) - row.start
        for row in tqdm(read_source(source, root, data.columns), desc="reading the files' headers", leave=False)
    ]
    lengths = (np.array(told) * SAMPLE_RATE_HZ).astype(np.int64)
    if not (lengths > 0).any():
        raise UserError(f"data.train: no file that {source} names tells its length; are the paths right?")
    return lengths


def _most_rows(data: Namespace, which: str, num_samples: int) -> int:
    """Return how many utterances of one length share a batch at most."""
    return int(PlanOptions(data[which], data.max_batch_seconds).rows(np.array([num_samples]))[0])


def _training_load(options: Namespace, shape: WhisperConfig, plan: Plan) -> Load:
    """Return the batch of an epoch that is the most audio; with windows, a batch of full ones."""
    if options.data.pack:
        full = shape.max_source_positions * SAMPLES_PER_POSITION
        return _load(options, shape, _most_rows(options.data, "batch_size", full), full)
    largest = int((plan.sizes * plan.num_samples).argmax())
    return _load(options, shape, int(plan.sizes[largest]), plan.num_samples[largest])


def _load(options: Namespace, shape: WhisperConfig, rows: int, num_samples: float) -> Load:
    """Return a batch of clips of one length, with what is computed of the silence behind them."""
    full, speech = shape.max_source_positions / POSITIONS_PER_SECOND, float(num_samples) / SAMPLE_RATE_HZ
    tail = full if options.model.tail == "exact" else options.model.tail / POSITIONS_PER_SECOND + SILENT_SECONDS
    seconds, tokens = min(full, speech + tail), math.ceil(PROMPT_TOKENS + TOKENS_PER_SECOND * speech)
    at_once = rows_at_once(rows, seconds, options.model.activation_seconds)
    return Load(rows, seconds, min(shape.max_target_positions, tokens), at_once)


def _measure(options: Namespace, shape: WhisperConfig, rehearsal: Rehearsal, lengths: NDArray[np.int64]) -> str:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    load = _load(options, shape, min(MEASURED_ROWS, options.data.batch_size), float(lengths.mean()))
    seconds = rehearsal.seconds(load, device)
    minutes = seconds / load.rows * len(lengths) / 60
    step = f"a step of {load.rows} x {load.seconds:.1f} s took {seconds:.2f} s ({device.type})"
    return f"{step}: {minutes:.1f} min an epoch, without validations"


def _checkpoint_bytes(rehearsal: Rehearsal) -> int:
    """Weights in float32, and two moments of those that are trained."""
    return 4 * (rehearsal.num_weights + 2 * rehearsal.num_trained)


def _table(mode: Mode, training: Load, card: float) -> str:
    """Say for every published Whisper how many rows of the largest batch a card holds at once, and what that takes."""
    whole = Mode(mode.precision)
    ways = {"all weights": whole, "decoder alone": replace(whole, freeze_encoder=True)}
    if find_spec("peft") is not None:
        rank = mode.lora_rank or LORA_RANK
        ways[f"LoRA, rank {rank}"] = replace(whole, lora_rank=rank)
    batch = f"{training.rows} x {training.seconds:.1f} s"
    lines = [f"| {card:.3g} GiB, {mode.precision}, {batch} | {' | '.join(ways)} |", "|---" * (1 + len(ways)) + "|"]
    for name in tqdm(SHAPES, desc="simulating", leave=False):
        cells = [_cell(Rehearsal(_published(name), way), training, USABLE * card * GIB) for way in ways.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(
        [*lines, "", f"N at once: the same batch, with --model.activation_seconds N x {training.seconds:.1f}"]
    )


def _cell(rehearsal: Rehearsal, load: Load, room: float) -> str:
    """Look for the most rows at once that there is room for; one at least is needed."""
    fitting, too_many = 0, load.rows + 1
    rows, found = load.rows, dict[int, int]()
    while too_many - fitting > 1:
        found[rows] = rehearsal.training_bytes(replace(load, rows_at_once=rows))
        if found[rows] <= room:
            fitting = rows
        else:
            too_many = rows
        rows = 1 if not fitting and 1 not in found else (fitting + too_many) // 2
    return f"{fitting} at once: {found[fitting] / GIB:.1f} GiB" if fitting else f"no: {found[1] / GIB:.1f} GiB"
