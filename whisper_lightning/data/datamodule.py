"""From the files a user names to the loaders Lightning asks for."""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path
from typing import cast

from lightning.pytorch import LightningDataModule

from whisper_lightning.data.generations import holds_recordings, open_csv, open_folder
from whisper_lightning.data.loader import BatchDataset, EpochLoader
from whisper_lightning.data.long import LONG, long_windows
from whisper_lightning.data.notices import report_split, warn_of_overlap, warn_of_small_cache, write_rejected
from whisper_lightning.data.plan import Plan, PlanOptions
from whisper_lightning.data.remote import RemoteFolder, default_cache
from whisper_lightning.data.rows import RowOptions
from whisper_lightning.data.shards import ShardIndex
from whisper_lightning.data.splits import (
    GUARD,
    SOUNDS,
    Model,
    Split,
    admit,
    augment_with,
    choose,
    guard_language,
    name_sources,
    needed_splits,
    nothing_at,
    prepare_training,
    read_from,
    tests_on_val,
)
from whisper_lightning.data.transfer import is_remote, local_path
from whisper_lightning.errors import UserError

logger = logging.getLogger(__name__)

WITHOUT_SENTENCES = ("predict", *SOUNDS)
"""Splits that need none."""


class SpeechDataModule(LightningDataModule):
    """Serves speech and transcripts from CSVs or folders of shards.

    A CSV is turned into shards once, in a folder beside it (`train.csv` into `train.shards`); while the CSV does not
    change they are used as they are. In a CSV's place there may be subtitles (.srt, .vtt) with the recording beside
    them, or a folder of recordings. A folder of shards may be remote: https://, http://, s3://, gs://, az://, hf://.

    Args:
        train: CSV, or folder of shards.
        val: CSV, folder of shards, or the share of the training utterances (0 to 1) to hold out for validation.
        test: CSV or folder of shards; by default what `val` is, the same held-out utterances too.
        predict: CSV (sentences are not needed) or folder of shards to transcribe; what `test` is by default.
        guard: CSVs or folders of shards by names of your own: speech that the model shall not hear worse than before.
            Never trained on; measured before training, at each validation and at the end. A column `language` names
            what is spoken in each row, by code.
        guard_languages: By the names of guards: code of the language of rows that name none; `model.language` by
            default.
        guard_utterances: Utterances of each guard that are measured at a validation; at the end all are.
        guard_windows: Windows as long as the model hears, made of clips of the validation and decoded with time stamps,
            that are measured as one more guard, `long`; 0 for none.
        audio_root: Folder that audio paths are relative to; the CSV's own by default.
        columns: Names of the audio and the sentence column; found by their usual names by default.
        batch_size: Utterances per batch and device.
        eval_batch_size: Utterances per batch and device in validation, test and prediction.
        max_batch_seconds: Cap on the padded audio of a batch in seconds, to bound memory; longer batches get fewer
            utterances.
        augment: Change loudness and add white noise in training, anew in each epoch.
        speed: Play training utterances at 0.9, 1 or 1.1 times their speed, anew in each epoch.
        noise: Recordings of noise, in a folder, CSV or folder of shards, one of which is added to half of the training
            utterances, 10 to 40 dB below them. Longer ones than the model's context take columns `start` and `end`.
        reverb: Impulse responses of rooms, given likewise, in one of which half of the training utterances sound.
        timestamps: Share of the training utterances (0 to 1) whose label has time stamps, drawn anew in each epoch.
        pack: Share of the training utterances that are put into windows of up to the model's context, several of one
            speaker one after the other, whose labels have the time stamps of each. The columns `speaker` or
            `client_id` say who speaks; without them, neighbours share a window.
        prompt: Share of the rows of training batches that are given what the same speaker said before.
        num_workers: Processes that read and decode audio.
        cache_dir: Folder that remote shards are downloaded to; by default the user's own cache.
        cache_gib: What remote shards may take there, in GiB; the least recently used are evicted.
        min_kib_per_second: A server of remote shards that sends less for a minute is given up.
        max_rejected_fraction: Stop before training when more than this share of a CSV's rows is unusable.
        seed: Seed of the shuffling; linked to seed_everything.
    """

    def __init__(
        self,
        train: str = "train.csv",
        val: float | str = "test.csv",
        test: str | None = None,
        predict: str | None = None,
        guard: dict[str, str] | None = None,
        guard_languages: dict[str, str] | None = None,
        guard_utterances: int = 200,
        guard_windows: int = 8,
        audio_root: str | None = None,
        columns: list[str] | None = None,
        batch_size: int = 16,
        eval_batch_size: int = 32,
        max_batch_seconds: float | None = None,
        augment: bool = False,
        speed: bool = False,
        noise: str | None = None,
        reverb: str | None = None,
        timestamps: float = 0.0,
        pack: float = 0.0,
        prompt: float = 0.0,
        num_workers: int = 2,
        cache_dir: str | None = None,
        cache_gib: float = 50.0,
        min_kib_per_second: float = 1.0,
        max_rejected_fraction: float = 0.1,
        seed: int = 42,
    ) -> None:
        super().__init__()
        self.sources = name_sources(train, val, test, predict, guard, noise=noise, reverb=reverb)
        self.guard_languages, self.guard_utterances = guard_languages or {}, guard_utterances
        self.guard_windows = guard_windows
        if unknown := self.guard_languages.keys() - (guard or {}).keys():
            raise UserError(f"data.guard_languages: there is no guard {min(unknown)}; name it in data.guard too")
        if guard_utterances < 1:
            raise UserError(f"data.guard_utterances: {guard_utterances}; at least one is measured")
        self.audio_root = None if audio_root is None else local_path("data.audio_root", audio_root)
        self.cache = default_cache() if cache_dir is None else local_path("data.cache_dir", cache_dir)
        if not cache_gib > 0:
            raise UserError(f"data.cache_gib: {cache_gib}; remote shards need room, such as 50")
        self.cache_bytes = int(cache_gib * 2**30)
        self.min_bytes_per_second = 1024 * min_kib_per_second
        self.columns = columns
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.max_batch_seconds = max_batch_seconds
        self.augment, self.speed = augment, speed
        self.timestamps, self.pack, self.prompt = timestamps, pack, prompt
        self._row_options = RowOptions(timestamps, pack, prompt)
        self.num_workers = num_workers
        self.max_rejected_fraction = max_rejected_fraction
        self.seed = seed
        self.splits: dict[str, Split] = {}
        self._opened: dict[str, ShardIndex] = {}

    @property
    def guards(self) -> list[str]:
        """Names of the guards' splits that are open, in the order in which they are measured."""
        return [name for name in self.splits if name.startswith(GUARD)]

    @property
    def test_is_val(self) -> bool:
        """Whether the best model is chosen on the same utterances that are reported."""
        return tests_on_val(self.sources)

    def prepare_data(self) -> None:
        """Build missing shards, on one process of each machine."""
        needed = self._needed()
        if "train" in needed:  # before shards are built, which may take long
            self._row_options.check(self._model.encoder, self._model.full_samples)
        for name in needed:
            self._shards(name)

    def setup(self, stage: str) -> None:
        """Open the shards, leave out what this model cannot take, and report it."""
        trainer, needed = self.trainer, self._needed()
        assert trainer is not None
        for name in needed:
            if name not in self.splits:
                self.splits[name] = self._split(name)
                report_split(name, self.splits, self.max_rejected_fraction, Path(trainer.default_root_dir))
        if stage == "fit" and LONG not in self.splits:
            self._add_long_windows()
        if trainer.is_global_zero:
            write_rejected(self.splits, Path(trainer.default_root_dir))
            for name in needed if stage == "fit" else ():
                if name not in ("train", *SOUNDS):
                    warn_of_overlap(self.splits["train"], self.splits[name], name)

    def _add_long_windows(self) -> None:
        model = self._model
        limits = (model.full_samples, model.max_label_tokens)
        windows = long_windows(self.splits["val"], self.guard_windows, model.encoder, *limits, self.seed)
        if windows is not None and len(windows.members) >= self.trainer.world_size:  # type: ignore[union-attr]
            self.splits[LONG] = windows
            assert windows.rows is not None
            logger.info("%s: %s", LONG, windows.rows.windows)

    @property
    def marks(self) -> set[str] | None:
        """What the training sentences have beside letters, digits and blanks; None of shards of an older version."""
        marks = self.splits["train"].index.info.get("marks")
        return {str(mark) for mark in marks} if isinstance(marks, list) else None

    @property
    def _model(self) -> Model:
        assert self.trainer is not None
        return cast("Model", self.trainer.lightning_module)

    def _needed(self) -> list[str]:
        assert self.trainer is not None
        return needed_splits(self.sources, str(self.trainer.state.fn.value))  # type: ignore[union-attr]

    def _shards(self, name: str) -> ShardIndex:
        """Open the folder of shards that holds a split, building it from a CSV if need be; the same one for good."""
        source = read_from(self.sources, name)
        if source in self._opened:
            return self._opened[source]
        path = Path(source)
        if is_remote(f"data.{name}", source):
            index = ShardIndex.open(RemoteFolder(source, self.cache, self.cache_bytes, self.min_bytes_per_second))
        elif path.is_dir() and not holds_recordings(path):
            index = open_folder(path)
        elif path.exists():
            options = (self.audio_root, self.columns)
            index = open_csv(path, *options, require_sentence=name not in WITHOUT_SENTENCES)
        else:
            raise nothing_at(name, source)
        self._opened[source] = index
        return index

    def _split(self, name: str) -> Split:
        index = self._shards(name)
        if index.remote is not None:
            warn_of_small_cache(name, index, self.cache_bytes)
        required = name not in WITHOUT_SENTENCES or isinstance(self.sources[name], float)
        model = self._model
        limits = (model.full_samples, model.max_label_tokens)
        language = None
        if name.startswith(GUARD):
            language = guard_language(model.encoder, name, self.guard_languages)
        members, rejected = admit(index, *limits, model.encoder, require_sentence=required, language=language)
        members = members[choose(self.sources, name, len(members), self.seed)]
        split = Split(index, members, index.rejected() + rejected, language=language)
        if name != "train":
            return split
        augmentation = augment_with(self.splits, self.seed, model, loudness=self.augment, speed=self.speed)
        return prepare_training(split, augmentation, self._row_options, model, self.seed)

    def _loader(self, name: str, batch_size: int, most: int | None = None) -> EpochLoader:
        trainer, split = self.trainer, self.splits[name]
        assert trainer is not None
        if most is not None and split.rows is None:
            split = split.sample(most, self.seed)
        training, options = name == "train", PlanOptions(batch_size, self.max_batch_seconds)

        @lru_cache(maxsize=1)
        def plan(epoch: int) -> Plan:
            rank, world_size = trainer.global_rank, trainer.world_size
            return split.plan(options, seed=self.seed, epoch=epoch, rank=rank, world_size=world_size, shuffle=training)

        def position() -> tuple[int, int]:
            loop = trainer.fit_loop
            return loop.epoch_progress.current.processed, loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]

        return EpochLoader(
            BatchDataset(
                split.index,
                self._model.encoder,
                split.augmentation,
                split.rows,
                split.language,
                timed=name == LONG,
            ),
            plan if training else lambda _: plan(0),
            num_workers=self.num_workers,
            pin_memory=trainer.strategy.root_device.type == "cuda",
            position=position if training else None,
        )

    def train_dataloader(self) -> EpochLoader:
        """Shuffled, in duration buckets."""
        return self._loader("train", self.batch_size)

    def val_dataloader(self) -> list[EpochLoader]:
        """Sorted by duration; after the utterances of the validation some of each guard."""
        guards = [self._loader(name, self.eval_batch_size, self.guard_utterances) for name in self.guards]
        return [self._loader("val", self.eval_batch_size), *guards]

    def test_dataloader(self) -> list[EpochLoader]:
        """Sorted by duration; after the utterances of the test all of each guard."""
        # A fit that is tested on what it is validated with has not opened it twice.
        test = "test" if "test" in self.splits else "val"
        return [self._loader(name, self.eval_batch_size) for name in (test, *self.guards)]

    def is_whole(self, guard: str) -> bool:
        """Say whether a validation measures every utterance of a guard's split."""
        return guard == LONG or len(self.splits[guard].members) <= self.guard_utterances

    def predict_dataloader(self) -> EpochLoader:
        """Sorted by duration."""
        return self._loader("predict", self.eval_batch_size)
