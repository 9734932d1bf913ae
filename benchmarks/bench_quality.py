"""Measure what sampling the silence costs in quality: models trained with and without, each decoded at every position.

Every variant fine-tunes the same model on the same batches, with as many steps, once for each seed. What comes out is
decoded with every position computed, as other programs do, after the last step. Prints a Markdown table: `model.tail`,
WER of each seed, and over all seeds the paired difference from the first variant with its 95 % interval.

    python -m benchmarks.bench_quality whisper-base speech/train.csv speech/test.csv --tails exact 40 --seeds 1 2 3
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from whisper_lightning.cli import main as run
from whisper_lightning.data.generations import open_csv
from whisper_lightning.data.loader import BatchDataset
from whisper_lightning.data.plan import PlanOptions, plan_epoch
from whisper_lightning.model.load import load
from whisper_lightning.scoring.edits import EditCounts, word_edits
from whisper_lightning.scoring.intervals import paired_difference
from whisper_lightning.scoring.normalize import normalize
from whisper_lightning.terminal import read_command_line


@dataclass(frozen=True)
class Training:
    """What all variants have in common.

    Attributes:
        model: The model to start from.
        train: CSV for fine-tuning.
        test: CSV that is scored.
        max_steps: Optimizer steps.
        batch_size: Utterances in each.
        learning_rate: Its peak.
        precision: `trainer.precision`.
    """

    model: str
    train: Path
    test: Path
    max_steps: int
    batch_size: int
    learning_rate: float
    precision: str


def fit(training: Training, folder: Path, tail: str, seed: int) -> Path:
    """Train with the command line, with one short validation at the end; return the last checkpoint."""
    checkpoint = folder / "checkpoints" / "last.ckpt"
    if not checkpoint.is_file():
        status = run(
            [
                "fit",
                f"--seed_everything={seed}",
                f"--trainer.default_root_dir={folder}",
                f"--trainer.max_steps={training.max_steps}",
                f"--trainer.val_check_interval={training.max_steps}",
                f"--trainer.precision={training.precision}",
                "--trainer.num_sanity_val_steps=0",
                "--trainer.limit_val_batches=1",
                "--trainer.limit_test_batches=1",
                "--trainer.enable_progress_bar=false",
                f"--model.checkpoint={training.model}",
                f"--model.tail={tail}",
                f"--model.learning_rate={training.learning_rate}",
                f"--model.warmup_steps={training.max_steps // 4}",
                f"--data.train={training.train}",
                f"--data.val={training.test}",
                f"--data.batch_size={training.batch_size}",
                "--data.num_workers=0",
                f"--resume.every_n_steps={training.max_steps}",
            ]
        )
        assert status == 0
    return checkpoint


@torch.no_grad()
def score(source: str, table: Path) -> list[EditCounts]:
    """Decode a CSV with every position computed; return the edits of each utterance, normalized."""
    module = load(source, exact=True)
    index = open_csv(table)
    batches, shards = BatchDataset(index, module.encoder), index.table["shard"]
    plan = plan_epoch(index.num_samples, shards, PlanOptions(batch_size=25), seed=0, epoch=0, shuffle=False)
    edits: list[EditCounts] = []
    for planned in tqdm(plan, desc=Path(source).parent.parent.name, leave=False):
        batch = batches[planned, 0]
        hypotheses = module.validation_step(batch, 0).hypotheses  # type: ignore[arg-type]
        pairs = zip(batch.sentences, hypotheses, strict=True)  # type: ignore[union-attr]
        edits += [word_edits(normalize(reference), normalize(hypothesis)) for reference, hypothesis in pairs]
    return edits


def wer(edits: list[EditCounts]) -> str:
    """Return the WER in percent."""
    return f"{reduce(EditCounts.plus, edits, EditCounts()).percent:.2f}"


def row(name: str, scores: list[list[EditCounts]], reference: list[list[EditCounts]]) -> str:
    """Compare the seeds of a variant with those of the first."""
    ours, theirs = (np.sum([[each.errors for each in seed] for seed in edits], axis=0) for edits in (scores, reference))
    lengths = [len(scores) * each.reference_length for each in scores[0]]
    difference = paired_difference(ours.tolist(), theirs.tolist(), lengths)
    return f"| {name} | {'; '.join(wer(edits) for edits in scores)} | {difference.write()} |"


def main(args: list[str] | None = None) -> int:
    """Train every variant and print the table; what is finished already is not trained again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a published Whisper, or the folder of one")
    parser.add_argument("train", type=Path, help="CSV for fine-tuning")
    parser.add_argument("test", type=Path, help="CSV that is scored")
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    parser.add_argument("--tails", nargs="+", default=["exact", "40"], help="a row each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--max_steps", type=int, default=200)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=1e-5)
    parser.add_argument("--precision", default="32-true")
    given = read_command_line(parser, args)
    sizes = (given.max_steps, given.batch_size, given.learning_rate, given.precision)
    training = Training(given.model, given.train, given.test, *sizes)
    scores: dict[str, list[list[EditCounts]]] = {}
    for tail in given.tails:
        checkpoints = [fit(training, given.out / f"tail-{tail}-seed-{seed}", tail, seed) for seed in given.seeds]
        scores[tail] = [score(str(checkpoint), training.test) for checkpoint in checkpoints]
    print("| model.tail | WER of each seed, % | difference, all seeds |")
    print("|---|---|---|")
    print(f"| not trained | {wer(score(training.model, training.test))} | |")
    for tail in given.tails:
        print(row(tail, scores[tail], scores[given.tails[0]]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
