"""The model card: what was trained on what, how good it is by how much, and where it ends; in English and Spanish."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from whisper_lightning.export.words import ENGLISH, SPANISH
from whisper_lightning.model.load import find_run
from whisper_lightning.model.module import WhisperModule
from whisper_lightning.scoring.intervals import Difference, Estimate
from whisper_lightning.scoring.utterance import RATES, measure, measure_difference, read_transcripts


@dataclass(frozen=True)
class Score:
    """Error rates of a table of transcripts.

    Attributes:
        data: Name of the data that was decoded.
        num_utterances: Its utterances.
        rates: By the names in `RATES`.
    """

    data: str
    num_utterances: int
    rates: dict[str, Estimate]


@dataclass(frozen=True)
class Guard:
    """How the model hears speech that it was not trained on: word error rate without case and punctuation.

    Attributes:
        name: Of the guard.
        num_utterances: Its utterances.
        before: Before training.
        after: Of the model.
        difference: After minus before.
    """

    name: str
    num_utterances: int
    before: Estimate
    after: Estimate
    difference: Difference


@dataclass(frozen=True)
class Run:
    """What a run's folder tells about its model.

    Attributes:
        config: What `config.yaml` says.
        before: The score before training; None where there is none.
        after: The score of the best model; None where there is none, or the model is another one.
        differences: After minus before, by the names in `RATES`; None where these are not of the same utterances.
        guards: What became of other speech; none where the model is another one than that of the tests.
    """

    config: dict[str, Any]
    before: Score | None
    after: Score | None
    differences: dict[str, Difference] | None
    guards: list[Guard]


def read_run(source: str) -> Run | None:
    """Read what is known of a model's training; None for a model that is no run's."""
    folder = find_run(source)
    if folder is None:
        return None
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    data = Path(str(config["data"]["test"] or config["data"]["val"])).name
    paths = [folder / "transcripts" / f"{name}.csv" for name in ("before", "test")]
    before, after = (read_transcripts(path) if path.is_file() else None for path in paths)
    if Path(source).is_file():  # a checkpoint file holds the last weights, and it is the best ones that were tested
        after = None
    differences = None if before is None or after is None else _differences(before, after)
    guards = [] if after is None else _guards(folder)
    return Run(config, _score(before, data), _score(after, data), differences, guards)


def _score(table: pd.DataFrame | None, data: str) -> Score | None:
    return None if table is None else Score(data, len(table), {rate: measure(table, rate) for rate in RATES})


def _differences(before: pd.DataFrame, after: pd.DataFrame) -> dict[str, Difference] | None:
    found = {rate: measure_difference(after, before, rate) for rate in RATES}
    return {rate: each for rate, each in found.items() if each is not None} or None


def _guards(folder: Path) -> list[Guard]:
    """Read what a run measured of its guards before training and at its end."""
    found = []
    for place in sorted((folder / "transcripts" / "guard").glob("*/")):
        paths = [place / f"{name}.csv" for name in ("before", "test")]
        if not all(path.is_file() for path in paths):
            continue
        before, after = map(read_transcripts, paths)
        difference = measure_difference(after, before, "wer_normalized")
        if difference is not None:
            first, last = (measure(table, "wer_normalized") for table in (before, after))
            found.append(Guard(place.name, len(after), first, last, difference))
    return found


def find_base(source: str, run: Run | None) -> str | None:
    """Name the model that a model was made of, None if it was made of nothing: a hub name, else a folder's own name."""
    if run is not None and run.config["model"]["random_weights"]:
        return None
    base = source if run is None else str(run.config["model"]["checkpoint"])
    on_the_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists()
    return base if on_the_hub else re.split(r"[/\\]", base.rstrip("/\\"))[-1]  # no paths of anybody's machine


def find_license(base: str | None) -> str | None:
    """Return the licence that a fine-tune inherits, if it is known: OpenAI's models on the hub are under Apache 2.0."""
    return "apache-2.0" if base is not None and base.startswith("openai/whisper") else None


def model_card(
    name: str,
    module: WhisperModule,
    base: str | None,
    run: Run | None,
    hours: float | None,
    num_utterances: int | None,
    license_name: str | None,
) -> str:
    """Write the card, Hugging Face's front matter first.

    Args:
        name: Of the model.
        module: The model.
        base: What it was made of, as `find_base` gives it.
        run: Its training, if known.
        hours: Speech that it was trained on, if known.
        num_utterances: Utterances that it was trained on, if known.
        license_name: As the hub spells it, if known.
    """
    language = module.encoder.language
    front = yaml.safe_dump(_front_matter(name, language, base, run, license_name), sort_keys=False, allow_unicode=True)
    parts = [f"---\n{front}---\n\n# {name}\n\n[English](#english) · [Español](#español)\n"]
    for words in (ENGLISH, SPANISH):
        lines = [f"## {words['title']}", "", _introduction(words, language, module, base, run), ""]
        lines += _results(words, run)
        if run is not None:
            lines += _training(words, run, hours, num_utterances)
        lines += [f"### {words['use']}", "", "```python", *_example(name), "```", ""]
        lines += [f"### {words['limits']}", "", *_limits(words, module, run), ""]
        parts.append("\n".join(lines))
    return "\n".join(parts)


def _front_matter(
    name: str, language: str, base: str | None, run: Run | None, license_name: str | None
) -> dict[str, Any]:
    """Return what the hub reads (huggingface.co/docs/hub/model-cards)."""
    front: dict[str, Any] = {
        "language": [language],
        "license": license_name or "unknown",
        "library_name": "transformers",
        "pipeline_tag": "automatic-speech-recognition",
        "tags": ["automatic-speech-recognition", "whisper", "whisper-lightning"],
        "metrics": ["wer", "cer"],
    }
    if base is not None and "/" in base:
        front["base_model"] = base
    if run is not None and run.after is not None:
        names = {"wer": "WER", "wer_normalized": "WER, normalized", "cer": "CER"}
        metrics = [
            {"type": rate.split("_")[0], "value": round(value.value, 2), "name": names[rate]}
            for rate, value in run.after.rates.items()
        ]
        result = {
            "task": {"type": "automatic-speech-recognition", "name": "Speech recognition"},
            "dataset": {"name": run.after.data, "type": run.after.data},
            "metrics": metrics,
        }
        front["model-index"] = [{"name": name, "results": [result]}]
    return front


def _introduction(
    words: dict[str, str], language: str, module: WhisperModule, base: str | None, run: Run | None
) -> str:
    size = sum(parameter.numel() for parameter in module.whisper.parameters()) / 1e6
    if run is None:
        origin = words["exported"].format(base=base)
    elif base is None:
        origin = words["from_scratch"]
    else:
        origin = words["fine_tuned"].format(base=base)
    return f"{origin} {words['speaks'].format(language=language, millions=f'{size:.1f}')}"


def _results(words: dict[str, str], run: Run | None) -> list[str]:
    scores = [] if run is None else [(words["before"], run.before), (words["after"], run.after)]
    lines = [f"### {words['results']}", ""]
    rows = [(when, score) for when, score in scores if score is not None]
    if not rows:
        return [*lines, words["no_results"], ""]
    lines += [words["columns"], "|---|---|---|---|---|"]
    for when, score in rows:
        rates = " | ".join(rate.write(" %") for rate in score.rates.values())
        lines.append(f"| {when} | {score.data} ({score.num_utterances}) | {rates} |")
    if run is not None and run.differences is not None:
        differences = " | ".join(each.write(f" {words['points']}") for each in run.differences.values())
        lines.append(f"| {words['difference']} | | {differences} |")
    lines.append("")
    if run is not None and run.guards:
        lines += [words["guards"], "", words["guard_columns"], "|---|---|---|---|"]
        for guard in run.guards:
            rates = f"{guard.before.write(' %')} | {guard.after.write(' %')}"
            difference = guard.difference.write(f" {words['points']}")
            lines.append(f"| {guard.name} ({guard.num_utterances}) | {rates} | {difference} |")
        lines.append("")
    return [*lines, words["intervals"], ""]


def _training(words: dict[str, str], run: Run, hours: float | None, num_utterances: int | None) -> list[str]:
    model, data, trainer = run.config["model"], run.config["data"], run.config["trainer"]
    amount = words["unknown"] if hours is None else f"{hours:.2f} h, {num_utterances} {words['utterances']}"
    rows = {
        words["data"]: f"{Path(str(data['train'])).name}: {amount}",
        words["steps"]: _length(words, trainer),
        words["batch"]: f"{data['batch_size']} x {trainer['accumulate_grad_batches']}",
        words["learning_rate"]: f"{model['learning_rate']:g}, {model['schedule']}, warm-up {model['warmup_steps']}",
        words["weight_decay"]: model["weight_decay"],
        words["tail"]: model["tail"],
        words["augmentation"]: f"spec_augment {model['spec_augment']}, augment {data['augment']}",
        words["precision"]: trainer["precision"] or "32-true",
        words["seed"]: run.config["seed_everything"],
    }
    return [f"### {words['training']}", "", "| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items()), ""]


def _length(words: dict[str, str], trainer: dict[str, Any]) -> str:
    """Return the run's optimizer steps, or its epochs where these were asked for."""
    return str(trainer["max_steps"]) if trainer["max_steps"] > 0 else f"{trainer['max_epochs']} {words['epochs']}"


def _example(name: str) -> list[str]:
    return [
        "from transformers import pipeline",
        "",
        f'recognize = pipeline("automatic-speech-recognition", model="{name}")',
        'print(recognize("clip.wav")["text"])',
    ]


def _limits(words: dict[str, str], module: WhisperModule, run: Run | None) -> list[str]:
    limits = [words["limit_window"].format(seconds=f"{module.full_frames / 100:g}"), words["limit_invents"]]
    if run is not None:
        limits.append(words["limit_data"])
        if run.config["data"]["test"] in (None, run.config["data"]["val"]):
            limits.append(words["limit_chosen"])
    return [f"- {limit}" for limit in limits]
