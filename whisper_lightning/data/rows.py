"""What a row of a training batch is beside one utterance and its sentence: windows, time stamps, previous text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from whisper_lightning.audio.augment import draw
from whisper_lightning.audio.constants import SAMPLE_RATE_HZ, SAMPLES_PER_POSITION
from whisper_lightning.audio.join import join
from whisper_lightning.data.format import Utterance
from whisper_lightning.data.shards import ShardIndex
from whisper_lightning.data.windows import ALONE, Arrangement, Windows, compose_windows, draw_packed
from whisper_lightning.errors import UserError
from whisper_lightning.text import LabelEncoder, Segment

SPEAKER_COLUMNS = ("speaker", "client_id")
"""Where a CSV says who speaks; the second is Common Voice's."""


class Label(NamedTuple):
    """Label ids of a row; the first `num_given`, those before `<|startoftranscript|>`, are given and not learnt."""

    ids: list[int]
    num_given: int = 0


@dataclass(frozen=True)
class RowOptions:
    """Shares of the training data, 0 to 1.

    Attributes:
        timestamps: Of the utterances that are alone in a row: their labels have time stamps.
        pack: Of the utterances: they are put into windows, whose labels have time stamps.
        prompt: Of the rows that something of the same speaker goes before: they are given it.
    """

    timestamps: float = 0.0
    pack: float = 0.0
    prompt: float = 0.0

    def __post_init__(self) -> None:
        """Raises: UserError: One is no share."""
        for name, share in vars(self).items():
            if not 0 <= share <= 1:
                raise UserError(f"data.{name}: {share:g}; give a share of the training data, from 0 to 1")

    def __bool__(self) -> bool:
        return any(vars(self).values())

    def check(self, encoder: LabelEncoder, max_samples: int) -> None:
        """Raise where the model cannot be trained like this.

        Raises:
            UserError: Its tokenizer lacks a token that is needed.
        """
        seconds = max_samples / SAMPLE_RATE_HZ
        for name in ("timestamps", "pack"):
            if getattr(self, name) and not encoder.has_times(max_samples // SAMPLES_PER_POSITION):
                raise UserError(
                    f"data.{name}: {getattr(self, name):g}; this model has no time stamps <|0.00|> to "
                    f"<|{seconds:.2f}|> in its tokenizer; set data.timestamps and data.pack to 0, or take a "
                    "model.checkpoint that has them, such as openai/whisper-base"
                )
        if self.prompt and encoder.previous is None:
            raise UserError(
                f"data.prompt: {self.prompt:g}; this model has no <|startofprev|> in its tokenizer; set data.prompt "
                "to 0, or take a model.checkpoint that has it, such as openai/whisper-base"
            )


@dataclass(frozen=True, eq=False)
class Rows:
    """Makes the rows of training batches; picklable. Draws depend on (seed, epoch, row) alone, as in `augment`.

    Attributes:
        encoder: Makes label ids.
        max_tokens: Longest label.
        seed: The run's seed.
        options: Shares.
        windows: What the plan's numbers name; None: utterances, by their position in the index.
        previous: Position of what the same speaker said before each utterance of the index, or -1; None without
            prompts.
    """

    encoder: LabelEncoder
    max_tokens: int
    seed: int
    options: RowOptions
    windows: Windows | None
    previous: NDArray[np.int32] | None

    def read(
        self, number: int, epoch: int, read: Callable[[int], Utterance], read_text: Callable[[int], Utterance]
    ) -> tuple[Utterance, Label]:
        """Read a row of an epoch.

        Args:
            number: As the plan names it.
            epoch: Counts from 0.
            read: Reads an utterance.
            read_text: Reads an utterance without its audio.

        Returns:
            The row as one utterance, and its label.
        """
        arrangement = Arrangement([number], [])
        if self.windows is not None:
            arrangement = self.windows.arrange(number, seed=self.seed, epoch=epoch)
        row, segments = self._join([read(i) for i in arrangement.indices], arrangement.pauses, epoch)
        timed = len(segments) > 1 or self._chance("timestamps", epoch, row.key) < self.options.timestamps
        ids = self.encoder.encode_times(segments) if timed else self.encoder.encode(row.sentence)
        if len(ids) > self.max_tokens:  # without time stamps it was admitted
            ids = self.encoder.encode(row.sentence)
        given = self._given(min(arrangement.indices), epoch, row.key, self.max_tokens - len(ids), read_text)
        return row, Label([*given, *ids], len(given))

    def _join(
        self, utterances: Sequence[Utterance], pauses: Sequence[int], epoch: int
    ) -> tuple[Utterance, list[Segment]]:
        key = "+".join(each.key for each in utterances)
        generator = torch.Generator().manual_seed(self._draw("pauses", epoch, key) >> 1)
        waveforms = [each.waveform for each in utterances]
        waveform, begins = join(waveforms, pauses, generator) if pauses else (waveforms[0], [0])
        segments = [
            Segment(begin, each.sentence, begin + round(len(each.waveform) / SAMPLES_PER_POSITION))
            for begin, each in zip(begins, utterances, strict=True)
        ]
        first = utterances[0]
        sentence = " ".join(each.sentence for each in utterances)
        audio = "+".join(each.audio for each in utterances)
        return first._replace(key=key, waveform=waveform, sentence=sentence, audio=audio), segments

    def _given(self, first: int, epoch: int, key: str, room: int, read_text: Callable[[int], Utterance]) -> list[int]:
        previous = -1 if self.previous is None else int(self.previous[first])
        if previous < 0 or self._chance("prompt", epoch, key) >= self.options.prompt:
            return []
        # Half of the labels' length is what OpenAI gives at most: 224 tokens.
        return self.encoder.encode_previous(read_text(previous).sentence, min(self.max_tokens // 2, room))

    def _chance(self, what: str, epoch: int, key: str) -> float:
        return self._draw(what, epoch, key) / 2**64

    def _draw(self, what: str, epoch: int, key: str) -> int:
        return draw(what, self.seed, epoch, key)


def make_rows(
    index: ShardIndex,
    members: NDArray[np.int32],
    options: RowOptions,
    encoder: LabelEncoder,
    max_samples: int,
    max_tokens: int,
    *,
    seed: int,
    num_samples: NDArray[np.integer] | None = None,
) -> Rows:
    """Read who says what, as far as it is needed, and compose the windows.

    Args:
        index: The shards.
        members: Positions in the index of the training utterances, ascending.
        options: Shares.
        encoder: Makes label ids.
        max_samples: The model's context.
        max_tokens: Its longest label.
        seed: The run's seed.
        num_samples: The greatest length that each member has in an epoch, `(U,)`; by default that in the index.

    Raises:
        UserError: The model lacks tokens, or a shard cannot be read.
    """
    options.check(encoder, max_samples)
    packed = draw_packed(len(members), options.pack, seed)
    needed = np.ones_like(packed) if options.prompt else packed
    speakers, num_tokens = np.full(len(members), ALONE, np.int32), np.zeros(len(members), np.int32)
    numbers: dict[str, int] = {}
    for i in np.flatnonzero(needed):
        text = index.read_text(int(members[i]))
        speakers[i] = numbers.setdefault(speaker(text), len(numbers))
        num_tokens[i] = len(encoder.encode_segment(Segment(0, text.sentence, 0))) if packed[i] else 0
    previous, windows = None, None
    if options.prompt:
        previous = np.full(len(index), -1, np.int32)
        before = find_previous(speakers)
        previous[members] = np.where(before < 0, -1, members[before])
    if options.pack:
        windows = compose_windows(
            index.num_samples[members] if num_samples is None else num_samples,
            np.where(packed, speakers, ALONE),
            num_tokens,
            max_samples=max_samples,
            max_tokens=max_tokens - len(encoder.encode_times([])),
            seed=seed,
        )
        windows = windows.of(members)
    return Rows(encoder, max_tokens, seed, options, windows, previous)


def find_previous(speakers: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return for each utterance, `(U,)`, where the same speaker's one before it is; -1 where there is none."""
    order = np.argsort(speakers, kind="stable")
    same = np.flatnonzero(speakers[order[1:]] == speakers[order[:-1]])
    previous = np.full(len(speakers), -1)
    previous[order[same + 1]] = order[same]
    return previous


def speaker(utterance: Utterance) -> str:
    """Return who speaks, "" where the CSV does not say."""
    return next((str(utterance.extra[name]) for name in SPEAKER_COLUMNS if utterance.extra.get(name)), "")
