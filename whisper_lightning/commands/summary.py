"""What a run says at its end: before and after on the same speech, decoded alike, and how to use the model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger

from whisper_lightning.callbacks.best import KeepBest
from whisper_lightning.callbacks.interpolate import Candidate
from whisper_lightning.data.datamodule import SpeechDataModule
from whisper_lightning.scoring.intervals import Difference
from whisper_lightning.scoring.translation import score_translations
from whisper_lightning.scoring.utterance import measure, measure_difference, read_transcripts, transcripts_path

logger = logging.getLogger(__name__)


def remarks(folder: Path, data: SpeechDataModule, best: KeepBest, chosen: Candidate | None) -> list[str]:
    """Say what is to be known before the figures are believed, and what has become of other speech.

    Args:
        folder: The run's.
        data: What it was trained and tested on.
        best: Which step was the best.
        chosen: What is in `best/`, where there was a choice between the start and the best step.
    """
    lines = []
    if best.step == 0:
        lines.append(
            f"No step was better on the validation than the model that the run started from (WER {best.wer:.2f} %): "
            "best/ holds that model. Train longer, or with another learning rate"
        )
    elif data.test_is_val:
        lines.append("The best step was chosen on these same utterances; for an unbiased figure give data.test")
    if chosen is not None and chosen.alpha == 0.0:
        lines.append(
            "Every model between the start and the best step hears a guard worse (alphas.csv): best/ holds the model "
            "that the run started from, tuned/ the best step"
        )
    elif chosen is not None and not chosen.shown:
        lines.append(
            f"No guard is heard worse on average by more than {best.guard_margin:g} points, but with so few utterances "
            "that is not sure (alphas.csv): give guards of several hundred"
        )
    lines += [line for guard in data.guards for line in _say_of_guard(folder, guard)]
    return lines + say_of_silence(folder)


def describe(best: KeepBest, chosen: Candidate | None) -> str:
    """Say what is in `best/`, in a few words."""
    step = f"step {best.step}"
    if best.is_average:
        step = f"mean of steps {', '.join(str(int(each)) for _, each in best.steps)}"
    if chosen is not None and chosen.alpha < 1.0:
        step = f"{chosen.alpha:g} of the way from the start to {step}"
    return step if step == f"step {best.step}" else f"{step}; step {best.step} is in tuned/"


def sum_up(
    trainer: Trainer, data: SpeechDataModule, best: KeepBest, chosen: Candidate | None, remarks: Sequence[str]
) -> None:
    """Compare `transcripts/test.csv` with `transcripts/before.csv`; say, and log, what came out.

    Args:
        trainer: Of the run, after its test.
        data: What it was trained and tested on.
        best: Which step was the best.
        chosen: What is in `best/`, where there was a choice between the start and the best step.
        remarks: What is to be known before the figures are believed.
    """
    folder = Path(trainer.default_root_dir)
    source = str(data.sources["test"])
    after = read_transcripts(folder / "transcripts" / "test.csv")
    path = folder / "transcripts" / "before.csv"
    before = read_transcripts(path) if path.is_file() else None
    difference = None if before is None else measure_difference(after, before, "wer")
    lines = [f"WER {measure(after, 'wer').write(' %')} on {len(after)} utterances of {source}, decoded at full context"]
    if before is not None and difference is not None:
        lines.append(f"Before training, the same utterances decoded alike: {measure(before, 'wer').write(' %')}")
        lines.append(f"Difference: {_write(difference)}")
    if trainer.lightning_module.task == "translate":
        lines.append(_say_of_translations(after, before))
    lines += remarks
    model = folder / "best"
    lines.append(f"Best model ({describe(best, chosen)}): {model}")
    lines.append(f'Use it: transformers.pipeline("automatic-speech-recognition", model="{model.as_posix()}")')
    _log(trainer, best, before, difference)
    logger.info("\n%s", "\n".join(lines))


def _say_of_translations(after: pd.DataFrame, before: pd.DataFrame | None) -> str:
    said = []
    for table in (after, before):
        if table is not None:
            scores = score_translations(table["hypothesis"].tolist(), table["reference"].tolist())
            said.append(f"BLEU {scores['bleu']:.1f}, chrF {scores['chrf']:.1f}")
    return said[0] + (f" (before: {said[1]})" if len(said) > 1 else "")


def _say_of_guard(folder: Path, guard: str) -> list[str]:
    """Compare a guard with what it was before training, where that is known."""
    paths = [transcripts_path(folder, guard, name) for name in ("test", "before")]
    if not all(path.is_file() for path in paths):
        return []
    after, before = map(read_transcripts, paths)
    difference = measure_difference(after, before, "wer_normalized")
    if difference is None:
        return []
    name = guard.removeprefix("guard/")
    was = measure(before, "wer_normalized").value
    return [f"Guard {name} ({len(after)} utterances, normalized; before {was:.2f} %): {_write(difference)}"]


def say_of_silence(folder: Path) -> list[str]:
    """Say how many words are invented where nobody speaks, if any ever were."""
    paths = [transcripts_path(folder, "silence", name) for name in ("test", "step-000000")]
    if not all(path.is_file() for path in paths):
        return []
    after, before = (sum(len(text.split()) for text in read_transcripts(path)["hypothesis"]) for path in paths)
    if not after and not before:
        return []
    return [f"In silence and noise it writes {after} words (before: {before}; transcripts/silence)"]


def _write(difference: Difference) -> str:
    points = f"{difference.value:+.2f} points of WER"
    if difference.low is None:
        return f"{points}; too few utterances for an interval"
    return f"{points}, 95 % interval {difference.low:+.2f} to {difference.high:+.2f} (paired bootstrap over utterances)"


def _log(trainer: Trainer, best: KeepBest, before: pd.DataFrame | None, difference: Difference | None) -> None:
    """Bring the comparison into metrics.csv and the others; into W&B's summary also what a continued run had before."""
    metrics = {} if difference is None else {"difference/wer": difference.value}
    if difference is not None and difference.low is not None and difference.high is not None:
        metrics |= {"difference/wer_low": difference.low, "difference/wer_high": difference.high}
    totals = {"best/step": best.step, "best/wer": best.wer}
    if before is not None:
        totals["before/wer"] = measure(before, "wer").value
    for each in trainer.loggers:
        if metrics:
            each.log_metrics(metrics, step=trainer.global_step)
        each.save()
        if isinstance(each, WandbLogger):
            each.experiment.summary.update(totals)
