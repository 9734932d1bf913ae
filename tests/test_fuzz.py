"""Damaged files are read right or refused by name: some hundreds; `tools/fuzz.py` tries as many as it has time."""

import importlib
from pathlib import Path

import pytest

fuzz = importlib.import_module("tools.fuzz")


@pytest.mark.slow
@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_damaged_files(kind: str, tmp_path: Path) -> None:
    for seed in range(60):
        fuzz.attempt(kind, seed, tmp_path)
