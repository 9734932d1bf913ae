"""Write a model for other programs, and have each of them read it and transcribe the same clips.

whisper-lightning export runs/quickstart exported --formats hf,ct2
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from whisper_lightning.audio.decoders import AudioError
from whisper_lightning.audio.read import load_audio
from whisper_lightning.data.generations import open_folder
from whisper_lightning.data.manifest import read_manifest
from whisper_lightning.errors import UserError, is_full_disk
from whisper_lightning.export.card import Run, find_base, find_license, model_card, read_run
from whisper_lightning.export.check import INT8_POINTS, Check, Clip, export
from whisper_lightning.export.formats import FORMATS, Rounding, check_request
from whisper_lightning.export.push import check_repository, list_files, push
from whisper_lightning.model.load import load
from whisper_lightning.terminal import CommandLine, read_command_line, say

NUM_SHOWN = 10
"""Differing clips that are shown of each format."""


def run(args: list[str]) -> int:
    """Export and check; return 1 when a client hears something else than we do."""
    parser = CommandLine("export", __doc__)
    parser.add_argument("model", help="run folder (its best model), last.ckpt, Hugging Face folder, or hub name")
    parser.add_argument("out", type=Path, help="folder that the exports go to")
    parser.add_argument("--formats", default="hf", help=f"some of {','.join(FORMATS)}")
    parser.add_argument("--precision", choices=["fp32", "fp16"], default="fp32", help="of hf and openai; ggml is fp16")
    parser.add_argument("--quantization", choices=["int8", "float16", "float32"], default="float16", help="of ct2")
    parser.add_argument("--data", type=Path, help="CSV of clips to compare on; the run's own test data by default")
    parser.add_argument("--num_clips", type=int, default=100, help="at most so many of them")
    parser.add_argument("--language", help="language, where the model does not say")
    parser.add_argument("--license", help="for the model card, such as cc-by-4.0; that of a published Whisper is known")
    parser.add_argument("--base_model", help="hub name of what the model was made of, where the run does not say")
    parser.add_argument("--name", help="what the model card calls the model; by default as its folder")
    parser.add_argument("--push_to_hub", metavar="NAME", help="send hf/ and its card to this repository of the hub")
    parser.add_argument("--private", action="store_true", help="make that repository for its owner alone")
    parser.add_argument("--dry_run", action="store_true", help="only say what would be sent")
    options = read_command_line(parser, args)
    formats = list(dict.fromkeys(options.formats.split(",")))
    try:
        module = load(options.model, language=options.language, exact=True)
        check_request(module, options.out, formats)
        if options.push_to_hub is not None:
            check_repository(options.push_to_hub)
            if "hf" not in formats:
                raise UserError(f"--push_to_hub sends hf, which is not among --formats {options.formats}")
        trained = read_run(options.model)
        clips = read_clips(_test_data(options.data, trained), options.num_clips, module.full_frames / 100)
        checks = export(module, options.out, formats, clips, Rounding(options.precision, options.quantization))
        if "hf" in formats:
            name = options.name or Path(options.model).resolve().name
            base = options.base_model or find_base(options.model, trained)
            known = options.license or find_license(base)
            if known is None:
                say("the model card says: licence unknown; give --license, and --base_model if it is on the hub")
            card = model_card(name, module, base, trained, *_training_data(trained), known)
            (options.out / FORMATS["hf"].file / "README.md").write_text(card, encoding="utf-8", newline="\n")
        status = report(checks)
        if status == 0 and options.push_to_hub is not None:
            _push(
                options.out / FORMATS["hf"].file, options.push_to_hub, private=options.private, dry_run=options.dry_run
            )
    except UserError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and not is_full_disk(error):
            raise
        raise UserError(f"{options.out}: the export cannot be written ({error}); choose another folder") from None
    return status


def _push(folder: Path, name: str, *, private: bool, dry_run: bool) -> None:
    if dry_run:
        for file, num_bytes in list_files(folder):
            say(f"{num_bytes / 2**20:10.3f} MiB  {file}")
        say(f"would be sent to {name}{', private' if private else ''}; nothing was")
    else:
        say(f"sent: {push(folder, name, private=private)}")


def _test_data(given: Path | None, run: Run | None) -> Path:
    if given is not None:
        return given
    if run is None:
        raise UserError("this model is no run's, so its test data are not known; give --data test.csv")
    return Path(str(run.config["data"]["test"] or run.config["data"]["val"]))


def read_clips(csv: Path, num_clips: int, max_seconds: float) -> list[Clip]:
    """Read the first clips of a CSV that can be used; say which could not.

    Raises:
        UserError: There is no such CSV, or no clip in it that can be read.
    """
    if not csv.is_file():
        raise UserError(f"--data: there is no CSV {str(csv)!r}; give one of clips to compare on")
    clips: list[Clip] = []
    for row in read_manifest(csv, require_sentence=False):
        if len(clips) == num_clips:
            break
        try:
            if row.problem:
                raise AudioError("unreadable", row.problem)
            clips.append(Clip(row.audio, load_audio(Path(row.path), max_seconds), row.sentence))
        except AudioError as error:
            say(f"{csv} row {row.row}: {row.audio}: {error.reason} ({error})", error=True)
    if not clips:
        raise UserError(f"--data: no clip of {csv} can be read; give another CSV")
    return clips


def _training_data(run: Run | None) -> tuple[float | None, int | None]:
    """Return hours and utterances of the training data, where its shards are still at hand."""
    if run is None:
        return None, None
    path = Path(str(run.config["data"]["train"]))
    try:
        index = open_folder(path if path.is_dir() else path.with_name(f"{path.stem}.shards"))
    except (UserError, OSError):
        return None, None
    return index.info["total_seconds"] / 3600, len(index)


def report(checks: list[Check]) -> int:
    """Show differences and the table; return the exit code."""
    console = Console(soft_wrap=True, markup=False, highlight=False)
    for check in checks:
        for name, ours, theirs in check.differences[:NUM_SHOWN]:
            console.print(f"{check.format}, {name}\n  ours:  {ours}\n  {check.client}: {theirs}")
        if len(check.differences) > NUM_SHOWN:
            console.print(f"{check.format}: {len(check.differences) - NUM_SHOWN} more clips differ")
    table = Table()
    for column in ("format", "client", "MiB", "s per s of audio", "same text", "WER to ours", "WER minus ours", ""):
        table.add_column(column)
    for check in checks:
        same = f"{check.num_clips - len(check.differences)}/{check.num_clips}"
        speed = f"{check.seconds_per_second:.3f}"
        points = "" if check.difference is None else check.difference.write()
        row = (f"{check.size_mib:.1f}", speed, same, f"{check.edits.percent:.2f} %", points, check.verdict)
        table.add_row(check.format, check.client, *row)
    Console(width=max(130, console.width)).print(table, markup=False)
    if any(check.verdict == "undecided" for check in checks):
        say(f"undecided: it may cost more than {INT8_POINTS:g} point of WER, or less; give more clips (--num_clips)")
    bad = [check.format for check in checks if check.verdict == "DIFFERS"]
    if bad:
        say(f"error: {', '.join(bad)}: the client's text is not ours, beyond what rounding explains", error=True)
    return 1 if bad else 0
