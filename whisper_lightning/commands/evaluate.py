"""Measure models on a test set, compare them, and write a report to look at.

whisper-lightning evaluate runs/quickstart --data test.csv --report report
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from whisper_lightning.errors import UserError
from whisper_lightning.model.load import load
from whisper_lightning.report.folder import write_report
from whisper_lightning.report.results import Results
from whisper_lightning.report.tables import write_p_value
from whisper_lightning.report.transcripts import DataOptions, transcribe_test_set
from whisper_lightning.scoring.spanish import numbers_as_words
from whisper_lightning.terminal import CommandLine, read_command_line, say


def name_models(sources: Sequence[str]) -> list[str]:
    """Return the shortest ends of the models' paths that tell them apart; the same one twice gets a number."""
    parts = [[part for part in Path(s).parts if part not in ("best", "checkpoints")] or [s] for s in sources]
    distinct = {tuple(each) for each in parts}
    # A checkpoint's own name says nothing: its run's does.
    shortest = 2 if any(each[-1].endswith(".ckpt") for each in parts) else 1
    lengths = range(shortest, max(map(len, parts)) + shortest + 1)
    length = next(n for n in lengths if len({each[-n:] for each in distinct}) == len(distinct))
    names = ["/".join(each[-length:]) for each in parts]
    return [f"{n} ({names[:i].count(n) + 1})" if n in names[:i] else n for i, n in enumerate(names)]


def parse(args: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = CommandLine("evaluate", __doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="run folder, last.ckpt, folder, or hub name")
    parser.add_argument("--data", required=True, help="CSV or folder of shards to test on")
    parser.add_argument("--report", type=Path, required=True, help="folder that the report goes to")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="what the report calls the models")
    parser.add_argument("--language", help="what is spoken; by default what each model was trained for")
    parser.add_argument("--audio_root", help="folder that audio paths are relative to")
    parser.add_argument("--columns", nargs=2, metavar=("AUDIO", "SENTENCE"), help="names of the two columns")
    parser.add_argument("--batch_size", type=int, default=16, help="utterances decoded together (default 16)")
    parser.add_argument("--num_beams", type=int, default=1, help="transcripts followed at once; greedy by default")
    parser.add_argument("--num_workers", type=int, default=2, help="processes that read audio (default 2)")
    return read_command_line(parser, args)


def measure(options: argparse.Namespace) -> Results:
    """Decode, score and write the report; return what it says."""
    names = options.names or name_models(options.models)
    if len(names) != len(options.models) or len(set(names)) != len(names):
        raise UserError(f"--names: {len(options.models)} different names are needed, not {names}")
    if options.batch_size < 1:
        raise UserError(f"--batch_size: {options.batch_size}; at least one utterance is decoded at a time")
    if options.num_beams < 1:
        raise UserError(f"--num_beams: {options.num_beams}; 1 is greedy, other programs take 5")
    if options.num_workers < 0:
        raise UserError(f"--num_workers: {options.num_workers}; 0 reads in this process")
    numbers_as_words("20")  # so that a missing package is not found after an hour of decoding
    folder: Path = options.report
    try:
        folder.mkdir(parents=True, exist_ok=True)
        data = DataOptions(options.data, options.audio_root, options.columns, options.batch_size, options.num_workers)
        open_one = partial(load, language=options.language, num_beams=options.num_beams)
        transcripts = transcribe_test_set(options.models, open_one, names, data, folder)
        return write_report(transcripts, folder)
    except OSError as error:
        raise UserError(f"{folder}: the report cannot be written ({error.strerror or error})") from None


def run(args: list[str]) -> int:
    """Evaluate and print the figures."""
    options = parse(args)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    results = measure(options)
    for model in results.models:
        wers = (f"{name} {scores.wer.write()}" for name, scores in model.scores.items())
        say(f"{model.name}: WER {', '.join(wers)}")
    for each in results.differences:
        if each.rate == "wer" and each.scoring == "normalized":
            p_value = write_p_value(each.figures.p_value)
            say(f"{each.first} minus {each.second}: {each.figures.write()} points, p {p_value}")
    data = results.data
    say(f"{data.num_utterances} utterances of {data.source}, {len(data.rejected)} rows left out")
    say(f"report: {options.report / 'index.html'}")
    return 0
