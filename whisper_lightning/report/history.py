"""What a run's folder tells of its training: curves over the steps, interpolated models, settings."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

from whisper_lightning.scoring.intervals import Estimate

CURVES = ("train/loss", "val/loss", "val/wer", "val/wer_normalized")
"""Columns of metrics.csv that are drawn, where they are there; those of guards besides."""
GUARD = re.compile(r"guard/(.+)/difference")
BLEND_GUARD = re.compile(r"(.+)\.difference")


class Point(NamedTuple):
    """A value after a number of optimizer steps."""

    step: int
    value: float


class StepDifference(NamedTuple):
    """WER now minus WER before training, in percentage points; `low` and `high` are None where there is no interval."""

    step: int
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class GuardHistory:
    """What became of other speech, which the training shall not make worse.

    Attributes:
        name: Of the guard.
        wer: Normalized WER, in percent.
        differences: From the model that the run started from.
    """

    name: str
    wer: list[Point]
    differences: list[StepDifference]


@dataclass(frozen=True)
class Blend:
    """A model between the starting and the tuned one.

    Attributes:
        alpha: 0 is the starting model, 1 the tuned one.
        wer: Of the validation, in percent.
        chosen: It is the run's model.
        admitted: It could have been chosen.
        guards: Of each guard, WER minus that of the starting model, in percentage points.
    """

    alpha: float
    wer: Estimate
    chosen: bool
    admitted: bool
    guards: dict[str, Estimate]


@dataclass(frozen=True)
class Setting:
    """An option with another value than its default."""

    name: str
    value: str
    default: str


@dataclass(frozen=True)
class Training:
    """What is said of a run beside its transcripts.

    Attributes:
        name: Of the run's folder.
        best_step: The step that is in `best/`.
        remarks: What is to be known before the figures are believed.
        curves: By the names in `CURVES`, ascending in steps.
        guards: In the order of metrics.csv.
        blends: Ascending in alpha; empty where none were made.
        changed: Options that are not at their defaults.
        config: Everything that was set, as config.yaml has it.
    """

    name: str
    best_step: int
    remarks: list[str]
    curves: dict[str, list[Point]]
    guards: list[GuardHistory]
    blends: list[Blend]
    changed: list[Setting]
    config: str


def read_training(
    folder: Path, *, best_step: int, remarks: Sequence[str] = (), defaults: Mapping[str, Any] | None = None
) -> Training:
    """Read `metrics.csv`, `alphas.csv` and `config.yaml`; without one of the first two there is nothing of it.

    Args:
        folder: The run's folder.
        best_step: The step that is in `best/`.
        remarks: What is to be known before the figures are believed.
        defaults: The tree of options that config.yaml would hold if nothing had been set.
    """
    config = (folder / "config.yaml").read_text(encoding="utf-8")
    options = yaml.safe_load(config)
    metrics = _read_table(folder / "metrics.csv")
    curves = {name: _curve(metrics, name) for name in CURVES if name in metrics}
    if options["trainer"]["num_sanity_val_steps"] != -1:
        # Before the first step only some of the validation utterances were heard: no figure to compare with.
        curves |= {name: [p for p in points if p.step > 0] for name, points in curves.items() if "val/" in name}
    return Training(
        name=folder.resolve().name,
        best_step=best_step,
        remarks=list(remarks),
        curves={name: points for name, points in curves.items() if points},
        guards=[_guard(metrics, match[1]) for name in map(str, metrics) if (match := GUARD.fullmatch(name))],
        blends=_read_blends(folder / "alphas.csv"),
        changed=_changed(options, {} if defaults is None else defaults),
        config=config,
    )


def _read_table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, encoding="utf-8") if path.is_file() else pd.DataFrame()


def _columns(metrics: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Return finite values by step; where a step has several rows with a value, the last."""
    table = metrics.reindex(columns=["step", *names]).astype(float).replace([np.inf, -np.inf], np.nan)
    table = table.dropna(subset=["step", names[0]]).drop_duplicates("step", keep="last")
    return table.sort_values("step")


def _curve(metrics: pd.DataFrame, name: str) -> list[Point]:
    return [Point(int(step), _round(value)) for step, value in _columns(metrics, [name]).to_numpy().tolist()]


def _guard(metrics: pd.DataFrame, name: str) -> GuardHistory:
    columns = [f"guard/{name}/difference{end}" for end in ("", "_low", "_high")]
    rows = _columns(metrics, columns).to_numpy().tolist()
    differences = [StepDifference(int(step), *_interval(*figures)) for step, *figures in rows]
    return GuardHistory(name, _curve(metrics, f"guard/{name}/wer_normalized"), differences)


def _read_blends(path: Path) -> list[Blend]:
    table = _read_table(path)
    names = [match[1] for column in map(str, table) if (match := BLEND_GUARD.fullmatch(column))]
    return sorted(
        (
            Blend(
                _round(row["alpha"]),
                _interval(*(row[key] for key in ("wer", "wer_low", "wer_high"))),
                bool(row["chosen"]),
                bool(row["admitted"]),
                {name: _interval(*(row[f"{name}.{key}"] for key in ("difference", "low", "high"))) for name in names},
            )
            for row in table.to_dict("records")
        ),
        key=lambda blend: blend.alpha,
    )


def _interval(value: float, low: float, high: float) -> Estimate:
    """Return a figure with its interval; None where the table has no ends."""
    known = np.isfinite(low) and np.isfinite(high)
    return Estimate(_round(value), *((_round(low), _round(high)) if known else (None, None)))


def _round(value: float) -> float:
    """Return six digits: more than a curve shows."""
    return float(f"{value:.6g}")


def _changed(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[Setting]:
    usual = _flatten(defaults)
    return [
        Setting(name, _write(value), _write(usual.get(name)))
        for name, value in _flatten(options).items()
        if name not in usual or value != usual[name]
    ]


def _flatten(tree: Mapping[str, Any], group: str = "") -> dict[str, Any]:
    """Return a tree of options as `group.option`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{group}{key}.") if isinstance(value, dict) else {f"{group}{key}": value}
    return flat


def _write(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
