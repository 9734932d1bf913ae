"""A guard that every run has: clips of the validation, put into windows as long as the model hears.

Training on clips of one sentence unlearns what a recording needs: to go on after a sentence, and to say when it was
spoken. Neither is seen on single clips. So some are put one after the other, as training windows are, and decoded with
time stamps.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from whisper_lightning.audio.constants import SAMPLES_PER_POSITION
from whisper_lightning.data.rows import RowOptions, make_rows
from whisper_lightning.data.splits import GUARD, Split
from whisper_lightning.text import LabelEncoder

LONG = f"{GUARD}long"
CLIPS_PER_WINDOW = 40
"""Clips of the validation that are looked at for each window: enough for 30 s of short ones by one speaker."""


def long_windows(
    val: Split, count: int, encoder: LabelEncoder, max_samples: int, max_tokens: int, seed: int
) -> Split | None:
    """Return the longest windows that clips of the validation make.

    Args:
        val: The validation.
        count: Windows wanted.
        encoder: Makes label ids.
        max_samples: The model's context.
        max_tokens: Its longest label.
        seed: The run's seed.

    Returns:
        At most so many; None where the model has no time stamps, or no two clips share a window.
    """
    if not count or not encoder.has_times(max_samples // SAMPLES_PER_POSITION):
        return None
    members = val.members[: count * CLIPS_PER_WINDOW]
    options = RowOptions(pack=1.0)
    rows = make_rows(val.index, members, options, encoder, max_samples, max_tokens, seed=seed)
    assert rows.windows is not None
    several = np.flatnonzero(rows.windows.sizes > 1)
    longest = several[np.argsort(-rows.windows.num_samples[several], kind="stable")[:count]]
    if not len(longest):
        return None
    windows = rows.windows.take(np.sort(longest))
    return Split(val.index, np.sort(windows.indices), [], replace(rows, windows=windows))
