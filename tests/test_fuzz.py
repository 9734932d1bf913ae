"""Damaged files are read right or refused by name: some hundreds; `tools/fuzz.py` tries as many as it has time."""

import importlib
from pathlib import Path

import pytest

fuzz = importlib.import_module("tools.fuzz")


KEPT = [("tables", 36), ("shards", 1033), ("shards", 1034)]


@pytest.mark.parametrize(("kind", "seed"), KEPT)
def test_what_has_failed_once(kind: str, seed: int, tmp_path: Path) -> None:
    fuzz.attempt(kind, seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_damaged_files(kind: str, tmp_path: Path) -> None:
    for seed in range(60):
        fuzz.attempt(kind, seed, tmp_path)
