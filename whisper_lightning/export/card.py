"""The model card: what was trained on what, how good it is by how much, and where it ends; in English and Spanish."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

from whisper_lightning.export.words import ENGLISH, SPANISH
from whisper_lightning.metrics import bootstrap_interval
from whisper_lightning.model.module import WhisperModule

RATES = {"wer": "words", "wer_normalized": "normalized_words", "cer": "characters"}
"""Each error rate, and what its columns in a table of transcripts begin with."""


class Rate(NamedTuple):
    """An error rate and its 95 % interval, in percent."""

    percent: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.percent:.2f} % [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Score:
    """Error rates of a table of transcripts.

    Attributes:
        data: Name of the data that was decoded.
        num_utterances: Its utterances.
        rates: By the names in `RATES`.
        full_context: Whether the audio was decoded as other programs do, in a window of the full context.
    """

    data: str
    num_utterances: int
    rates: dict[str, Rate]
    full_context: bool


@dataclass(frozen=True)
class Run:
    """What a run's folder tells about its model.

    Attributes:
        config: What `config.yaml` says.
        before: The score before training; None where there is none.
        after: The score of the best model; None where there is none, or the model is another one.
    """

    config: dict[str, Any]
    before: Score | None
    after: Score | None


def find_run(source: str) -> Path | None:
    """Give the folder of the run that a model is from: its folder, its `best/`, or one of its checkpoint files."""
    path = Path(source).resolve()
    folders = (path, path.parent, path.parent.parent)
    return next((folder for folder in folders if (folder / "config.yaml").is_file()), None)


def read_run(source: str) -> Run | None:
    """Read what is known of a model's training; None for a model that is no run's."""
    folder = find_run(source)
    if folder is None:
        return None
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    val = Path(str(config["data"]["val"])).name
    test = Path(str(config["data"]["test"] or config["data"]["val"])).name
    transcripts = folder / "transcripts"
    full = config["model"]["context"] == "full"
    before = _score(transcripts / "step-000000.csv", val, full_context=full)
    # A checkpoint file holds the last weights, and it is the best ones that were tested.
    after = None if Path(source).is_file() else _score(transcripts / "test.csv", test, full_context=True)
    return Run(config, before, after)


def _score(path: Path, data: str, *, full_context: bool) -> Score | None:
    if not path.is_file():
        return None
    table = pd.read_csv(path)
    rates = {}
    for rate, columns in RATES.items():
        kinds = ("hits", "substitutions", "deletions", "insertions")
        hits, substitutions, deletions, insertions = (table[f"{columns}_{kind}"].to_numpy() for kind in kinds)
        lengths, errors = hits + substitutions + deletions, substitutions + deletions + insertions
        percent = 100.0 * errors.sum() / max(1, lengths.sum())
        rates[rate] = Rate(float(percent), *bootstrap_interval(errors, lengths))
    return Score(data, len(table), rates, full_context)


def model_card(
    name: str, module: WhisperModule, source: str, run: Run | None, hours: float | None, num_utterances: int | None
) -> str:
    """Write the card, Hugging Face's front matter first.

    Args:
        name: Of the model.
        module: The model.
        source: Where it was opened from.
        run: Its training, if known.
        hours: Speech that it was trained on, if known.
        num_utterances: Utterances that it was trained on, if known.
    """
    base: str | None = source
    if run is not None:
        base = None if run.config["model"]["random_weights"] else run.config["model"]["checkpoint"]
    language = module.encoder.language
    front = yaml.safe_dump(_front_matter(name, language, base, run), sort_keys=False, allow_unicode=True)
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


def _front_matter(name: str, language: str, base: str | None, run: Run | None) -> dict[str, Any]:
    """Give what the hub reads (huggingface.co/docs/hub/model-cards)."""
    on_the_hub = base is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists()
    front: dict[str, Any] = {
        "language": [language],
        # A fine-tune inherits the licence; OpenAI's models on the hub are under Apache 2.0.
        "license": "apache-2.0" if base is not None and base.startswith("openai/whisper") else "unknown",
        "library_name": "transformers",
        "pipeline_tag": "automatic-speech-recognition",
        "tags": ["automatic-speech-recognition", "whisper", "whisper-lightning"],
        "metrics": ["wer", "cer"],
    }
    if on_the_hub:
        front["base_model"] = base
    if run is not None and run.after is not None:
        names = {"wer": "WER", "wer_normalized": "WER, normalized", "cer": "CER"}
        metrics = [
            {"type": rate.split("_")[0], "value": round(value.percent, 2), "name": names[rate]}
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
    base = Path(base).name if base is not None and Path(base).exists() else base  # no paths of this machine
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
    lines += [words["columns"], "|---|---|---|---|---|---|"]
    for when, score in rows:
        context = words["full_context"] if score.full_context else words["own_length"]
        data = f"{score.data} ({score.num_utterances})"
        lines.append(f"| {when} | {data} | {context} | {' | '.join(str(rate) for rate in score.rates.values())} |")
    return [*lines, "", words["intervals"], ""]


def _training(words: dict[str, str], run: Run, hours: float | None, num_utterances: int | None) -> list[str]:
    model, data, trainer = run.config["model"], run.config["data"], run.config["trainer"]
    amount = words["unknown"] if hours is None else f"{hours:.2f} h, {num_utterances} {words['utterances']}"
    rows = {
        words["data"]: f"{Path(str(data['train'])).name}: {amount}",
        words["steps"]: trainer["max_steps"],
        words["batch"]: f"{data['batch_size']} x {trainer['accumulate_grad_batches']}",
        words["learning_rate"]: f"{model['learning_rate']:g}, {model['schedule']}, warm-up {model['warmup_steps']}",
        words["weight_decay"]: model["weight_decay"],
        words["context"]: f"{model['context']}, full_share {data['full_share']:g}",
        words["augmentation"]: f"spec_augment {model['spec_augment']}, augment {data['augment']}",
        words["precision"]: trainer["precision"] or "32-true",
        words["seed"]: run.config["seed_everything"],
    }
    return [f"### {words['training']}", "", "| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items()), ""]


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
