"""Packed windows, time stamps and prompts: each utterance once, what a label says of the sound is so, equal epochs."""

import hashlib
import itertools
import pickle
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import MODEL, one_error, quick_arguments
from tests.timed import speaking_corpus, write_timed_model
from whisper_lightning.audio.join import join, quiet_level
from whisper_lightning.batch import Batch
from whisper_lightning.cli import main
from whisper_lightning.data.augmentation import Augmentation
from whisper_lightning.data.build import build_shards
from whisper_lightning.data.loader import BatchDataset
from whisper_lightning.data.plan import PlannedBatch, PlanOptions
from whisper_lightning.data.rows import RowOptions, Rows, find_previous, make_rows, speaker
from whisper_lightning.data.shards import ShardIndex
from whisper_lightning.data.splits import Split
from whisper_lightning.data.windows import ALONE, Windows, compose_windows, draw_packed
from whisper_lightning.errors import UserError
from whisper_lightning.hub import load_processor
from whisper_lightning.text import LabelEncoder, Segment

POSITION = 320
FULL = 30 * 16_000
LIMIT = 448


def sizes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Durations up to 30 s, speakers some of whom are not packed, and tokens some of which are very many."""
    rng = np.random.default_rng(seed)
    num_samples = (16_000 * np.clip(rng.lognormal(1.2, 0.9, count), 0.05, 30)).astype(np.int32)
    speakers = rng.integers(ALONE, 7, count).astype(np.int32)
    num_tokens = np.minimum(3 + rng.poisson(num_samples / 4_000 * rng.integers(1, 5, count)), LIMIT).astype(np.int32)
    return num_samples, speakers, num_tokens


def compose(count: int, seed: int) -> Windows:
    return compose_windows(*sizes(count, seed), max_samples=FULL, max_tokens=LIMIT, seed=seed)


def members_of(windows: Windows) -> list[np.ndarray]:
    return np.split(windows.indices, windows.offsets[1:-1])


@pytest.mark.parametrize("seed", range(8))
def test_windows_have_each_utterance_once_and_fit(seed: int) -> None:
    num_samples, speakers, num_tokens = sizes(1003, seed)
    windows = compose(1003, seed)
    assert sorted(windows.indices.tolist()) == list(range(1003))
    assert windows.num_samples.max() <= FULL
    for window, members in enumerate(members_of(windows)):
        assert len(members) >= 1
        if len(members) > 1:
            assert len(set(speakers[members].tolist())) == 1
            assert speakers[members[0]] != ALONE
            assert sum(num_tokens[members]) <= LIMIT
            same = np.flatnonzero(speakers == speakers[members[0]]).tolist()
            places = [same.index(i) for i in members]
            assert places == list(range(places[0], places[0] + len(places))), "not neighbours"
        whole = sum(-(-num_samples[members] // POSITION)) + windows.silence[window]
        assert windows.num_samples[window] == whole * POSITION


def test_windows_are_of_many_lengths() -> None:
    """Not all are full: a Whisper hears windows of every length."""
    seconds = compose(20_003, 1).num_samples[compose(20_003, 1).sizes > 1] / 16_000
    counts = np.histogram(seconds, bins=[0, 10, 14, 18, 22, 26, 30])[0] / len(seconds)
    assert counts.min() > 0.05, counts


@pytest.mark.parametrize("seed", range(4))
def test_an_epoch_changes_order_and_pauses_and_no_length(seed: int) -> None:
    windows = compose(503, seed)
    changed = 0
    for window, members in enumerate(members_of(windows)):
        arranged = [windows.arrange(window, seed=seed, epoch=epoch) for epoch in range(3)]
        assert arranged[0] == windows.arrange(window, seed=seed, epoch=0)
        for indices, pauses in arranged:
            assert sorted(indices) == members.tolist()
            assert len(pauses) == len(indices) - 1
            assert sum(pauses) == windows.silence[window]
            assert all(10 <= pause <= 50 for pause in pauses)
        changed += arranged[0] != arranged[1]
    assert changed > 0.8 * np.count_nonzero(windows.sizes > 1)


def test_windows_are_the_committed_ones() -> None:
    """A checkpoint knows its place in an epoch by counting batches: changed windows would resume elsewhere."""
    windows = compose(2003, 7)
    arranged = [windows.arrange(window, seed=7, epoch=3) for window in range(len(windows))]
    text = repr([windows.offsets.tolist(), windows.num_samples.tolist(), [tuple(each) for each in arranged]])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "449335fea27d4d77"


def test_no_utterances_have_no_windows() -> None:
    assert len(compose(0, 1)) == 0
    assert draw_packed(0, 0.5, 1).tolist() == []


def test_the_share_that_is_packed() -> None:
    assert [np.count_nonzero(draw_packed(1000, share, 1)) for share in (0.0, 0.3, 1.0)] == [0, 300, 1000]
    assert not np.array_equal(draw_packed(1000, 0.3, 1), draw_packed(1000, 0.3, 2))


def test_what_the_same_speaker_said_before() -> None:
    assert find_previous(np.array([4, 7, 4, 4, 7, 9])).tolist() == [-1, -1, 0, 2, 1, -1]


def test_pauses_are_as_quiet_as_the_room() -> None:
    generator = torch.Generator().manual_seed(1)
    room = [level * torch.randn(8_000, generator=generator) for level in (0.01, 0.001)]
    for waveform in room:
        waveform[2_000:5_000] += 0.3 * torch.randn(3_000, generator=generator)
        waveform[:320] = 0  # as encoders begin
    assert [quiet_level(waveform) for waveform in room] == pytest.approx([0.01, 0.001], rel=0.15)
    joined, begins = join(room, [20], generator)
    assert begins == [0, 45]
    assert len(joined) == 45 * POSITION + 8_000
    assert torch.equal(joined[:8_000], room[0])
    assert torch.equal(joined[45 * POSITION :], room[1])
    assert float(joined[8_000 : 45 * POSITION].square().mean().sqrt()) == pytest.approx(0.001, rel=0.15)
    silent, _ = join([torch.zeros(1_000), torch.ones(100)], [10], generator)
    assert not silent[:-100].any(), "clips that are cut out of digital silence"


# On real shards.


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_timed_model(tmp_path_factory.mktemp("timed") / "model")


@pytest.fixture(scope="module")
def encoder(model: Path) -> LabelEncoder:
    return LabelEncoder(load_processor(str(model)).tokenizer)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    folder = tmp_path_factory.mktemp("corpus")
    speaking_corpus(folder / "corpus", 40, 1)
    build_shards(folder / "corpus" / "train.csv", folder / "shards", num_workers=0, rows_per_shard=7)
    return ShardIndex.open(folder / "shards")


def split_of(
    index: ShardIndex, encoder: LabelEncoder, augmentation: Augmentation | None = None, **shares: float
) -> Split:
    """All utterances but the fourth, for a model of 10 s and 160 tokens."""
    members = np.delete(np.arange(len(index), dtype=np.int32), 3)
    split = Split(index, members, [], augmentation=augmentation)
    given = (index, members, RowOptions(**shares), encoder, 160_000, 160)
    return replace(split, rows=make_rows(*given, seed=5, num_samples=split.longest))


def rows_of(split: Split) -> Rows:
    assert split.rows is not None
    return split.rows


def windows_of(split: Split) -> Windows:
    windows = rows_of(split).windows
    assert windows is not None
    return windows


def serve(split: Split, planned: PlannedBatch, epoch: int) -> Batch:
    batch = BatchDataset(split.index, rows_of(split).encoder, split.augmentation, split.rows)[planned, epoch]
    assert not isinstance(batch, UserError)
    return batch


def written(encoder: LabelEncoder, ids: list[int]) -> str:
    names = {i: name for name, i in encoder.vocabulary.items()}
    return "".join(names[i] for i in ids).replace("Ġ", " ")


@pytest.mark.parametrize(
    "augmentation",
    [None, Augmentation(5, 160_000, loudness=True), Augmentation(5, 160_000, speed=True)],
    ids=["as they are", "loudness", "speed"],
)
def test_clips_stand_where_the_labels_say(
    index: ShardIndex, encoder: LabelEncoder, model: Path, augmentation: Augmentation | None
) -> None:
    split = split_of(index, encoder, augmentation, pack=0.8, timestamps=0.5)
    tokenizer = load_processor(str(model)).tokenizer
    zero = tokenizer.get_vocab()["<|0.00|>"]
    clips = {f"{int(row):08d}": i for i, row in enumerate(index.table["row"])}
    seen, timed, lengths = Counter[str](), Counter[bool](), Counter[float]()
    for planned in split.plan(PlanOptions(4), seed=5, epoch=2):
        batch = serve(split, planned, 2)
        assert batch.waveforms.shape[1] == planned.num_samples <= 160_000
        for waveform, key, inputs in zip(batch.waveforms, batch.keys, batch.decoder_input_ids.tolist(), strict=True):
            keys = key.split("+")
            seen.update(keys)
            texts = [index.read_text(clips[key]) for key in keys]
            assert len({speaker(text) for text in texts}) == 1
            ids = [*itertools.takewhile(lambda i: i != tokenizer.eos_token_id, inputs)]
            times = [i - zero for i in ids if i >= zero]
            timed[len(keys) > 1] += bool(times)
            if not times:
                assert len(keys) == 1
                assert ids == encoder.encode(texts[0].sentence)[:-1]
                continue
            assert tokenizer.convert_ids_to_tokens(ids[:3]) == ["<|startoftranscript|>", "<|es|>", "<|transcribe|>"]
            spans = "".join("|" if i >= zero else tokenizer.decode([i]) for i in ids[3:])
            if spans.isascii():  # other letters may be two tokens
                assert spans == "".join(f"| {text.sentence}|" for text in texts)
            end = 0
            for each, begin, stop in zip(keys, times[::2], times[1::2], strict=True):
                clip = BatchDataset(index, encoder, augmentation)[PlannedBatch((clips[each],), 160_000), 2]
                assert not isinstance(clip, UserError)
                length = round(clip.audio_seconds * 16_000)
                lengths[length / int(index.num_samples[clips[each]])] += 1
                assert begin * POSITION >= end
                start, end = begin * POSITION, begin * POSITION + length
                assert torch.equal(waveform[start:end], clip.waveforms[0, :length])
                assert abs(stop * POSITION - end) <= POSITION / 2
            assert not waveform[end:].any()
    assert seen == Counter(clips.keys() - {f"{int(index.table['row'][3]):08d}"})
    assert min(timed.values()) > 1, timed
    assert (len(lengths) > 2) == (augmentation is not None and augmentation.speed)


def test_one_label_as_openai_writes_it(encoder: LabelEncoder) -> None:
    ids = encoder.encode_times([Segment(0, "enciende la luz", 122), Segment(145, "abre", 305)])
    prompt = "<|startoftranscript|><|es|><|transcribe|>"
    assert written(encoder, ids) == f"{prompt}<|0.00|> enciende la luz<|2.44|><|2.90|> abre<|6.10|><|endoftext|>"


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_epochs_are_equal_in_number_and_content_on_every_rank(
    index: ShardIndex, encoder: LabelEncoder, world_size: int
) -> None:
    split = split_of(index, encoder, pack=0.6)
    epochs = []
    for epoch in range(4):
        plan = partial(split.plan, PlanOptions(2), seed=5, epoch=epoch, world_size=world_size)
        ranks = [plan(rank=rank) for rank in range(world_size)]
        assert len({len(plan) for plan in ranks}) == 1
        numbers = [number for batches in ranks for batch in batches for number in batch.indices]
        arranged = [windows_of(split).arrange(number, seed=5, epoch=epoch).indices for number in numbers]
        epochs.append(Counter(tuple(sorted(indices)) for indices in arranged))
    assert all(epoch == epochs[0] for epoch in epochs)
    assert sorted(i for window in epochs[0] for i in window) == split.members.tolist()
    again = windows_of(split_of(index, encoder, pack=0.6))
    assert np.array_equal(again.indices, windows_of(split).indices)
    assert np.array_equal(again.num_samples, windows_of(split).num_samples)


def test_workers_make_the_same_rows(index: ShardIndex, encoder: LabelEncoder) -> None:
    """They get the windows by pickle."""
    split = split_of(index, encoder, pack=0.6, timestamps=0.5, prompt=0.5)
    other = Split(index, split.members, [], pickle.loads(pickle.dumps(split.rows)))  # noqa: S301
    for planned in split.plan(PlanOptions(4), seed=5, epoch=1):
        one, two = serve(split, planned, 1), serve(other, planned, 1)
        assert one.keys == two.keys
        assert torch.equal(one.waveforms, two.waveforms)
        assert torch.equal(one.decoder_input_ids, two.decoder_input_ids)
        assert torch.equal(one.label_positions, two.label_positions)


def test_a_prompt_is_what_was_said_before_and_is_not_learnt(index: ShardIndex, encoder: LabelEncoder) -> None:
    split, plain = (split_of(index, encoder, pack=0.6, prompt=share) for share in (1.0, 0.0))
    start = encoder.prompt[0]
    without = 0
    for planned in split.plan(PlanOptions(3), seed=5, epoch=1):
        batch, expected = serve(split, planned, 1), serve(plain, planned, 1)
        assert torch.equal(batch.label_tokens, expected.label_tokens)
        assert torch.equal(batch.waveforms, expected.waveforms)
        learnt = torch.zeros(batch.decoder_input_ids.shape, dtype=torch.bool)
        learnt.view(-1)[batch.label_positions] = True
        for row, number in enumerate(planned.indices):
            first = int(windows_of(split).first[number])
            who = speaker(index.read_text(first))
            before = [i for i in split.members[split.members < first].tolist() if speaker(index.read_text(i)) == who]
            ids = batch.decoder_input_ids[row].tolist()
            given = ids[: ids.index(start)]
            assert given == (encoder.encode_previous(index.read_text(before[-1]).sentence, 80) if before else [])
            without += not before
            assert not learnt[row, : len(given)].any()
            assert learnt[row, len(given)], "the language is the first that is learnt"
            assert int(expected.decoder_input_ids[row, 0]) == start
    assert without == 2, "the first of each speaker"


def test_a_long_prompt_is_cut_from_the_left(encoder: LabelEncoder) -> None:
    sentence = "la luz de la cocina " * 40
    whole = encoder.encode_previous(sentence, 10_000)
    assert encoder.encode_previous(sentence, 80) == [encoder.previous, *whole[-79:]]
    assert encoder.encode_previous(sentence, 2) == [encoder.previous, whole[-1]]
    assert encoder.encode_previous(sentence, 1) == encoder.encode_previous(" ", 80) == []


@pytest.mark.parametrize("max_tokens", [40, 22])
def test_labels_fit(index: ShardIndex, encoder: LabelEncoder, max_tokens: int) -> None:
    """Where the time stamps do not fit, the label is the one without, which was admitted."""
    fits = [len(encoder.encode(index.read_text(i).sentence)) <= max_tokens for i in range(len(index))]
    members = np.flatnonzero(fits).astype(np.int32)
    options = RowOptions(timestamps=1, pack=1, prompt=1)
    rows = make_rows(index, members, options, encoder, 160_000, max_tokens, seed=5)
    assert rows.windows is not None
    for number in range(len(rows.windows)):
        row, label = rows.read(number, 0, index.read, index.read_text)
        assert len(label.ids) <= max_tokens
        assert label.num_given <= max_tokens // 2
        assert "+" not in row.key or encoder.time_zero in label.ids


def test_shares_of_single_utterances(index: ShardIndex, encoder: LabelEncoder) -> None:
    rows = rows_of(split_of(index, encoder, timestamps=0.3, prompt=0.7))
    assert rows.windows is None
    labels = [rows.read(0, epoch, index.read, index.read_text)[1] for epoch in range(150)]
    assert all(label.num_given == 0 for label in labels), "nothing was said before"
    labels = [rows.read(9, epoch, index.read, index.read_text)[1] for epoch in range(300)]
    assert sum(encoder.time_zero in label.ids for label in labels) / 300 == pytest.approx(0.3, abs=0.1)
    assert sum(label.num_given > 0 for label in labels) / 300 == pytest.approx(0.7, abs=0.1)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--data.timestamps=1.5", "data.timestamps: 1.5; give a share of the training data, from 0 to 1"),
        ("--data.pack=-0.1", "data.pack: -0.1; give a share"),
        ("--data.prompt=2", "data.prompt: 2; give a share"),
        ("--data.timestamps=0.5", "data.timestamps: 0.5; this model has no time stamps <|0.00|> to <|4.00|>"),
        ("--data.pack=0.5", "data.pack: 0.5; this model has no time stamps"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    option: str, message: str, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The quickstart's model has no time stamps."""
    assert main([*quick_arguments(corpus, tmp_path / "run"), f"--model.checkpoint={MODEL}", option]) == 2
    assert message in one_error(capsys)
    assert not list(corpus.glob("*.shards")), "said before anything that takes long"
