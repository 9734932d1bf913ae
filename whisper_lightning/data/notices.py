"""What is said of the data before a run: what was left out, what is in two splits, what a cache is too small for."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from whisper_lightning.data.plan import WINDOW_SHARDS
from whisper_lightning.data.shards import ShardIndex
from whisper_lightning.data.splits import Split
from whisper_lightning.errors import UserError

logger = logging.getLogger(__name__)


def report_split(name: str, splits: Mapping[str, Split], max_rejected_fraction: float, folder: Path) -> None:
    """Say what was read and left out of a split; stop when too much was.

    Args:
        name: Of the split.
        splits: All that are open.
        max_rejected_fraction: More than this share of the rows may not be left out.
        folder: Where rejected.csv goes.

    Raises:
        UserError: More than that, or all of the rows, are unusable.
    """
    split = splits[name]
    num_rows = len(split.index) + len(split.index.rejected())
    reasons = Counter(row.reason for row in split.rejected)
    listed = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    summary = f"{name}: {len(split.members)} utterances, {split.seconds / 3600:.2f} h"
    logger.info("%s; %d of %d rows rejected%s", summary, len(split.rejected), num_rows, listed and f": {listed}")
    if len(split.members) == 0 or len(split.rejected) > max_rejected_fraction * num_rows:
        path = write_rejected(splits, folder)
        raise UserError(
            f"data.{name}: {len(split.rejected)} of {num_rows} rows cannot be used ({listed}); see {path}. "
            f"Fix the CSV or the audio, or raise data.max_rejected_fraction (now {max_rejected_fraction:g})"
        )


def write_rejected(splits: Mapping[str, Split], folder: Path) -> Path:
    """Write the rows that were left out, with reasons, into rejected.csv; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rejected.csv"
    rows = [
        {"split": name, "row": row.row, "value": row.value, "reason": row.reason, "detail": row.detail}
        for name, split in splits.items()
        for row in split.rejected
    ]
    columns = ["split", "row", "value", "reason", "detail"]
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False, encoding="utf-8")
    return path


def warn_of_small_cache(name: str, index: ShardIndex, cache_bytes: int) -> None:
    """Say when remote shards cannot stay for as long as they are read in turns."""
    sizes = sorted((shard["bytes"] for shard in index.shards), reverse=True)
    needed = sum(sizes[:WINDOW_SHARDS] if name == "train" else sizes)
    if needed > cache_bytes:
        logger.warning(
            "data.cache_gib: %.2g GiB; %.2g GiB of %s are read in turns and will be downloaded again and again",
            cache_bytes / 2**30,
            needed / 2**30,
            index.remote,
        )


def warn_of_overlap(train: Split, other: Split, name: str) -> None:
    """Say how many utterances of a split are in the training split too, by their samples and by their sentences.

    Args:
        train: The training split.
        other: What the model is measured on.
        name: What that is called: `val` or `test`.
    """
    if min(split.index.info["version"] for split in (train, other)) == 1:
        logger.info("data.%s: shards of an older version do not tell what is in data.train too; build them again", name)
        return
    sounds, sentences = (
        np.isin(other.index.table[field][other.members], train.index.table[field][train.members])
        for field in ("sound", "sentence")
    )
    if sounds.any():
        rows = other.index.table["row"][other.members[sounds]]
        listed = ", ".join(str(row) for row in rows[:5].tolist()) + (", …" if len(rows) > 5 else "")
        logger.warning(
            "data.%s: the audio of %d of %d utterances is in data.train too (rows %s): the model will have learnt them "
            "by heart, and its WER comes out too low; take them out of one of the two",
            name,
            len(rows),
            len(sounds),
            listed,
        )
    if sentences.any():
        logger.info(
            "data.%s: %d of %d utterances have a sentence that is in data.train too; normal for commands, but with "
            "other speech the WER comes out too low",
            name,
            np.count_nonzero(sentences),
            len(sentences),
        )
