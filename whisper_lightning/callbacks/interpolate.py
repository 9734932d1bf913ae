"""The model that a run ends with: as good as can be where it is trained, and nowhere worse than before.

Weights between those that a run starts from and those that it ends with keep much of what both can do (Wortsman et al.
2022, arXiv:2109.01903). So at the end a few of them are decoded, and that with the best WER on the validation is taken
of those that are shown to hear no guard worse. Small guards show that of none but the start; then it is taken of those
that hear none worse on average, and the run says so. The test utterances have no part in it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from lightning.pytorch import LightningDataModule, Trainer

from whisper_lightning.callbacks.best import KeepBest, restore
from whisper_lightning.callbacks.wer import EvaluateWER
from whisper_lightning.files import remove
from whisper_lightning.model.load import reload, starting_weights
from whisper_lightning.model.module import WhisperModule
from whisper_lightning.model.weights import average, interpolate
from whisper_lightning.scoring.intervals import Difference, Estimate
from whisper_lightning.scoring.utterance import measure, measure_difference, read_transcripts, transcripts_path

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A model between the start (0) and the end (1) of a run's training.

    Attributes:
        alpha: Where between.
        wer: On the validation, in percent.
        guards: Normalized WER of each guard minus what it was before training.
        shown: Whether no guard is heard worse by more than the margin, at the upper end of its interval.
        likely: Whether none is on average.
    """

    alpha: float
    wer: Estimate
    guards: dict[str, Difference]
    shown: bool
    likely: bool


def choose(candidates: list[Candidate]) -> tuple[Candidate, list[Candidate]]:
    """Return the candidate with the best WER of those that no guard speaks against, and these.

    Of several with the same WER it is the one that is nearer to the start.
    """
    for admitted in ([each for each in candidates if each.shown], [each for each in candidates if each.likely]):
        chosen = min(admitted, key=lambda each: (each.wer.value, each.alpha))
        if chosen.alpha > 0.0:
            break
    return chosen, admitted


def settle(trainer: Trainer, module: WhisperModule, data: LightningDataModule) -> Candidate | None:
    """Put the model into `best/` that the run ends with, and what was tried into `alphas.csv`.

    Where that is not the best step, this one is kept in `tuned/`.

    Args:
        trainer: After its fit.
        module: What was trained.
        data: Its data.

    Returns:
        What was chosen; None where there is nothing to choose: no guard, no better step, or nothing to start from.
    """
    folder = Path(trainer.default_root_dir)
    best = next(c for c in trainer.callbacks if isinstance(c, KeepBest))  # type: ignore[attr-defined]
    start = transcripts_path(folder, "", "step-000000")
    guards = [guard for guard in getattr(data, "guards", []) if guard in getattr(data, "sources", {})]
    if trainer.is_global_zero:
        restore(folder)
    trainer.strategy.barrier("restore")
    _average(trainer, module, data, best)
    from_nothing = module.hparams["random_weights"] and module.hparams["initial_weights"] is None
    if not guards or not best.alphas or best.step < 1 or from_nothing or not start.is_file():
        return None
    names = {0.0: "step-000000", 1.0: "average" if best.is_average else f"step-{best.step:06d}"}
    places = {alpha: folder / "checkpoints" / f"alpha-{alpha:g}" for alpha in best.alphas}
    weights = starting_weights(module) if trainer.is_global_zero else {}
    try:
        for alpha, place in places.items():
            names[alpha] = f"alpha-{alpha:g}"
            _write(trainer, module, interpolate(weights, folder / "best", alpha), place)
            _validate(trainer, reload(module, place), data, names[alpha])
        tried = [_read(folder, guards, alpha, names[alpha], best.guard_margin) for alpha in sorted(names)]
        chosen, admitted = choose(tried)
        if chosen.alpha == 0.0:
            places[0.0] = folder / "checkpoints" / "alpha-0"
            _write(trainer, module, weights, places[0.0])
        if trainer.is_global_zero:
            _write_table(tried, chosen, admitted, folder / "alphas.csv")
            if chosen.alpha < 1.0:
                best.take(folder, places[chosen.alpha])
    finally:
        for place in places.values() if trainer.is_global_zero else ():
            remove(place)
    trainer.strategy.barrier("settle")
    return chosen


def _average(trainer: Trainer, module: WhisperModule, data: LightningDataModule, best: KeepBest) -> None:
    """Take the mean of the best steps, if its WER is lower than that of the best step."""
    folder = Path(trainer.default_root_dir)
    paths, place = best.averaged(folder), folder / "checkpoints" / "average"
    if not paths:
        return
    _write(trainer, module, average(paths) if trainer.is_global_zero else {}, place)
    _validate(trainer, reload(module, place), data, "average")
    wer = measure(read_transcripts(transcripts_path(folder, "", "average")), "wer").value
    best.is_average = wer < best.wer
    logger.info("The mean of steps %s: WER %.2f %%", ", ".join(str(int(step)) for _, step in best.steps), wer)
    if trainer.is_global_zero:
        if best.is_average:
            best.take(folder, place)
        remove(place)
    trainer.strategy.barrier("average taken")


def _write(trainer: Trainer, module: WhisperModule, weights: dict[str, torch.Tensor], place: Path) -> None:
    """Write weights as a folder, on the first rank, for all to read."""
    if trainer.is_global_zero:
        remove(place)
        module.save_pretrained(place, dict(weights))
    trainer.strategy.barrier("write")


def _validate(trainer: Trainer, candidate: WhisperModule, data: LightningDataModule, name: str) -> None:
    evaluate = next(c for c in trainer.callbacks if isinstance(c, EvaluateWER))  # type: ignore[attr-defined]
    evaluate.candidate = name
    try:
        trainer.validate(candidate, datamodule=data, verbose=False)
    finally:
        evaluate.candidate = None


def _read(folder: Path, guards: list[str], alpha: float, name: str, margin: float) -> Candidate:
    """Return what the tables of a validation say."""
    differences = {}
    for guard in guards:
        now, before = (read_transcripts(transcripts_path(folder, guard, each)) for each in (name, "step-000000"))
        difference = measure_difference(now, before, "wer_normalized")
        assert difference is not None, "other utterances than before training"
        differences[guard] = difference
    mean = max(each.value for each in differences.values())
    highest = max(each.value if each.high is None else each.high for each in differences.values())
    wer = measure(read_transcripts(transcripts_path(folder, "", name)), "wer")
    return Candidate(alpha, wer, differences, *(alpha == 0.0 or each <= margin for each in (highest, mean)))


def _write_table(tried: list[Candidate], chosen: Candidate, admitted: list[Candidate], path: Path) -> None:
    """Write a row for each candidate."""
    rows = []
    for each in tried:
        row = {"alpha": each.alpha, "wer": each.wer.value, "wer_low": each.wer.low, "wer_high": each.wer.high}
        row |= {"chosen": int(each is chosen), "admitted": int(each in admitted), "shown": int(each.shown)}
        for guard, difference in each.guards.items():
            name = guard.removeprefix("guard/")
            figures = {"difference": difference.value, "low": difference.low, "high": difference.high}
            row |= {f"{name}.{key}": value for key, value in figures.items()}
        rows.append(row)
    pd.DataFrame(rows).to_csv(path, index=False, encoding="utf-8")
