"""Shards: the same bytes always, readable by others, restartable, never silently short."""

import csv
import json
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import webdataset

from whisper_lightning.data.build import build_shards
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
    assert len(stream) == len(index) == 11
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
    assert reasons == {5: "silent", 6: "missing", 7: "empty sentence"}


def test_current_shards_are_reused_and_changes_noticed(tmp_path: Path) -> None:
    source, folder = make_corpus(tmp_path / "data"), tmp_path / "shards"

    def build() -> tuple[ShardIndex, dict[str, int]]:
        index = build_shards(source, folder, num_workers=0, rows_per_shard=4)
        return index, {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}

    _, first = build()
    assert build()[1] == first
    # The user mends a rejected file: its shard alone is built again.
    soundfile.write(source.parent / "señal 6.wav", 0.1 * np.sin(np.arange(9000)), 16_000)
    index, mended = build()
    assert len(index) == 12
    assert [name for name in first if first[name] != mended[name]] == ["000001.tar"]
    with source.open("a", encoding="utf-8") as file:
        file.write("señal 2.wav,una más,andaluz\n")
    assert len(build()[0]) == 13


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


def test_a_cut_shard_is_built_again_where_its_csv_is(tmp_path: Path) -> None:
    source, folder = make_corpus(tmp_path / "data"), tmp_path / "shards"
    build_shards(source, folder, num_workers=0, rows_per_shard=4)
    whole = contents(folder)
    (folder / "000002.tar").write_bytes(whole["000002.tar"][:-600])
    build_shards(source, folder, num_workers=0, rows_per_shard=4)
    assert contents(folder) == whole


def test_no_index_beside_shards_that_it_does_not_describe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that takes in mended files is killed before the new index: the old one would give wrong places."""
    source, folder = make_corpus(tmp_path / "data"), tmp_path / "shards"
    build_shards(source, folder, num_workers=0, rows_per_shard=4)
    soundfile.write(source.parent / "señal 6.wav", 0.1 * np.sin(np.arange(9000)), 16_000)
    with monkeypatch.context() as patch:
        patch.delattr(np, "save")
        with pytest.raises(AttributeError):
            build_shards(source, folder, num_workers=0, rows_per_shard=4)
    assert len(build_shards(source, folder, num_workers=0, rows_per_shard=4)) == 12


BUILD = (
    "import sys; from pathlib import Path; from whisper_lightning.data.build import build_shards; "
    "build_shards(Path(sys.argv[1]), Path(sys.argv[2]), num_workers=int(sys.argv[3]), rows_per_shard=20)"
)


@pytest.mark.slow
def test_two_builds_of_one_folder_at_a_time(tmp_path: Path) -> None:
    source, folder = make_corpus(tmp_path / "data", 1200), tmp_path / "shards"
    command = [sys.executable, "-c", BUILD, str(source), str(folder), "0"]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate()[1][-300:] for process in both if process.wait()] == []
    assert len(ShardIndex.open(folder)) == 1197
    assert not list(folder.glob("*.new"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends Ctrl-C otherwise")
def test_ctrl_c_does_not_wait_for_the_shards_in_work(tmp_path: Path) -> None:
    source, folder = make_corpus(tmp_path / "data", 6000), tmp_path / "shards"
    code = BUILD.replace("rows_per_shard=20", "rows_per_shard=3000")
    process = subprocess.Popen([sys.executable, "-c", code, str(source), str(folder), "2"])
    while len(list(folder.glob("*.new"))) < 2 and process.poll() is None:
        time.sleep(0.05)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) != 0
    assert time.monotonic() - start < 3
    assert not list(folder.glob("*.tar*"))


def test_index_goes_to_a_worker_as_its_folder(tmp_path: Path) -> None:
    index = build_shards(make_corpus(tmp_path / "data"), tmp_path / "shards", num_workers=0)
    payload = pickle.dumps(index)
    assert len(payload) < 1000
    assert pickle.loads(payload).read(3).key == index.read(3).key  # noqa: S301


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a folder of shards"):
        ShardIndex.open(tmp_path)


@pytest.mark.slow
def test_a_killed_build_goes_on(tmp_path: Path) -> None:
    source, folder = make_corpus(tmp_path / "data", 1200), tmp_path / "shards"
    process = subprocess.Popen([sys.executable, "-c", BUILD, str(source), str(folder), "0"])
    while len(list(folder.glob("*.json"))) < 5 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    assert 5 <= len(finished) < 60
    assert not (folder / "index.json").exists()
    index = build_shards(source, folder, num_workers=0, rows_per_shard=20)
    assert len(index) == 1197
    assert all((folder / name).stat().st_mtime_ns == time_ns for name, time_ns in list(finished.items())[:5])
    assert not list(folder.glob("*.new"))
