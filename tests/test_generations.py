"""The shards beside a CSV: nobody's change while they are read, and old ones leave when nobody reads them."""

import csv
import logging
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.conftest import one_error, quick_arguments, read_rows
from tests.test_shards import make_corpus, to_version_1
from whisper_lightning.cli import main
from whisper_lightning.data.build import build_shards
from whisper_lightning.data.generations import open_csv, open_folder
from whisper_lightning.data.shards import ShardIndex
from whisper_lightning.errors import UserError


def open_corpus(source: Path, **options: int) -> ShardIndex:
    return open_csv(source, **({"num_workers": 0, "rows_per_shard": 4} | options))  # type: ignore[arg-type]


def builds(source: Path) -> list[str]:
    return sorted(path.name for path in source.with_suffix(".shards").iterdir() if path.is_dir())


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """All that a build has written, and when."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def everything(index: ShardIndex) -> list[tuple[str, str, bytes]]:
    found = [index.read(i) for i in range(len(index))]
    return [(each.audio, each.sentence, each.waveform.numpy().tobytes()) for each in found]


def append(source: Path, line: str) -> None:
    with source.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def test_predict_leaves_the_shards_of_fit_as_they_are(corpus: Path, tmp_path: Path) -> None:
    """How rows are used does not decide how they are stored: `predict` takes those without a sentence too."""
    rows = read_rows(corpus / "train.csv")
    with (corpus / "train.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["audio", "sentence"])
        writer.writerows([row["audio"], "" if i == 3 else row["sentence"]] for i, row in enumerate(rows))
    run = tmp_path / "run"
    assert main([*quick_arguments(corpus, run), "--trainer.max_steps=2"]) == 0
    rejected = [row for row in read_rows(run / "rejected.csv") if row["split"] == "train"]
    assert [(row["row"], row["reason"]) for row in rejected] == [("5", "empty sentence")]
    before = state(corpus / "train.shards")
    arguments = [f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}", f"--data.predict={corpus / 'train.csv'}"]
    assert main(["predict", *quick_arguments(corpus, run)[1:], *arguments]) == 0
    assert state(corpus / "train.shards") == before
    transcripts = read_rows(run / "predictions.csv")
    assert {row["audio"] for row in transcripts} == {row["audio"] for row in rows}


def test_a_reader_keeps_its_build_until_it_is_done(tmp_path: Path) -> None:
    """Also as a worker process that opens the folder later, after the CSV was edited and built again."""
    source = make_corpus(tmp_path / "data")
    reader = open_corpus(source)
    before, worker = everything(reader), pickle.dumps(reader)
    append(source, "señal 2.wav,una más,andaluz")
    other = open_corpus(source)
    assert (len(other), len(before)) == (len(before) + 1, len(before))
    assert everything(pickle.loads(worker)) == everything(reader) == before  # noqa: S301
    assert len(builds(source)) == 2
    del reader
    assert len(open_corpus(source)) == len(other)
    assert builds(source) == [other.folder.name]


READ = (
    "import sys, time; from pathlib import Path; from whisper_lightning.data.generations import open_csv; "
    "index = open_csv(Path(sys.argv[1]), num_workers=0, rows_per_shard=4); print('open', flush=True); time.sleep(100)"
)


@pytest.mark.slow
def test_the_build_of_another_process_stays_until_that_dies(tmp_path: Path) -> None:
    source = make_corpus(tmp_path / "data")
    command = [sys.executable, "-c", READ, str(source)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stdout.readline() == b"open\n"
    append(source, "señal 2.wav,una más,andaluz")
    open_corpus(source)
    assert len(builds(source)) == 2
    process.kill()
    process.communicate()
    index = open_corpus(source)
    assert builds(source) == [index.folder.name]
    assert len(list(index.folder.glob("*.lock"))) == 1, "only that of this process"


def test_a_mended_file_costs_one_shard(tmp_path: Path) -> None:
    source = make_corpus(tmp_path / "data")
    first = open_corpus(source)
    before = state(first.folder)
    soundfile.write(source.parent / "señal 6.wav", 0.1 * np.sin(np.arange(9000)), 16_000)
    second = open_corpus(source)
    assert (len(first), len(second)) == (12, 13)
    assert state(first.folder) == before
    same = [path.name for path in first.folder.glob("*.tar") if path.samefile(second.folder / path.name)]
    assert sorted(same) == ["000000.tar", "000002.tar", "000003.tar"]


def test_audio_that_was_replaced_is_noticed_and_costs_one_shard(tmp_path: Path) -> None:
    """A clip recorded anew under the same name. One that is gone is not missed."""
    source = make_corpus(tmp_path / "data")
    first = open_corpus(source)
    (source.parent / "señal 2.wav").unlink()
    (source.parent / "señal 8.wav").rename(tmp_path / "elsewhere.wav")
    assert open_corpus(source).folder == first.folder
    soundfile.write(source.parent / "señal 8.wav", 0.1 * np.sin(np.arange(9000)), 16_000)
    second = open_corpus(source)
    different = [
        i for i, (old, new) in enumerate(zip(everything(first), everything(second), strict=True)) if old != new
    ]
    assert [second.read(i).audio for i in different] == ["señal 8.wav"]
    same = [path.name for path in first.folder.glob("*.tar") if path.samefile(second.folder / path.name)]
    assert sorted(same) == ["000000.tar", "000002.tar", "000003.tar"]


def test_a_cut_shard_is_built_again_where_its_csv_is(tmp_path: Path) -> None:
    source = make_corpus(tmp_path / "data")
    first = open_corpus(source)
    whole = everything(first)
    shard = first.folder / "000002.tar"
    shard.write_bytes(shard.read_bytes()[:-600])
    assert everything(open_corpus(source)) == whole


@pytest.mark.parametrize("content", ["[]", "5", "{", "[" * 100_000, '{"fingerprint": 1, "files": 2}'])
@pytest.mark.parametrize("name", ["index.json", "000001.json"])
def test_an_index_or_a_record_that_is_none_is_built_again(name: str, content: str, tmp_path: Path) -> None:
    source = make_corpus(tmp_path / "data", 6)
    first = open_corpus(source)
    before = everything(first)
    (first.folder / name).write_text(content, encoding="utf-8")
    (first.folder / "index.json").write_text(content, encoding="utf-8")
    assert everything(open_corpus(source)) == before


def test_the_folder_beside_the_csv_and_one_build_can_be_named(tmp_path: Path) -> None:
    source = make_corpus(tmp_path / "data")
    old = open_corpus(source)
    append(source, "señal 2.wav,una más,andaluz")
    new = open_corpus(source)
    home = source.with_suffix(".shards")
    assert everything(open_folder(home)) == everything(new)
    named = open_folder(old.folder)
    del old
    assert open_corpus(source).folder == new.folder
    assert len(everything(named)) == len(new) - 1, "held while it is read"


def test_shards_of_an_older_version_are_left_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They stood in the folder itself; somebody may have given that as `data.train`."""
    source = make_corpus(tmp_path / "data")
    home = source.with_suffix(".shards")
    build_shards(source, home, num_workers=0, rows_per_shard=4)
    to_version_1(home)
    before = state(home)
    with caplog.at_level(logging.INFO):
        index = open_corpus(source)
    assert index.folder.parent == home
    assert f"{home}: the files that are not in a folder there are of an older version; delete them" in caplog.text
    assert state(home) | before == state(home)


def test_shards_made_in_the_folder_itself_are_used(tmp_path: Path) -> None:
    source = make_corpus(tmp_path / "data")
    made = build_shards(source, source.with_suffix(".shards"), num_workers=0, rows_per_shard=4)
    assert open_corpus(source).folder == made.folder
    assert builds(source) == []


def test_a_folder_that_holds_other_shards_is_left_as_it_is(tmp_path: Path) -> None:
    source, folder = make_corpus(tmp_path / "data"), tmp_path / "shards"
    build_shards(source, folder, num_workers=0, rows_per_shard=4)
    before = state(folder)
    append(source, "señal 2.wav,una más,andaluz")
    with pytest.raises(UserError, match="holds other shards"):
        build_shards(source, folder, num_workers=0, rows_per_shard=4)
    assert state(folder) == before
    (folder / "index.json").unlink()
    assert len(build_shards(source, folder, num_workers=0, rows_per_shard=4)) == 13


def test_a_worker_that_finds_other_shards_says_so(tmp_path: Path) -> None:
    """Positions of the old index lead anywhere in the new one."""
    source, folder = make_corpus(tmp_path / "data"), tmp_path / "shards"
    worker = pickle.dumps(build_shards(source, folder, num_workers=0, rows_per_shard=4))
    append(source, "señal 2.wav,una más,andaluz")
    shutil.rmtree(folder)
    build_shards(source, folder, num_workers=0, rows_per_shard=5)
    index = pickle.loads(worker)  # noqa: S301
    with pytest.raises(UserError, match="other shards stand there than when the run began; start it again"):
        index.read(0)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="not a folder of shards"):
        pickle.loads(worker).read(0)  # noqa: S301


@pytest.mark.slow
def test_two_processes_build_once(tmp_path: Path) -> None:
    source = make_corpus(tmp_path / "data", 1200)
    code = READ.replace("time.sleep(100)", "").replace("rows_per_shard=4", "rows_per_shard=20")
    both = [subprocess.Popen([sys.executable, "-c", code, str(source)], stderr=subprocess.PIPE) for _ in range(2)]
    errors = [process.communicate()[1].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert sum("1.20k/1.20k" in error for error in errors) == 1, "one built, the other waited"
    assert len(open_corpus(source, rows_per_shard=20)) == 1198
    assert not list(tmp_path.rglob("*.new"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
def test_a_killed_build_goes_on(tmp_path: Path) -> None:
    source = make_corpus(tmp_path / "data", 1200)
    home = source.with_suffix(".shards")
    process = subprocess.Popen([sys.executable, "-c", READ.replace("=4", "=20"), str(source)])
    while len(list(home.glob("*/*.json"))) < 5 and process.poll() is None:
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = state(home)
    assert not list(home.glob("*/index.json"))
    index = open_corpus(source, rows_per_shard=20)
    assert len(index) == 1198
    kept = [name for name in finished if name.endswith(".tar") and state(home)[name] == finished[name]]
    assert len(kept) >= 4
    assert not list(home.rglob("*.new"))


READ_ONLY = (
    "import sys; from pathlib import Path; from whisper_lightning.data.generations import open_csv\n"
    "for source in sys.argv[1:]:\n"
    "    try: print(len(open_csv(Path(source), num_workers=0, rows_per_shard=4)))\n"
    "    except ValueError as error: print(error)"
)


def test_a_read_only_folder_of_data(tmp_path: Path) -> None:
    """With shards, they are read; without, there is a way out. Root may write wherever modes forbid it, so mount."""
    with_shards, without = make_corpus(tmp_path / "data" / "one"), make_corpus(tmp_path / "data" / "other")
    open_corpus(with_shards)
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    mine = ["unshare", "--mount", "sh", "-c", script, str(tmp_path / "data")]
    if (
        not shutil.which("unshare")
        or subprocess.run([*mine, "true"], check=False, stderr=subprocess.DEVNULL).returncode
    ):
        pytest.skip("nothing can be mounted here")
    command = [*mine, sys.executable, "-c", READ_ONLY, str(with_shards), str(without)]
    read, refused = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, encoding="utf-8", check=True
    ).stdout.splitlines()
    assert read == "12"
    assert refused.startswith(f"{without.with_suffix('.shards')}: cannot write shards (Read-only file system); ")
    assert "whisper-lightning shards CSV FOLDER, and give FOLDER in place of the CSV" in refused


def test_a_missing_csv_is_named_before_any_model_is_looked_for(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Offline, the hub is asked again and again for minutes."""
    (corpus / "test.csv").unlink()
    arguments = [*quick_arguments(corpus, tmp_path / "run"), "--model.checkpoint=openai/whisper-base"]
    assert main(arguments) == 2
    assert "data.val: there is nothing at" in one_error(capsys)
    assert main([*arguments, "--data.val=0.2", f"--data.test={corpus / 'final.csv'}"]) == 2
    assert "data.test: there is nothing at" in one_error(capsys)
