"""Time the usual Hugging Face recipe and ours side by side, from CSV to best model, and print a table of ratios.

Both start from the same random weights of Whisper's real shape and see as many utterances of the same synthetic corpus,
with as many evaluations and checkpoints. They run in turn, stage by stage (bench_turns.py), so that each figure of one
was taken beside the other's. Needs the `bench` and `dev` extras, and Linux for the memory figures.

    python -m benchmarks.bench --quick
    python -m benchmarks.bench --sizes tiny base --max_steps 100
"""

from __future__ import annotations

import argparse
import platform
import shutil
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch
from tqdm import tqdm
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

from benchmarks.bench_turns import Job, Program, Stage, take_turns
from tools.make_quickstart import make_model, make_tokenizer
from tools.sentences import draw_sentences, vocabulary
from tools.synthesize_corpus import synthesize_corpus
from whisper_lightning.model.cost import training_flops
from whisper_lightning.terminal import read_command_line

MIB = 2**20
COMMON = {"num_mel_bins": 80, "vocab_size": 51_865, "max_source_positions": 1500, "max_target_positions": 448}
SHAPES = {
    name: COMMON
    | {"d_model": width, "encoder_ffn_dim": 4 * width, "decoder_ffn_dim": 4 * width}
    | {"encoder_layers": layers, "decoder_layers": layers}
    | {"encoder_attention_heads": width // 64, "decoder_attention_heads": width // 64}
    for name, width, layers in (("tiny", 384, 4), ("base", 512, 6), ("small", 768, 12))
}
TOKENS_PER_SENTENCE = 23
"""Of Whisper's own vocabulary on Spanish sentences of 5 s; the bench's vocabulary is cut to come near it."""


def make_corpus(folder: Path, num_train: int, num_test: int) -> tuple[Path, Path]:
    """Speak sentences of about 5 s, once."""
    tables = folder / "train.csv", folder / "test.csv"
    sentences, first = draw_sentences(num_train + num_test, seed=0), 0
    for table, count in zip(tables, (num_train, num_test), strict=True):
        if not table.is_file():
            chosen = sentences[first : first + count]
            synthesize_corpus(
                chosen, folder, name=table.stem, num_workers=2, audio_format="opus", first_index=first, seed=0
            )
        first += count
    return tables


def make_weights(folder: Path, size: str) -> None:
    """Write a model of a real shape with random weights, the same each time."""
    tokenizer = make_tokenizer(vocabulary(), SHAPES[size]["max_target_positions"], vocab_size=420)
    make_model(folder, tokenizer, **SHAPES[size])
    torch.manual_seed(0)
    whisper = WhisperForConditionalGeneration(WhisperConfig.from_pretrained(folder))
    whisper.generation_config = GenerationConfig.from_pretrained(folder)
    whisper.save_pretrained(folder)


def matrix_flops_per_second(dtype: torch.dtype) -> float:
    """Measure what this machine reaches on a large matrix product: the best of several."""
    a, b = torch.randn(2, 1024, 1024).to(dtype)
    seconds = []
    for _ in range(8):
        begin = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - begin)
    return 2 * 1024**3 / min(seconds)


def per_utterance(stages: list[Stage]) -> float:
    """Seconds per utterance over stages of one kind."""
    return sum(stage.seconds for stage in stages) / sum(stage.utterances for stage in stages)


def ratio(theirs: list[Stage], ours: list[Stage]) -> str:
    """Return theirs / ours, per utterance where there are any, with the 95 % interval over resampled stages."""
    generator = np.random.default_rng(0)

    def cost(stages: list[Stage], rows: np.ndarray | slice) -> float:
        table = np.array([(stage.seconds, max(1, stage.utterances)) for stage in stages])[rows]
        return float(table[:, 0].sum() / table[:, 1].sum())

    value = cost(theirs, slice(None)) / cost(ours, slice(None))
    if min(len(theirs), len(ours)) < 2:
        return f"{value:.1f}×"
    drawn = [
        cost(theirs, generator.integers(len(theirs), size=len(theirs)))
        / cost(ours, generator.integers(len(ours), size=len(ours)))
        for _ in range(1000)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return f"{value:.1f}× ({low:.1f} to {high:.1f})"


def num_bytes(folder: Path, pattern: str = "**/*") -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.glob(pattern) if path.is_file())


class Result:
    """What one side took."""

    def __init__(self, program: Program, job: Job) -> None:
        self.name = program.name
        evaluations = job.max_steps // job.eval_every
        self.stages: dict[str, list[Stage]] = defaultdict(list)
        for stage in program.stages:
            self.stages[stage.name].append(stage)
        self.stages["step"] = self.stages["step"][1:]  # the first one allocates
        self.seconds = sum(stage.seconds for stage in program.stages)
        self.data_bytes = num_bytes(job.folder) - num_bytes(job.folder / "run")
        # The recipe keeps a folder for each evaluation; ours are replaced.
        self.each_mb = num_bytes(job.folder / "run", "checkpoint-*/**/*") / evaluations / 1e6
        self.replaced_mb = sum(num_bytes(job.folder / "run", f"{name}/**/*") for name in ("checkpoints", "best")) / 1e6

    def peak_mib(self, name: str) -> float:
        """Most memory in the stages of a name."""
        return max(stage.peak_mib for stage in self.stages[name])

    def checkpoint_mb(self, evaluations: int) -> float:
        """MB that a run of so many evaluations leaves behind."""
        return self.each_mb * evaluations + self.replaced_mb

    def whole_job(self, max_steps: int, evaluations: int) -> float:
        """Seconds of a run of so many steps and evaluations, put together from the stages that were timed."""
        once = sum(
            stage.seconds for name in ("imports", "prepare", "start", "baseline", "end") for stage in self.stages[name]
        )
        step, evaluate, save = (
            np.mean([s.seconds for s in self.stages[n]]) for n in ("step", "evaluate", "checkpoint")
        )
        return float(once + max_steps * step + evaluations * (evaluate + save))


def measure(folder: Path, job: Job, tails: list[str]) -> list[Result]:
    """Run the recipe, and ours with each `model.tail`, in turn."""
    sides = [("recipe", "benchmarks.bench_recipe.run_recipe", "exact")]
    sides += [(f"ours, tail {tail}", "benchmarks.bench_ours.run_ours", tail) for tail in tails]
    programs, jobs = [], []
    for number, (name, program, tail) in enumerate(sides):
        own = folder / f"side-{number}"
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir(parents=True)
        programs.append(Program(name, folder / f"side-{number}.log"))
        jobs.append(replace(job, folder=own, tail=tail))
        programs[-1].start(program, jobs[-1])
    with tqdm(unit="round", disable=None) as bar:
        take_turns(programs, bar.update)
    return [Result(*pair) for pair in zip(programs, jobs, strict=True)]


def table(size: str, results: list[Result], job: Job, seconds_per_utterance: float, rate: float) -> list[str]:
    """Return the Markdown rows of one size."""
    recipe, *ours = results
    flops = training_flops(WhisperConfig(**SHAPES[size]), seconds_per_utterance, TOKENS_PER_SENTENCE)
    evaluations = job.max_steps // job.eval_every

    def row(name: str, figures: list[float], digits: int, ratios: list[str]) -> str:
        cells = [f"{figures[0]:,.{digits}f}"]
        cells += [f"{figure:,.{digits}f}: **{text}**" for figure, text in zip(figures[1:], ratios, strict=True)]
        return f"| {name} | {' | '.join(cells)} |"

    def timed(name: str, stage: str) -> str:
        figures = [per_utterance(each.stages[stage]) for each in results]
        return row(name, figures, 3, [ratio(recipe.stages[stage], each.stages[stage]) for each in ours])

    def counted(name: str, figures: list[float], digits: int = 0) -> str:
        return row(name, figures, digits, [f"{figures[0] / figure:.1f}×" for figure in figures[1:]])

    def saved() -> str:
        figures = [float(np.mean([stage.seconds for stage in each.stages["checkpoint"]])) for each in results]
        return row(
            "saving, s", figures, 2, [ratio(recipe.stages["checkpoint"], each.stages["checkpoint"]) for each in ours]
        )

    shares = [flops / per_utterance(each.stages["step"]) / rate for each in results]
    utterances, tested = (recipe.stages[name][0].utterances for name in ("prepare", "evaluate"))
    return [
        f"| **{size}**, {'bf16' if job.bf16 else 'fp32'} | {' | '.join(each.name for each in results)} |",
        "|---" * (len(results) + 1) + "|",
        timed("preparation, s per utterance", "prepare"),
        counted("data on disk, kB per utterance", [each.data_bytes / 1000 / utterances for each in results]),
        counted("peak memory in preparation, MiB", [each.peak_mib("prepare") for each in results]),
        timed("training step, s per utterance seen", "step"),
        f"| share of the matrix rate, on the true audio | {' | '.join(f'{share:.0%}' for share in shares)} |",
        counted("peak memory in training, MiB", [each.peak_mib("step") for each in results]),
        timed("evaluation with loss, s per utterance", "evaluate"),
        counted("checkpoints of a run of 4 evaluations, MB", [each.checkpoint_mb(4) for each in results]),
        saved(),
        counted(
            f"whole job, {job.max_steps} steps and {evaluations} evaluations of {tested} utterances, s",
            [each.seconds for each in results],
        ),
        counted(
            "the same with 100 steps and 4 evaluations, added up from the stages above, s",
            [each.whole_job(100, 4) for each in results],
        ),
    ]


def main(args: list[str] | None = None) -> int:
    """Measure each size and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder for everything that is written")
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=["tiny"])
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32"])
    parser.add_argument("--max_steps", type=int, default=100)
    parser.add_argument("--evaluations", type=int, default=4)
    parser.add_argument("--num_train", type=int, default=512, help="training utterances")
    parser.add_argument("--num_test", type=int, default=64, help="utterances of each evaluation")
    parser.add_argument("--tail", nargs="+", default=["40"], help="model.tail of ours, one column each")
    parser.add_argument("--quick", action="store_true", help="4 steps, 2 evaluations, 64 and 8 utterances")
    given = read_command_line(parser, args)
    if given.quick:
        given.max_steps, given.evaluations, given.num_train, given.num_test = 4, 2, 64, 8
    corpus = given.out / f"corpus-{given.num_train}-{given.num_test}"
    train, test = make_corpus(corpus, given.num_train, given.num_test)
    durations = [soundfile.info(path).duration for path in sorted((corpus / "audio").glob("*.opus"))]
    mean_seconds = float(np.mean(durations))
    rates = {"fp32": matrix_flops_per_second(torch.float32), "bf16": matrix_flops_per_second(torch.bfloat16)}
    print(
        f"{given.num_train} + {given.num_test} utterances, mean {mean_seconds:.1f} s; {platform.processor()}, torch "
        f"{torch.__version__}, {torch.get_num_threads()} threads"
    )
    for name, rate in rates.items():
        print(f"matrix products in {name}: {rate / 1e9:.0f} GFLOP/s")
    for size in given.sizes:
        make_weights(given.out / size, size)
        for precision in given.precision:
            job = Job(
                folder=given.out,
                train=train,
                test=test,
                model=given.out / size,
                batch_size=16,
                max_steps=given.max_steps,
                eval_every=given.max_steps // given.evaluations,
                max_tokens=TOKENS_PER_SENTENCE,
                bf16=precision == "bf16",
                tail="exact",
            )
            results = measure(given.out / f"{size}-{precision}", job, given.tail)
            print("\n" + "\n".join(table(size, results, job, mean_seconds, rates[precision])), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
