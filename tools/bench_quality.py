"""Measure what context costs in quality: WER after the same number of utterances seen, decoded at two contexts.

Other programs decode at 30 s. A model that is fine-tuned on shorter input drifts away from that; so each variant of
training starts from the same model, which is good at 30 s as a published Whisper is, and sees as many utterances:

- quickstart: its clips and model, with a context of 30 s;
- sentences: 290 words, sentences of 5 s; the model has learned other sentences from other voices than those it is
  fine-tuned on, and those that it is tested on are unseen in both.

Prints a Markdown table: WER in percent of each seed, at the utterance's own length and at 30 s, after the last step.

    python tools/bench_quality.py --seeds 1 2 3
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch
from make_quickstart import SENTENCES, SHAPE, TRAIN_VOICES, UNSEEN_VOICES, VARIATION, make_model, make_tokenizer
from sentences import draw_sentences, vocabulary
from synthesize_corpus import synthesize_corpus

from whisper_lightning.cli import main as run
from whisper_lightning.data.generations import open_csv
from whisper_lightning.data.loader import BatchDataset
from whisper_lightning.data.plan import PlanOptions, plan_epoch
from whisper_lightning.metrics import EditCounts, word_edits
from whisper_lightning.model.module import WhisperModule
from whisper_lightning.model.trained import open_model
from whisper_lightning.terminal import read_command_line

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart"
CONTEXT = {"max_source_positions": 1500}
VARIANTS = {
    "full": ["--model.context=full"],
    "dynamic": ["--data.full_share=0"],
    "dynamic, 5 % full": ["--data.full_share=0.05"],
    "dynamic, 15 % full": ["--data.full_share=0.15"],
}


@dataclass(frozen=True)
class Task:
    """What is learned.

    Attributes:
        name: In the table.
        model: Folder of the model's configuration and tokenizer.
        first: CSV from which the starting model learns.
        train: CSV for fine-tuning.
        test: CSV that is scored.
        first_steps: Steps from random weights.
    """

    name: str
    model: Path
    first: Path
    train: Path
    test: Path
    first_steps: int


def make_tasks(out: Path) -> list[Task]:
    """Make models and clips, once."""
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    models = {"quickstart": (words, SHAPE | CONTEXT), "sentences": (vocabulary(), SHAPE | CONTEXT)}
    for name, (vocabulary_, shape) in models.items():
        tokenizer = make_tokenizer(vocabulary_, shape["max_target_positions"])
        make_model(out / name, tokenizer, **shape, vocab_size=len(tokenizer))
    sentences, corpus = draw_sentences(2500, seed=1), out / "corpus"
    half = len(TRAIN_VOICES) // 2
    splits = [
        ("first", sentences[:1600], TRAIN_VOICES[:half]),
        ("train", sentences[1600:2300], TRAIN_VOICES[half:]),
        ("test", sentences[2300:2450], UNSEEN_VOICES),
    ]
    index = 0
    for name, chosen, voices in splits:
        if not (corpus / f"{name}.csv").is_file():
            synthesize_corpus(
                chosen,
                corpus,
                name=name,
                num_workers=2,
                audio_format="opus",
                voices=voices,
                variation=VARIATION,
                first_index=index,
            )
        index += len(chosen)
    first, train, test = (corpus / f"{name}.csv" for name, _, _ in splits)
    shipped = QUICKSTART / "train.csv"
    return [
        Task("quickstart", out / "quickstart", shipped, shipped, QUICKSTART / "test.csv", first_steps=500),
        Task("sentences", out / "sentences", first, train, test, first_steps=1500),
    ]


def fit(task: Task, folder: Path, train: Path, max_steps: int, learning_rate: float, options: list[str]) -> Path:
    """Train with the command line, without validations but one at the end; give the last checkpoint."""
    checkpoint = folder / "checkpoints" / "last.ckpt"
    if not checkpoint.is_file():
        status = run(
            [
                "fit",
                f"--trainer.default_root_dir={folder}",
                f"--trainer.max_steps={max_steps}",
                f"--trainer.val_check_interval={max_steps}",
                "--trainer.num_sanity_val_steps=0",
                "--trainer.limit_val_batches=1",
                "--trainer.limit_test_batches=1",
                "--trainer.enable_progress_bar=false",
                "--trainer.accelerator=cpu",
                f"--model.checkpoint={task.model}",
                "--model.random_weights=true",
                f"--model.learning_rate={learning_rate}",
                f"--model.warmup_steps={max_steps // 10}",
                "--model.max_tokens=40",
                f"--data.train={train}",
                f"--data.val={task.test}",
                "--data.num_workers=0",
                "--resume.every_n_steps=100000",
                *options,
            ]
        )
        assert status == 0
    return checkpoint


@torch.no_grad()
def wer(module: WhisperModule, table: Path, full_share: float) -> float:
    """Decode a CSV at full context (share 1) or at the batch's own length (share 0); give the WER in percent."""
    index = open_csv(table)
    options = PlanOptions(batch_size=25, full_samples=module.full_frames * 160, full_share=full_share)
    shards = index.table["shard"]
    batches = BatchDataset(index, module.encoder)
    edits = []
    for planned in plan_epoch(index.num_samples, shards, options, seed=0, epoch=0, shuffle=False):
        batch = batches[planned, 0]
        hypotheses = module.validation_step(batch, 0).hypotheses  # type: ignore[arg-type]
        edits += [word_edits(*pair) for pair in zip(batch.sentences, hypotheses, strict=True)]  # type: ignore[union-attr]
    return reduce(EditCounts.plus, edits, EditCounts()).percent


def score(task: Task, checkpoint: Path) -> tuple[float, float]:
    """Give the WER at the utterances' own length, and at 30 s."""
    module = open_model(str(checkpoint))
    module.max_tokens = 40
    return wer(module, task.test, 0.0), wer(module, task.test, 1.0)


def main(args: list[str] | None = None) -> int:
    """Train every variant and print the table; what is finished already is not trained again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    parser.add_argument("--tasks", nargs="+", choices=["quickstart", "sentences"], default=["quickstart", "sentences"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--max_steps", type=int, default=60, help="steps of fine-tuning, of 16 utterances each")
    given = read_command_line(parser, args)
    rows = ["| task | training | own length, WER % | 30 s, WER % |", "|---|---|---|---|"]
    for task in make_tasks(given.out):
        if task.name not in given.tasks:
            continue
        folder = given.out / "runs" / task.name
        learned = fit(task, folder / "learned", task.first, task.first_steps, 3e-3, ["--data.full_share=0.02"])
        start = fit(
            task,
            folder / "start",
            task.first,
            given.max_steps,
            1e-3,
            [f"--model.initial_weights={learned}", "--model.context=full"],
        )
        results = {"before": [score(task, start)]}
        for name, options in VARIANTS.items():
            results[name] = []
            for seed in given.seeds:
                again = [f"--model.initial_weights={start}", f"--seed_everything={seed}", *options]
                own = folder / f"{name.replace(' ', '').replace('%', '').replace(',', '-')}-{seed}"
                results[name].append(score(task, fit(task, own, task.train, given.max_steps, 1e-3, again)))
                print(task.name, name, seed, results[name][-1], file=sys.stderr, flush=True)
        for name, pairs in results.items():
            cells = ["; ".join(f"{pair[i]:.1f}" for pair in pairs) for i in range(2)]
            rows.append(f"| {task.name} | {name} | {cells[0]} | {cells[1]} |")
    print("\n".join(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
