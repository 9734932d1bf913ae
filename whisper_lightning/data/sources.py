"""What each split is read from: decided once, by what the user has named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from whisper_lightning.data.transfer import is_remote
from whisper_lightning.errors import UserError

Sources = dict[str, str | float]
"""By the name of the split: CSV, folder of shards or URL, or a share (0 to 1) that is held out of `train`."""


def name_sources(train: str, val: float | str, test: str | None = None, predict: str | None = None) -> Sources:
    """Give what each split is read from. One that is not named is what another one is: test as val, predict as test.

    Raises:
        UserError: One is an address that is not read.
    """
    test_or_val = val if test is None else test
    named: Sources = {"train": train, "val": val, "test": test_or_val}
    named["predict"] = test_or_val if predict is None else predict
    for name, source in named.items():
        if isinstance(source, str) and not is_remote(f"data.{name}", source):
            named[name] = str(Path(source))
    return named


def tests_on_val(sources: Sources) -> bool:
    """Whether the best model is chosen on the same utterances that are reported."""
    places = [
        Path(source).resolve() if isinstance(source, str) and not is_remote(name, source) else source
        for name, source in sources.items()
        if name in ("val", "test")
    ]
    return places[0] == places[1]


def needed_splits(sources: Sources, stage: str) -> list[str]:
    """Give the splits that `fit`, `validate`, `test` or `predict` opens; `fit` tests at its end."""
    if stage == "fit":
        return ["train", "val"] if tests_on_val(sources) else ["train", "val", "test"]
    return [{"validate": "val"}.get(stage, stage)]


def read_from(sources: Sources, name: str) -> str:
    """Give the CSV, folder or URL that the utterances of a split are in."""
    source = sources[name]
    return source if isinstance(source, str) else str(sources["train"])


def check_sources(sources: Sources, stage: str) -> None:
    """Look for what a stage needs, before anything that takes long.

    Raises:
        UserError: A CSV or folder is not there.
    """
    for name in needed_splits(sources, stage):
        source = read_from(sources, name)
        if not is_remote(f"data.{name}", source) and not Path(source).exists():
            raise UserError(f"data.{name}: there is no CSV and no folder of shards at {source!r}")


def choose(sources: Sources, name: str, count: int, seed: int) -> NDArray[np.int64]:
    """Give which of the `count` utterances that can be used belong to a split, as positions, ascending."""
    source, held_out = sources[name], sources["val"]
    if isinstance(source, str) and not (name == "train" and isinstance(held_out, float)):
        return np.arange(count)
    assert isinstance(held_out, float)  # any other share is that of val
    order = np.random.Generator(np.random.PCG64(seed)).permutation(count)
    cut = max(1, round(held_out * count))
    return np.sort(order[cut:] if name == "train" else order[:cut])
