"""Splits: what each is read from, which utterances of it are used, and what two have in common."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from whisper_lightning.audio.constants import SAMPLE_RATE_HZ
from whisper_lightning.data.augmentation import Augmentation, Recordings
from whisper_lightning.data.format import Rejected, spoken_language
from whisper_lightning.data.manifest import special_token
from whisper_lightning.data.plan import Plan, PlanOptions, plan_epoch
from whisper_lightning.data.rows import RowOptions, Rows, make_rows
from whisper_lightning.data.shards import ShardIndex
from whisper_lightning.data.transfer import is_remote
from whisper_lightning.errors import UserError
from whisper_lightning.text import LabelEncoder

logger = logging.getLogger(__name__)

Sources = dict[str, str | float]
"""By the name of the split: CSV, folder of shards or URL, or a share (0 to 1) that is held out of `train`."""
GUARD = "guard/"
"""What the name of a guard's split begins with."""
SOUNDS = ("noise", "reverb")
"""Splits of recordings that training utterances are mixed with."""


class Model(Protocol):
    """What the data depend on of the module that is trained or tested.

    Attributes:
        encoder: Makes label ids.
        full_samples: The longest utterance that it takes.
        max_label_tokens: Its longest label.
    """

    encoder: LabelEncoder
    full_samples: int
    max_label_tokens: int


def name_sources(
    train: str,
    val: float | str,
    test: str | None = None,
    predict: str | None = None,
    guard: Mapping[str, str] | None = None,
    *,
    noise: str | None = None,
    reverb: str | None = None,
) -> Sources:
    """Return what each split is read from. One that is not named is what another one is: test as val, predict as test.

    Raises:
        UserError: One is an address that is not read, or a guard has a name that no file could have.
    """
    test_or_val = val if test is None else test
    named: Sources = {"train": train, "val": val, "test": test_or_val}
    named["predict"] = test_or_val if predict is None else predict
    named |= {name: path for name, path in zip(SOUNDS, (noise, reverb), strict=True) if path is not None}
    for name, path in (guard or {}).items():
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name):
            raise UserError(f"data.guard: {name!r} is no name for a guard; take letters, digits, - and _")
        if name == "long":
            raise UserError("data.guard: long is what the windows of the validation are called; take another name")
        named[GUARD + name] = path
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
    """Return the splits that `fit`, `validate`, `test` or `predict` opens; `fit` tests at its end."""
    guards = [name for name in sources if name.startswith(GUARD)]
    if stage == "fit":
        sounds = [name for name in SOUNDS if name in sources]
        return [*sounds, "train", "val", *([] if tests_on_val(sources) else ["test"]), *guards]
    return [{"validate": "val"}.get(stage, stage), *(guards if stage != "predict" else [])]


def guard_language(encoder: LabelEncoder, guard: str, languages: Mapping[str, str]) -> str:
    """Return the code of the language of a guard's utterances that name none.

    Args:
        encoder: Knows the model's languages, and its own is the default.
        guard: Name of the split.
        languages: By the names of guards.

    Raises:
        UserError: The model has no such language.
    """
    name = guard.removeprefix(GUARD)
    language = languages.get(name, encoder.language)
    if not encoder.knows(language):
        raise UserError(f"data.guard_languages: {name}: this model has no language {language!r}; give a code, as en")
    return language


def read_from(sources: Sources, name: str) -> str:
    """Return the CSV, folder or URL that the utterances of a split are in."""
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
            raise nothing_at(name, source)


def nothing_at(name: str, source: str) -> UserError:
    """Return what is said where a split's source is not there."""
    return UserError(f"data.{name}: there is nothing at {source!r}; give a CSV, subtitles, or a folder")


def choose(sources: Sources, name: str, count: int, seed: int) -> NDArray[np.int64]:
    """Return which of the `count` utterances that can be used belong to a split, as positions, ascending."""
    source, held_out = sources[name], sources["val"]
    if isinstance(source, str) and not (name == "train" and isinstance(held_out, float)):
        return np.arange(count)
    assert isinstance(held_out, float)  # any other share is that of val
    order = np.random.Generator(np.random.PCG64(seed)).permutation(count)
    cut = max(1, round(held_out * count))
    return np.sort(order[cut:] if name == "train" else order[:cut])


@dataclass(frozen=True)
class Split:
    """The utterances of one split that the model can take.

    Attributes:
        index: The shards.
        members: Positions in the index, ascending.
        rejected: What was left out, and why.
        rows: What the rows of its batches are, where that is more than an utterance and its sentence.
        language: Of a guard's utterances that name none; None: all are in the language that is trained.
        augmentation: What is done to the sound of its utterances.
    """

    index: ShardIndex
    members: NDArray[np.int32]
    rejected: list[Rejected]
    rows: Rows | None = None
    language: str | None = None
    augmentation: Augmentation | None = None

    def sample(self, count: int, seed: int) -> Split:
        """Return a split of so many of the utterances, always the same ones; of all if there are no more."""
        if len(self.members) <= count:
            return self
        chosen = np.random.Generator(np.random.PCG64(seed)).permutation(len(self.members))[:count]
        return replace(self, members=self.members[np.sort(chosen)])

    @property
    def longest(self) -> NDArray[np.integer]:
        """Greatest length that each member has in an epoch, in samples, `(U,)`."""
        num_samples = self.index.num_samples[self.members]
        return num_samples if self.augmentation is None else self.augmentation.longest(num_samples)

    @property
    def seconds(self) -> float:
        """Speech of the members, in seconds."""
        return float(self.index.num_samples[self.members].sum()) / SAMPLE_RATE_HZ

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the utterances, whatever the folder they are read from."""
        digest = hashlib.sha256(self.members.tobytes())
        digest.update(" ".join(shard["sha256"] for shard in self.index.shards).encode())
        return digest.hexdigest()

    def plan(
        self, options: PlanOptions, *, seed: int, epoch: int, rank: int = 0, world_size: int = 1, shuffle: bool = True
    ) -> Plan:
        """Plan one rank's batches of the members for an epoch; see `plan_epoch`.

        It names positions in the index, or windows where there are any.
        """
        windows = self.rows and self.rows.windows
        plan = plan_epoch(
            windows.num_samples if windows else self.longest,
            self.index.table["shard"][windows.first if windows else self.members],
            options,
            seed=seed,
            epoch=epoch,
            rank=rank,
            world_size=world_size,
            shuffle=shuffle,
        )
        return plan if windows else replace(plan, indices=self.members[plan.indices])


def admit(
    index: ShardIndex,
    max_samples: int,
    max_tokens: int,
    encoder: LabelEncoder,
    *,
    require_sentence: bool,
    language: str | None = None,
) -> tuple[NDArray[np.int32], list[Rejected]]:
    """Return the utterances that a model can take, and those that it cannot, with reasons.

    Args:
        index: The shards.
        max_samples: The model's own context, in samples.
        max_tokens: Its longest label.
        encoder: Makes label ids.
        require_sentence: Leave out utterances without a sentence.
        language: Of a guard's utterances that name none; None: all are in the encoder's.
    """
    rejected = []
    admitted = np.ones(len(index), dtype=bool)
    for i in np.flatnonzero(index.num_samples > max_samples):
        text = index.read_text(int(i))
        seconds, limit = index.num_samples[i] / SAMPLE_RATE_HZ, max_samples / SAMPLE_RATE_HZ
        rejected.append(Rejected(text.row, text.audio, "too long", f"{seconds:.1f} s; the model takes {limit:g} s"))
        admitted[i] = False
    # A token has at least one byte, so only sentences with many bytes can have too many tokens.
    for i in np.flatnonzero(admitted & (index.table["text_bytes"] + 5 > max_tokens)):
        text = index.read_text(int(i))
        num_tokens = len(encoder.encode(text.sentence))
        if num_tokens > max_tokens:
            detail = f"{num_tokens} tokens; the model takes {max_tokens}"
            rejected.append(Rejected(text.row, text.sentence, "too many tokens", detail))
            admitted[i] = False
    # Who built them did not reject such rows yet. Remote ones would have to be downloaded for it, every shard.
    if index.reading < 2 and index.remote is None:
        for i in np.flatnonzero(admitted):
            text = index.read_text(int(i))
            if token := special_token(text.sentence):
                rejected.append(Rejected(text.row, text.audio, "special token", f"{token} in the sentence"))
                admitted[i] = False
    if language is not None:
        for i in np.flatnonzero(admitted):
            text = index.read_text(int(i))
            spoken = spoken_language(text.extra, language)
            if not encoder.knows(spoken):
                detail = f"the model has no language {spoken!r}; give a code, as en"
                rejected.append(Rejected(text.row, text.audio, "unknown language", detail))
                admitted[i] = False
    if require_sentence:
        for i in np.flatnonzero(admitted & (index.table["text_bytes"] == 0)):
            text = index.read_text(int(i))
            rejected.append(Rejected(text.row, text.audio, "empty sentence", "there is no sentence"))
            admitted[i] = False
    return np.flatnonzero(admitted).astype(np.int32), rejected


def augment_with(
    splits: Mapping[str, Split], seed: int, model: Model, *, loudness: bool, speed: bool
) -> Augmentation | None:
    """Return what is done to the sound of training utterances, with the recordings that are open; None for nothing."""
    sounds = {name: Recordings(splits[name].index, splits[name].members) for name in SOUNDS if name in splits}
    return Augmentation(seed, model.full_samples, loudness, speed, **sounds) if loudness or speed or sounds else None


def prepare_training(
    split: Split, augmentation: Augmentation | None, options: RowOptions, model: Model, seed: int
) -> Split:
    """Return the split of the training with what its rows are.

    Raises:
        UserError: The model lacks tokens, or a shard cannot be read.
    """
    split = replace(split, augmentation=augmentation)
    if not options:
        return split
    given = (split.index, split.members, options, model.encoder, model.full_samples, model.max_label_tokens)
    rows = make_rows(*given, seed=seed, num_samples=split.longest)
    if rows.windows is not None:
        logger.info("data.pack: %s", rows.windows)
    return replace(split, rows=rows)
