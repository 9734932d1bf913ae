"""Planned batches to tensors: collation in worker processes, and a loader that starts at any batch of any epoch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from whisper_lightning.audio.constants import SAMPLE_RATE_HZ, SAMPLES_PER_POSITION
from whisper_lightning.batch import Batch
from whisper_lightning.data.augmentation import Augmentation
from whisper_lightning.data.format import Utterance, spoken_language
from whisper_lightning.data.plan import Plan, PlannedBatch
from whisper_lightning.data.rows import Label, Rows
from whisper_lightning.data.shards import ShardIndex
from whisper_lightning.data.workers import death_of_a_worker, no_shared_memory, obey_the_main_process, starting_workers
from whisper_lightning.errors import UserError
from whisper_lightning.text import LabelEncoder

SHARED_MEMORY = Path("/dev/shm")
"""Where batches go from the workers to the main process, on Linux."""


def collate(
    utterances: list[Utterance], num_samples: int, encoder: LabelEncoder, labels: list[Label] | None = None
) -> Batch:
    """Pad waveforms to `num_samples` and lay out decoder inputs and the tokens that count.

    Labels are those of the sentences, unless they are given. Positions are computed here, on the CPU, because a boolean
    mask on the device would cost a host sync each step.
    """
    assert num_samples % SAMPLES_PER_POSITION == 0
    waveforms = torch.zeros(len(utterances), num_samples)
    for row, utterance in enumerate(utterances):
        waveforms[row, : len(utterance.waveform)] = utterance.waveform
    labels = labels or [Label(encoder.encode(utterance.sentence)) for utterance in utterances]
    width = max(len(ids) for ids, _ in labels) - 1
    inputs = torch.full((len(labels), width), encoder.end)
    positions: list[int] = []
    tokens: list[int] = []
    for row, (ids, num_given) in enumerate(labels):
        inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        positions.extend(range(row * width + num_given, row * width + len(ids) - 1))
        tokens.extend(ids[num_given + 1 :])
    return Batch(
        keys=[utterance.key for utterance in utterances],
        waveforms=waveforms,
        decoder_input_ids=inputs,
        label_positions=torch.tensor(positions),
        label_tokens=torch.tensor(tokens),
        sentences=[utterance.sentence for utterance in utterances],
        audio=[utterance.audio for utterance in utterances],
        audio_seconds=sum(len(utterance.waveform) for utterance in utterances) / SAMPLE_RATE_HZ,
    )


@dataclass(frozen=True)
class BatchDataset(Dataset[Batch | UserError]):
    """Reads and collates one planned batch; picklable, so that workers may be spawned (Windows, macOS).

    What the user can fix is given, not raised: torch would put the worker's traceback into the message.

    Attributes:
        index: Where the utterances are.
        encoder: Makes label ids.
        augmentation: What is done to the sound of its utterances.
        rows: Makes rows of more than an utterance and its sentence.
        language: Of a guard's utterances that name none; None: all are in the encoder's.
        timed: Whether every row has time stamps, and is decoded with them.
    """

    index: ShardIndex
    encoder: LabelEncoder
    augmentation: Augmentation | None = None
    rows: Rows | None = None
    language: str | None = None
    timed: bool = False

    def __getitem__(self, item: tuple[PlannedBatch, int]) -> Batch | UserError:
        """Read the utterances of a planned batch of an epoch, and pad them to its length."""
        try:
            batch = self._read(*item)
            if get_worker_info() is not None:
                # Here and not while it is sent: an error there is printed, and the main process waits for ever.
                for value in batch:
                    if isinstance(value, torch.Tensor):
                        value.share_memory_()  # type: ignore[no-untyped-call]
        except UserError as error:
            return error
        except RuntimeError as error:
            if "shared memory" not in str(error):
                raise
            return no_shared_memory(str(error).splitlines()[0])
        return batch

    def _read(self, planned: PlannedBatch, epoch: int) -> Batch:
        def read(i: int) -> Utterance:
            utterance = self.index.read(i)
            return utterance if self.augmentation is None else self.augmentation(utterance, epoch)

        if self.rows is not None:
            rows = [self.rows.read(number, epoch, read, self.index.read_text) for number in planned.indices]
            batch = collate([row for row, _ in rows], planned.num_samples, self.encoder, [label for _, label in rows])
            return batch._replace(timed=self.timed)
        utterances = [read(i) for i in planned.indices]
        if self.language is None:
            return collate(utterances, planned.num_samples, self.encoder)
        languages = [spoken_language(each.extra, self.language) for each in utterances]
        pairs = zip(utterances, languages, strict=True)
        labels = [Label(self.encoder.encode(each.sentence, language)) for each, language in pairs]
        return collate(utterances, planned.num_samples, self.encoder, labels)._replace(languages=languages)


class _Remaining(Sampler[tuple[PlannedBatch, int]]):
    """The batches that are still to be served, and their epoch; a DataLoader whose workers stay asks anew each time."""

    def __init__(self) -> None:
        self.batches: Sequence[PlannedBatch] = ()
        self.epoch = 0

    def __iter__(self) -> Iterator[tuple[PlannedBatch, int]]:
        return ((batch, self.epoch) for batch in self.batches)


class EpochLoader:
    """Serves one rank's batches of an epoch, from any batch on.

    Lightning's traps that shape it (measured with 2.6): without `__len__` a resume loses a batch; the iterator is
    made before `set_epoch` when a run resumes at the end of an epoch, so `__iter__` returns a lazy generator; `iter`
    is called once too often, so it has no side effect; only rank 0's loader state is saved, so the state does not
    depend on the rank.

    Args:
        dataset: Reads planned batches.
        plan: Epoch to this rank's batches; equally many in every epoch. Asked for their number first, so it should
            remember its last answer.
        num_workers: Reader processes; 0 reads in this process.
        pin_memory: Page-locked batches, for asynchronous copies to a GPU.
        position: Epoch and number of its batches that the trainer has finished; None outside training. A count of
            what this loader yielded would be ahead of the trainer by what it prefetched.
    """

    def __init__(
        self,
        dataset: BatchDataset,
        plan: Callable[[int], Plan],
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
        position: Callable[[], tuple[int, int]] | None = None,
    ) -> None:
        self._remaining = _Remaining()
        # Workers stay from epoch to epoch and from validation to validation: to spawn one takes seconds.
        self._loader = DataLoader(
            dataset,
            batch_size=None,
            sampler=self._remaining,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            multiprocessing_context="spawn" if num_workers else None,
            worker_init_fn=_start_worker,
        )
        self._plan = plan
        self._position = position
        self._epoch = 0
        self._resume = (0, 0)
        self._length = len(plan(0))
        # Lightning's set_epoch goes to `loader.sampler`; it reads `batch_sampler` beside it.
        self.sampler = self
        self.batch_sampler = None

    def __len__(self) -> int:
        return self._length

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next pass serves."""
        self._epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the batches of it that are done; the same on every rank."""
        epoch, start = self._position() if self._position else (0, 0)
        return {"epoch": epoch, "start": start}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next pass over the saved epoch begin where it was left."""
        self._resume = (state["epoch"], state["start"])

    def __iter__(self) -> Iterator[Batch]:
        return self._serve()

    def _serve(self) -> Iterator[Batch]:
        epoch = self._epoch
        planned = self._plan(epoch)
        assert len(planned) == self._length, "epochs of different length"
        resumed_epoch, start = self._resume
        self._remaining.batches = planned[start:] if epoch == resumed_epoch else planned
        self._remaining.epoch = epoch
        self._check_shared_memory(planned)
        with starting_workers():
            batches = iter(self._loader)  # starts the workers, which inherit what is blocked
        try:
            for batch in batches:
                if isinstance(batch, UserError):
                    raise batch
                yield batch
        except RuntimeError as error:
            death = death_of_a_worker(error)
            if death is None:
                raise
            raise death from None

    def _check_shared_memory(self, planned: Plan) -> None:
        """Compare what the batches under way will take with what there is.

        Raises:
            UserError: It is too little; workers would be killed for it, at some point of the run.
        """
        if self._loader.num_workers == 0 or not SHARED_MEMORY.is_dir():
            return
        under_way = self._loader.num_workers * (self._loader.prefetch_factor or 0) + 1
        batch_bytes = np.sort(planned.sizes * planned.num_samples * torch.float32.itemsize)
        needed = int(batch_bytes[-under_way:].sum())
        free = shutil.disk_usage(SHARED_MEMORY).free
        if free < needed:
            raise no_shared_memory(
                f"{free / 2**20:.0f} MiB are free in {SHARED_MEMORY}, {needed / 2**20:.0f} are needed"
            )


def _start_worker(number: int) -> None:
    obey_the_main_process()
