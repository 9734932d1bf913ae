"""Shards: the same bytes always, readable by others, restartable, never silently short."""

import csv
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import webdataset

from whisper_lightning.data.build import build_shards
from whisper_lightning.data.format import RECORDS, json_offset
from whisper_lightning.data.shards import ShardIndex
from whisper_lightning.errors import UserError


def make_corpus(folder: Path, count: int = 14) -> Path:
    """Tones of different lengths; row 5 is silent, row 6 missing, row 7 without a sentence."""
    folder.mkdir(parents=True)
    with (folder / "train.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["audio", "sentence", "accent"])
        for i in range(2, count + 2):
            length = 4000 + 500 * (i % 20)
            samples = 0.0 if i == 5 else 0.2 * np.sin(np.arange(length) * 0.01 * i)
            if i != 6:
                soundfile.write(folder / f"señal {i}.wav", np.full(length, samples), 16_000)
            writer.writerow([f"señal {i}.wav", "" if i == 7 else f"frase número {i}", "andaluz"])
    return folder / "train.csv"


def to_version_1(folder: Path) -> None:
    """Make of a folder's index what version 1 wrote: no sums of utterances, and no word on how rows were read."""
    table = np.load(folder / "index.npy")
    np.save(folder / "index.npy", table[list(RECORDS[1].names or ())].astype(RECORDS[1]))
    info = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    info |= {"version": 1, "options": {}, "fingerprint": "of version 1"}
    digest = hashlib.sha256((folder / "index.npy").read_bytes()).hexdigest()
    info["files"][0] |= {"bytes": (folder / "index.npy").stat().st_size, "sha256": digest}
    (folder / "index.json").write_text(json.dumps(info), encoding="utf-8")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


def test_same_bytes_whatever_the_number_of_workers(tmp_path: Path) -> None:
    """Workers are spawned, and the folder has blanks and accents, as on a Windows desktop."""
    source = make_corpus(tmp_path / "mi voz en español")
    for workers in (0, 2):
        build_shards(source, tmp_path / str(workers), num_workers=workers, rows_per_shard=4)
    assert len(contents(tmp_path / "0")) == 4
    assert contents(tmp_path / "0") == contents(tmp_path / "2")


def test_plain_webdataset_reads_what_random_access_reads(tmp_path: Path) -> None:
    source = make_corpus(tmp_path / "data")
    index = build_shards(source, tmp_path / "shards", num_workers=0, rows_per_shard=4)
    urls = [str(path) for path in sorted((tmp_path / "shards").glob("*.tar"))]
    stream = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(stream) == len(index) == 12
    for i, sample in enumerate(stream):
        text = json.loads(sample["json"])
        mine = index.read(i)
        assert sample["__key__"] == mine.key
        assert (text["sentence"], text["extra"]) == (mine.sentence, {"accent": "andaluz"})
        assert text["num_samples"] == len(mine.waveform) == index.num_samples[i]
        original, _ = soundfile.read(source.parent / mine.audio, dtype="float32")
        assert np.abs(mine.waveform.numpy() - original).max() < 1e-4
        assert index.read_text(i).sentence == mine.sentence


def test_bad_rows_are_listed_with_their_reason(tmp_path: Path) -> None:
    index = build_shards(make_corpus(tmp_path / "data"), tmp_path / "shards", num_workers=0, rows_per_shard=4)
    reasons = {row.row: row.reason for row in index.rejected()}
    assert reasons == {5: "silent", 6: "missing"}


def test_a_cut_shard_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    build_shards(make_corpus(tmp_path / "data"), folder, num_workers=0, rows_per_shard=4)
    shard = folder / "000002.tar"
    shard.write_bytes(shard.read_bytes()[:-600])
    with pytest.raises(UserError, match=r"000002\.tar"):
        ShardIndex.open(folder)


def test_a_damaged_utterance_is_named(tmp_path: Path) -> None:
    """A shard of the right length may still hold other bytes: never fewer samples, never a bare decoder error."""
    folder = tmp_path / "shards"
    index = build_shards(make_corpus(tmp_path / "data"), folder, num_workers=0, rows_per_shard=20)
    entry = index.table[2]
    shard = folder / "000000.tar"
    content = bytearray(shard.read_bytes())
    content[entry["offset"] + 100 : entry["offset"] + entry["flac_bytes"]] = bytes(entry["flac_bytes"] - 100)
    shard.write_bytes(content)
    with pytest.raises(UserError, match=rf"000000\.tar: row {entry['row']} is damaged"):
        index.read(2)
    assert index.read(3).row == index.table[3]["row"]


BUILD = (
    "import sys; from pathlib import Path; from whisper_lightning.data.build import build_shards; "
    "build_shards(Path(sys.argv[1]), Path(sys.argv[2]), num_workers=int(sys.argv[3]), rows_per_shard=20)"
)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends Ctrl-C otherwise")
def test_ctrl_c_does_not_wait_for_the_shards_in_work(tmp_path: Path) -> None:
    source, folder = make_corpus(tmp_path / "data", 6000), tmp_path / "shards"
    code = BUILD.replace("rows_per_shard=20", "rows_per_shard=3000")
    process = subprocess.Popen([sys.executable, "-c", code, str(source), str(folder), "2"])
    while len(list(folder.glob("*.new"))) < 2 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) != 0
    assert not list(folder.glob("*.tar*")), "brought to their end"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no signals to stop a process with")
def test_a_killed_worker_names_the_file_that_it_was_at(tmp_path: Path) -> None:
    """As the system does when memory runs out."""
    noise = np.random.default_rng(0).normal(0, 0.1, (20 * 384_000, 1)).astype(np.float32)
    names = [f"grabación {i}.wav" for i in range(4)]
    for name in names:
        soundfile.write(tmp_path / name, noise, 384_000)
    source, folder = tmp_path / "train.csv", tmp_path / "shards"
    source.write_text("audio,sentence\n" + "".join(f"{name},hola\n" for name in names), encoding="utf-8")
    killed = []

    def kill() -> None:
        while not (found := list(folder.glob("*.tar.*.new"))):
            time.sleep(0.01)
        time.sleep(0.05)  # it has begun to read by then
        killed.append(names[int(found[0].name.split(".")[0])])
        os.kill(int(found[0].name.split(".")[2]), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(UserError) as caught:
        build_shards(source, folder, num_workers=2, rows_per_shard=1)
    thread.join()
    (name,) = killed
    assert f"killed (out of memory?) at {name} (row {names.index(name) + 2}); " in str(caught.value)
    assert len(build_shards(source, folder, num_workers=0, rows_per_shard=1)) == 4


def test_index_goes_to_a_worker_as_its_folder(tmp_path: Path) -> None:
    index = build_shards(make_corpus(tmp_path / "data"), tmp_path / "shards", num_workers=0)
    payload = pickle.dumps(index)
    assert len(payload) < 1000
    assert pickle.loads(payload).read(3).key == index.read(3).key  # noqa: S301


def test_a_flipped_bit_is_named_whatever_it_is_in(tmp_path: Path) -> None:
    """A sentence with another letter would be a label like any other, and the shard as long as before."""
    folder = tmp_path / "shards"
    build_shards(make_corpus(tmp_path / "data", 2), folder, num_workers=0)
    entry = ShardIndex.open(folder).table[1]
    shard = folder / "000000.tar"
    whole = shard.read_bytes()
    start = json_offset(int(entry["offset"]), int(entry["flac_bytes"]))
    assert b"frase" in whole[start : start + entry["json_bytes"]]
    text = [(start + i, 1 << i % 8) for i in range(entry["json_bytes"])]
    sound = [(int(entry["offset"]) + i, 1 << i % 8) for i in range(0, entry["flac_bytes"], 200)]
    silent = []
    for place, bit in text + sound:
        spoiled = bytearray(whole)
        spoiled[place] ^= bit
        shard.write_bytes(spoiled)
        index = ShardIndex.open(folder)
        try:
            index.read(1)
            silent.append(place - start)
        except UserError:
            continue
    assert silent == []
    shard.write_bytes(whole.replace("frase número 3".encode(), "frase número 8".encode()))
    with pytest.raises(UserError, match="row 3 is damaged"):
        ShardIndex.open(folder).read_text(1)


def test_a_folder_of_version_1_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    index = build_shards(make_corpus(tmp_path / "data"), folder, num_workers=0, rows_per_shard=4)
    before = [(index.read(i).sentence, index.read(i).row) for i in range(len(index))]
    to_version_1(folder)
    index = ShardIndex.open(folder)
    assert [(index.read(i).sentence, index.read(i).row) for i in range(len(index))] == before
    assert pickle.loads(pickle.dumps(index)).read(3).sentence == before[3][0]  # noqa: S301


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a folder of shards"):
        ShardIndex.open(tmp_path)
