"""Measure what fine-tuning costs elsewhere, and what guards save: the usual run beside the one that its guards steer.

Each seed is trained once, as a run without guards' say (`--best.alphas []`), which ends with its best step. A copy of
that run is continued with them: nothing is trained any more, and it ends with the weights between start and best step
that they admit. With --ours, the guarded run has options of its own, and is trained by itself. Prints a Markdown
table: WER on the domain's own test, and of each guard the difference from the model that both start from, over all
seeds, with 95 % intervals.

    python -m benchmarks.forgetting whisper-base train.csv val.csv test.csv --guard read=read.csv --ours=--data.pack=0.5
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

import pandas as pd

from whisper_lightning.cli import main as run
from whisper_lightning.scoring.intervals import Difference, paired_difference
from whisper_lightning.scoring.utterance import errors_and_lengths, measure, read_transcripts, transcripts_path
from whisper_lightning.terminal import read_command_line


def command(given: argparse.Namespace, folder: Path, seed: int) -> list[str]:
    """Return the command of a run, without what its guards may do."""
    guards = ", ".join(f"{name}: {Path(path).resolve()}" for name, path in given.guard)
    return [
        "fit",
        f"--seed_everything={seed}",
        f"--trainer.default_root_dir={folder}",
        f"--trainer.max_steps={given.max_steps}",
        f"--trainer.val_check_interval={given.max_steps // 2}",
        f"--trainer.precision={given.precision}",
        "--trainer.enable_progress_bar=false",
        f"--model.checkpoint={given.model}",
        f"--model.learning_rate={given.learning_rate}",
        f"--model.warmup_steps={given.max_steps // 6}",
        f"--data.train={given.train}",
        f"--data.val={given.val}",
        f"--data.test={given.test}",
        f"--data.guard={{{guards}}}",
        f"--data.batch_size={given.batch_size}",
        "--data.num_workers=0",
        f"--resume.every_n_steps={given.max_steps // 2}",
        *given.options,
    ]


def train(given: argparse.Namespace, seed: int) -> tuple[Path, Path, float]:
    """Train a seed and settle it with its guards; what is finished already is not done again.

    Returns:
        The folders of both runs, and the seconds of the guarded one, which are those of its choice unless it is
        trained by itself, over those of the other.
    """
    naive, guarded = (given.out / f"{name}-{seed}" for name in ("naive", "guarded"))
    seconds = []
    for folder, options in (
        (naive, ["--best.alphas=[]"]),
        (guarded, [f"--best.alphas={given.alphas}", *(given.ours or ["--ckpt_path=last"])]),
    ):
        times = folder.with_suffix(".seconds")
        if not times.is_file():
            if folder is guarded and not given.ours:
                shutil.copytree(naive, guarded, dirs_exist_ok=True)
            else:
                shutil.rmtree(folder, ignore_errors=True)
            begun = time.perf_counter()
            assert run([*command(given, folder, seed), *options]) == 0
            times.write_text(f"{time.perf_counter() - begun}", encoding="utf-8")
        seconds.append(float(times.read_text(encoding="utf-8")))
    return naive, guarded, seconds[1] / seconds[0]


def compare(folders: list[Path], guard: str, rate: str) -> Difference:
    """Compare the tests of several runs with what they started from: all utterances of all seeds."""
    errors: list[list[int]] = [[], []]
    lengths: list[int] = []
    for folder in folders:
        tables = [read_transcripts(transcripts_path(folder, guard, name)) for name in ("test", "before")]
        assert tables[0]["key"].equals(tables[1]["key"])
        for found, table in zip(errors, tables, strict=True):
            found += errors_and_lengths(table, rate)[0]
        lengths += errors_and_lengths(tables[0], rate)[1]
    return paired_difference(errors[0], errors[1], lengths)


def row(name: str, folders: list[Path], guards: list[str]) -> str:
    """Return a row of the table."""
    wers = "; ".join(f"{measure(read_transcripts(transcripts_path(f, '', 'test')), 'wer').value:.2f}" for f in folders)
    cells = [name, wers, compare(folders, "", "wer").write()]
    cells += [compare(folders, f"guard/{guard}", "wer_normalized").write() for guard in guards]
    return f"| {' | '.join(cells)} |"


def chosen(folder: Path) -> str:
    """Return the alpha that a run has ended with; where no step was better than the start, there was no choice."""
    if not (folder / "alphas.csv").is_file():
        return "the start"
    table = pd.read_csv(folder / "alphas.csv")
    return f"{table.loc[table['chosen'] == 1, 'alpha'].iloc[0]:g}"


def main(args: list[str] | None = None) -> int:
    """Train, settle, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a published Whisper, or the folder of one")
    parser.add_argument("train", type=Path, help="CSV of the domain, for fine-tuning")
    parser.add_argument("val", type=Path, help="CSV of the domain that steps and weights are chosen on")
    parser.add_argument("test", type=Path, help="CSV of the domain that is reported")
    parser.add_argument("--guard", nargs="+", type=lambda text: text.split("=", 1), required=True, metavar="NAME=CSV")
    parser.add_argument("--out", type=Path, default=Path("runs/forgetting"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--max_steps", type=int, default=300)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--alphas", default="[0.25, 0.5, 0.75]", help="of best.alphas")
    parser.add_argument("--options", action="append", default=[], help="a further option of every run; more than once")
    parser.add_argument("--ours", action="append", default=[], help="a further option of the guarded run; also")
    given = read_command_line(parser, args)
    given.out.mkdir(parents=True, exist_ok=True)
    pairs = [train(given, seed) for seed in given.seeds]
    guards = [name for name, _ in given.guard]
    before = measure(read_transcripts(transcripts_path(pairs[0][0], "", "before")), "wer").value
    print(f"| | domain, WER of each seed, % | difference | {' | '.join(guards)} |")
    print("|---" * (3 + len(guards)) + "|")
    print(f"| before | {before:.2f} | |{' |' * len(guards)}")
    print(row("best step", [naive for naive, _, _ in pairs], guards))
    print(row("guarded", [guarded for _, guarded, _ in pairs], guards))
    print(f"\nalpha: {', '.join(chosen(guarded) for _, guarded, _ in pairs)}")
    print(f"seconds of the guarded run over the other's: {', '.join(f'{share:.2f}' for _, _, share in pairs)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
