"""Remote shards from real servers on loopback: the bytes of the local folder or one clear error, never fewer."""

from __future__ import annotations

import importlib
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
from filelock import FileLock

from tests.conftest import copy_corpus, one_error, quick_arguments
from tests.faulty_server import Faults, serve
from tests.test_shards import contents, make_corpus
from whisper_lightning.addresses import without_keys
from whisper_lightning.cli import main
from whisper_lightning.data import transfer
from whisper_lightning.data.build import build_shards
from whisper_lightning.data.remote import RemoteFolder
from whisper_lightning.data.shards import ShardIndex
from whisper_lightning.errors import UserError

GIB = 2**30


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses, and no proxy on the way to loopback."""
    monkeypatch.setattr(transfer, "BACKOFF_SECONDS", 0.001)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is served: `a/train` and `b/val` have shards of the same names, with other bytes."""
    root = tmp_path_factory.mktemp("published")
    for name, count in (("a/train", 14), ("b/val", 10), ("mi voz/año 1", 6)):
        source = make_corpus(root / "data" / name, count)
        build_shards(source, root / name, num_workers=0, rows_per_shard=4)
    return root


def open_remote(url: str, cache: Path, limit_bytes: int = GIB) -> ShardIndex:
    return ShardIndex.open(RemoteFolder(url, cache, limit_bytes))


def everything(index: ShardIndex) -> list[tuple[object, ...]]:
    utterances = [index.read(i) for i in range(len(index))]
    return [(u.key, u.waveform.numpy().tobytes(), u.sentence, u.audio, u.extra) for u in utterances]


def cached(cache: Path) -> list[Path]:
    return sorted((cache / "shards").glob("*.tar"))


@pytest.mark.parametrize(
    "faults",
    [
        Faults(),
        Faults(drop_after=6000),
        Faults(drop_after=2000, resets=True),
        Faults(unavailable=1),
        Faults(ignores_range=True),
        Faults(drop_after=6000, unavailable=2),
    ],
    ids=["sound", "drops", "resets", "503", "no ranges", "drops and 503"],
)
def test_the_same_utterances_as_from_the_local_folder(faults: Faults, published: Path, tmp_path: Path) -> None:
    local = ShardIndex.open(published / "a/train")
    with serve(published, faults) as address:
        index = open_remote(f"{address}/a/train", tmp_path)
        assert not cached(tmp_path), "shards are downloaded when they are read"
        index.read(0)
        assert len(cached(tmp_path)) == 1
        assert everything(index) == everything(local)
        assert index.rejected() == local.rejected()
        requests = len(faults.asked)
        assert everything(index) == everything(local)
        assert len(faults.asked) == requests, "each shard is downloaded once"
    assert requests < 400
    whole = contents(published / "a/train")
    assert sorted(path.read_bytes() for path in cached(tmp_path)) == sorted(whole.values())
    if faults.drop_after:  # by ranges: nothing arrives twice
        assert all(faults.sent[f"/a/train/{name}"] == len(content) for name, content in whole.items())
        assert max(faults.starts("000000.tar")) > 0


def test_a_download_goes_on_from_a_server_that_ignores_ranges(published: Path, tmp_path: Path) -> None:
    local = ShardIndex.open(published / "a/train")
    part = tmp_path / "shards" / f"{local.shards[0]['sha256']}.part"
    part.parent.mkdir()
    part.write_bytes((published / "a/train/000000.tar").read_bytes()[:5000])
    faults = Faults(ignores_range=True)
    with serve(published, faults) as address:
        assert everything(open_remote(f"{address}/a/train", tmp_path)) == everything(local)
    assert faults.starts("000000.tar") == [5000]


def test_shards_of_the_same_name_do_not_meet(published: Path, tmp_path: Path) -> None:
    with serve(published) as address:
        for name in ("a/train", "b/val", "a/train/", "mi voz/año 1"):
            index = open_remote(f"{address}/{name}?key=secreto", tmp_path)
            assert everything(index) == everything(ShardIndex.open(published / name))
            assert "secreto" not in str(index.remote)


def test_one_altered_byte_is_named_after_a_second_try(published: Path, tmp_path: Path) -> None:
    faults = Faults(altered=700)
    with serve(published, faults) as address:
        index = open_remote(f"{address}/a/train", tmp_path)
        with pytest.raises(UserError, match=rf"{address}/a/train/000000\.tar: its sha256") as caught:
            index.read(0)
        assert faults.starts("000000.tar") == [0, 0]
        assert "\n" not in str(caught.value)
        assert not list((tmp_path / "shards").iterdir())
        faults.altered = None
        assert everything(index) == everything(ShardIndex.open(published / "a/train"))


@pytest.mark.parametrize("ignores_range", [False, True])
def test_a_cut_shard_is_named(ignores_range: bool, published: Path, tmp_path: Path) -> None:
    faults = Faults(missing_bytes=1000, ignores_range=ignores_range)
    with serve(published, faults) as address:
        index = open_remote(f"{address}/a/train", tmp_path)
        why = "given up after 6 attempts" if ignores_range else "shorter than index.json says"
        with pytest.raises(UserError, match=rf"{address}/a/train/000000\.tar: .*{why}"):
            index.read(0)
        assert len(faults.asked) < 15


def test_what_is_not_there_is_named_at_once(published: Path, tmp_path: Path) -> None:
    faults = Faults()
    with serve(published, faults) as address:
        with pytest.raises(UserError, match=rf"{address}/c/index\.json: HTTP Error 404"):
            open_remote(f"{address}/c", tmp_path)
        assert len(faults.asked) == 1
    with pytest.raises(UserError, match=r"index\.json: given up after 6 attempts .*refused.* check the connection"):
        open_remote(f"{address}/a/train", tmp_path)


def test_a_server_that_stays_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "TIMEOUT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UserError, match=r"index\.json: given up after 6 attempts \(.*timed out"):
            open_remote(address, tmp_path)


def test_a_server_that_sends_a_byte_at_a_time(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its pace is shown, and has a floor; what has arrived is kept."""
    monkeypatch.setattr(transfer, "PACE_SECONDS", 0.3)
    monkeypatch.setattr(transfer, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(transfer, "TIMEOUT_SECONDS", 0.2)
    with serve(published, Faults(block_bytes=1, block_seconds=0.02)) as address:
        folder = RemoteFolder(f"{address}/a/train", tmp_path, GIB, min_bytes_per_second=1024)
        with pytest.raises(
            UserError, match=r"index\.json: [3-5]\d\.?\d* bytes a second .*min_kib_per_second \(now 1\)"
        ):
            ShardIndex.open(folder)
    assert "index.json:" in capsys.readouterr().err


def test_an_answer_that_begins_a_byte_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(transfer, "RETRIES", 1)

    def answer(listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with suppress(OSError), connection:
                    for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n":
                        connection.sendall(bytes([byte]))
                        time.sleep(0.05)

    with socket.create_server(("127.0.0.1", 0)) as slow:
        threading.Thread(target=answer, args=(slow,), daemon=True).start()
        with pytest.raises(UserError, match=r"index\.json: given up after 2 attempts \(.*timed out"):
            open_remote(f"http://127.0.0.1:{slow.getsockname()[1]}", tmp_path)
        slow.shutdown(socket.SHUT_RDWR)


def test_an_index_of_a_gibibyte_is_not_read(tmp_path: Path) -> None:
    for name in ("index.json", "index.npy"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(1 << 30)
    with pytest.raises(UserError, match=r"index\.json has 1073741824 bytes"):
        ShardIndex.open(tmp_path)
    big = socket.create_server(("127.0.0.1", 0))
    head = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-0/1073741824\r\nContent-Length: 1\r\n\r\n{"

    def answer() -> None:
        connection, _ = big.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(head)

    with big:
        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(UserError, match=r"index\.json: 1073741824 bytes, which is no list of shards"):
            open_remote(f"http://127.0.0.1:{big.getsockname()[1]}", tmp_path / "cache")


def test_a_server_that_is_down_for_good(published: Path, tmp_path: Path) -> None:
    faults = Faults(unavailable=3)
    with serve(published, faults) as address:
        with pytest.raises(UserError, match=r"index\.json: given up after 6 attempts \(HTTPError: .*503"):
            open_remote(f"{address}/a/train", tmp_path)
        assert len(faults.asked) == 6


def test_redirects_lead_to_http_only(published: Path, tmp_path: Path) -> None:
    with serve(published) as address, serve(published, Faults(redirect=address)) as other:
        assert len(open_remote(f"{other}/a/train", tmp_path)) == 12
    for redirect, why in ((published.as_uri(), "not allowed"), ("ftp://127.0.0.1:9", "unknown url type: ftp")):
        with serve(published, Faults(redirect=redirect)) as other, pytest.raises(UserError, match=why):
            open_remote(f"{other}/a/train", tmp_path)


def test_a_changed_folder_is_not_mixed_with_its_old_shards(tmp_path: Path) -> None:
    source, folder, cache = make_corpus(tmp_path / "data"), tmp_path / "shards", tmp_path / "cache"
    with serve(tmp_path) as address:
        build_shards(source, folder, num_workers=0, rows_per_shard=4)
        before = open_remote(f"{address}/shards", cache)
        assert before.remote is not None
        before.read(0)
        source.write_text(source.read_text(encoding="utf-8").replace("número 2,", "número dos,"), encoding="utf-8")
        (folder / "index.json").unlink()
        build_shards(source, folder, num_workers=0, rows_per_shard=4)
        after = open_remote(f"{address}/shards", cache)
        assert (before.read(0).sentence, after.read(0).sentence) == ("frase número 2", "frase número dos")
        # The old shard has left both places: an error, never the new bytes under the old table.
        before.remote.cached(before.shards[0]).unlink()
        with pytest.raises(UserError, match=r"000000\.tar: (its sha256|is shorter)"):
            before.read(0)


def test_an_index_that_was_altered(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    build_shards(make_corpus(tmp_path / "data"), folder, num_workers=0)
    content = bytearray((folder / "index.npy").read_bytes())
    content[-1] ^= 1  # the row of the last utterance
    (folder / "index.npy").write_bytes(content)
    with serve(tmp_path) as address, pytest.raises(UserError, match=r"index\.npy: its sha256"):
        open_remote(f"{address}/shards", tmp_path / "cache")
    with pytest.raises(UserError, match=r"index\.npy is damaged"):
        ShardIndex.open(folder)


def test_the_cache_keeps_its_bound_and_what_was_used_last(published: Path, tmp_path: Path) -> None:
    sizes = [shard["bytes"] for shard in ShardIndex.open(published / "a/train").shards]
    limit = sizes[0] + sizes[1] + sizes[2]
    with serve(published) as address:
        index = open_remote(f"{address}/a/train", tmp_path, limit)
        paths = [RemoteFolder("", tmp_path, 0).cached(shard) for shard in index.shards]
        shard_of = list(index.table["shard"])
        for shard, age_seconds in ((0, 3000), (1, 2000), (2, 1000)):
            index.read(shard_of.index(shard))
            os.utime(paths[shard], (time.time() - age_seconds,) * 2)
        abandoned = tmp_path / "shards" / f"{'f' * 64}.part"
        abandoned.write_bytes(bytes(100))
        os.utime(abandoned, (1, 1))
        index.read(shard_of.index(0))  # now the one that was used last
        index.read(shard_of.index(3))
        assert [path.exists() for path in paths] == [True, False, sizes[1] >= sizes[3], True]
        assert not abandoned.exists()
        for i in range(len(index)):
            index.read(i)
            assert sum(path.stat().st_size for path in (tmp_path / "shards").iterdir()) <= limit
        assert everything(index) == everything(ShardIndex.open(published / "a/train"))
        with pytest.raises(UserError, match=r"000000\.tar: .* raise data\.cache_gib"):
            open_remote(f"{address}/a/train", tmp_path / "small", sizes[0] - 1).read(0)


def test_a_new_shard_stays_whatever_the_clock_says(published: Path, tmp_path: Path) -> None:
    """Beside a download from the future it is the least recently used; if it left at once, reading would never end."""
    faults = Faults()
    limit = ShardIndex.open(published / "a/train").shards[0]["bytes"]
    part = tmp_path / "shards" / f"{'f' * 64}.part"
    part.parent.mkdir()
    (tmp_path / "locks").mkdir()
    part.write_bytes(bytes(1000))
    os.utime(part, (time.time() + 1e6,) * 2)
    with serve(published, faults) as address, FileLock(tmp_path / "locks" / "ff.lock"):
        open_remote(f"{address}/a/train", tmp_path, limit).read(0)
    assert faults.starts("000000.tar") == [0]
    assert len(cached(tmp_path)) == 1


def test_a_download_under_way_is_not_cleared_away(published: Path, tmp_path: Path) -> None:
    part = tmp_path / "shards" / f"{'f' * 64}.part"
    part.parent.mkdir()
    (tmp_path / "locks").mkdir()
    part.write_bytes(bytes(100))
    os.utime(part, (1, 1))
    limit = max(shard["bytes"] for shard in ShardIndex.open(published / "a/train").shards)
    with serve(published) as address:
        with FileLock(tmp_path / "locks" / "ff.lock"):
            index = open_remote(f"{address}/a/train", tmp_path, limit)
            everything(index)
            assert part.exists()
        everything(index)
        assert not part.exists()


def test_a_shard_that_a_reader_has_open_stays_or_stays_readable(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows refuses to delete an open file: then another one leaves, and nobody notices."""
    index_folder = ShardIndex.open(published / "a/train")
    limit = max(shard["bytes"] for shard in index_folder.shards) * 2

    def unlink(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError("in use")

    with serve(published) as address:
        index = open_remote(f"{address}/a/train", tmp_path, limit)
        monkeypatch.setattr(Path, "unlink", unlink)
        assert everything(index) == everything(index_folder)


def test_a_cached_file_of_another_length_is_downloaded_again(published: Path, tmp_path: Path) -> None:
    with serve(published) as address:
        index = open_remote(f"{address}/a/train", tmp_path)
        index.read(0)
        (path,) = cached(tmp_path)
        path.write_bytes(path.read_bytes()[:1000])
        assert everything(index) == everything(ShardIndex.open(published / "a/train"))


def test_a_cache_that_cannot_be_written(published: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with serve(published) as address, pytest.raises(UserError, match=r"file: cannot store .* data\.cache_dir"):
        open_remote(f"{address}/a/train", tmp_path / "file")


READ = (
    "import sys; from pathlib import Path; from whisper_lightning.data.remote import RemoteFolder; "
    "from whisper_lightning.data.shards import ShardIndex; "
    "index = ShardIndex.open(RemoteFolder(sys.argv[1], Path(sys.argv[2]), 2**30)); "
    "print('open', flush=True); [index.read(i) for i in range(len(index))]; print(len(index))"
)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of half a megabyte."""
    root = tmp_path_factory.mktemp("large")
    build_shards(make_corpus(root / "data", 130), root / "shards", num_workers=0, rows_per_shard=65)
    return root


@pytest.mark.slow
def test_a_killed_download_goes_on_where_it_was(large: Path, tmp_path: Path) -> None:
    faults = Faults(block_seconds=0.05)
    with serve(large, faults) as address:
        command = [sys.executable, "-c", READ, f"{address}/shards", str(tmp_path)]
        process = subprocess.Popen(command)
        kept = 0
        while kept < 100_000 and process.poll() is None:
            kept = max((path.stat().st_size for path in tmp_path.glob("shards/*.part")), default=0)
            time.sleep(0.01)
        process.kill()
        process.wait()
        (part,) = tmp_path.glob("shards/*.part")
        kept = part.stat().st_size
        faults.block_seconds = 0.0
        faults.asked.clear()
        start = time.monotonic()
        index = open_remote(f"{address}/shards", tmp_path)
        assert everything(index) == everything(ShardIndex.open(large / "shards"))
        assert time.monotonic() - start < 5, "waited for the lock of a dead process"
        assert faults.starts("000000.tar") == [kept]
        assert kept >= 100_000


@pytest.mark.slow
def test_two_processes_download_each_shard_once(large: Path, tmp_path: Path) -> None:
    faults = Faults(block_seconds=0.02)
    with serve(large, faults) as address:
        command = [sys.executable, "-c", READ, f"{address}/shards", str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "open\n"
            assert everything(open_remote(f"{address}/shards", tmp_path)) == everything(
                ShardIndex.open(large / "shards")
            )
            assert other.stdout.read() == "128\n"
    for name, content in contents(large / "shards").items():
        assert faults.sent[f"/shards/{name}"] == len(content)
    assert faults.starts("000000.tar") == [0]
    assert faults.starts("index.npy") == [0]


def test_goes_to_a_worker_as_addresses(published: Path, tmp_path: Path) -> None:
    faults = Faults()
    with serve(published, faults) as address:
        index = open_remote(f"{address}/a/train", tmp_path)
        requests = len(faults.asked)
        payload = pickle.dumps(index)
        assert len(payload) < 1000
        copy = pickle.loads(payload)  # noqa: S301
        assert len(faults.asked) == requests, "workers take the index that their run has opened"
        assert everything(copy) == everything(index)


@pytest.fixture
def bucket(published: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 on loopback that holds the published folder."""
    pytest.importorskip("s3fs")
    moto_server = pytest.importorskip("moto.server")
    import boto3

    for key, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{key}", value)
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        client = boto3.client("s3")
        client.create_bucket(Bucket="voces")
        for path in (published / "a/train").iterdir():
            client.upload_file(str(path), "voces", f"a/train/{path.name}")
        yield "s3://voces"
    finally:
        server.stop()


def test_s3(bucket: str, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "RANGE_BYTES", 5000)
    index = open_remote(f"{bucket}/a/train", tmp_path)
    assert everything(index) == everything(ShardIndex.open(published / "a/train"))
    with pytest.raises(UserError, match=r"s3://voces/c/index\.json: .* check the address"):
        open_remote(f"{bucket}/c", tmp_path)


def test_a_package_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = importlib.import_module("fsspec.registry")._registry
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(loaded, "s3", raising=False)  # by another test
    with pytest.raises(UserError, match=r"s3://voces/index\.json: .*; pip install fsspec s3fs$"):
        open_remote("s3://voces", tmp_path)


REFUSED = [
    "https://name:secreto@host/a",
    "ftp://host/a?token=secreto",
    "http://host/a?token=secreto::zip://x",
    "s3://KEY:secreto@bucket/a",
    "https://host:secreto@[/a",
]
SPLITS = (("train", "train"), ("val", "test"))


def losses(run: Path) -> list[float]:
    metrics = pd.read_csv(run / "metrics.csv", float_precision="round_trip")
    return list(metrics["train/loss"].dropna()) + list(metrics["val/loss"].dropna())


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_from_a_bad_server_has_the_losses_of_a_local_one(
    num_workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = copy_corpus(tmp_path / "corpus", 16, 4)
    for name in ("train", "test"):
        build_shards(corpus / f"{name}.csv", tmp_path / "shards" / name, num_workers=0, rows_per_shard=8)
    faults = Faults(drop_after=16_384)
    with serve(tmp_path, faults) as address:
        for run, root in (("local", str(tmp_path)), ("remote", address)):
            arguments = [
                *quick_arguments(corpus, tmp_path / run),
                f"--data.train={root}/shards/train",
                f"--data.val={root}/shards/test",
                f"--data.cache_dir={tmp_path / 'cache'}",
                f"--data.num_workers={num_workers}",
                "--trainer.max_steps=2",
                "--trainer.num_sanity_val_steps=0",
                "--model.max_tokens=4",
            ]
            assert main(arguments) == 0
    assert len(losses(tmp_path / "local")) == 3
    assert losses(tmp_path / "remote") == losses(tmp_path / "local")
    assert max(faults.starts("000000.tar")) > 0
    assert len(cached(tmp_path / "cache")) == 3


def holds(folder: Path, secret: bytes) -> list[str]:
    """Name the files in which a secret can be read."""
    return [path.name for path in folder.rglob("*") if path.is_file() and secret in path.read_bytes()]


@pytest.mark.slow
def test_the_key_of_an_address_is_written_down_nowhere(tmp_path: Path) -> None:
    """Not by wandb either, which stores the command line; and the folder is good to go on with the whole address."""
    corpus = copy_corpus(tmp_path / "corpus", 16, 4)
    for name in ("train", "test"):
        build_shards(corpus / f"{name}.csv", tmp_path / "shards" / name, num_workers=0, rows_per_shard=8)
    run = tmp_path / "run"
    command = [sys.executable, "-m", "whisper_lightning", *quick_arguments(corpus, run), "--wandb.enabled=true"]
    with serve(tmp_path) as address:
        sources = [f"--data.{key}={address}/shards/{name}?token=secreto" for key, name in SPLITS]
        command += [f"--data.cache_dir={tmp_path / 'cache'}", "--trainer.max_steps=2", *sources]
        environment = os.environ | {"WANDB_MODE": "offline"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", check=False)
        assert done.returncode == 0, done.stderr
        assert f"utterances of {address}/shards/test, decoded" in done.stderr
        assert "secreto" not in done.stdout + done.stderr
        assert list(run.glob("wandb/*/run-*.wandb"))
        assert {".wandb", ".log"} <= {Path(name).suffix for name in holds(run, b"shards/test, decoded")}
        assert holds(run, b"secreto") == holds(tmp_path / "cache", b"secreto") == []
        assert "config.yaml" in holds(run, f"{address}/shards/train".encode())
        assert main([*command[3:], "--trainer.max_steps=3", "--ckpt_path=last"]) == 0


@pytest.mark.parametrize("address", REFUSED)
def test_a_refused_address_keeps_its_secret(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config=quickstart.yaml", f"--data.train={address}"]) == 2
    assert "secreto" not in one_error(capsys)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://host/a?token=secreto", "https://host/a"),
        ("https://name:secreto@host:80/a", "https://host:80/a"),
        ("https://name:sec/re@to@host/a", "https://host/a"),
        ("https://host/mi%20voz@casa/a#secreto", "https://host/mi%20voz@casa/a"),
        ("http://host/mi voz/año 1?key=secreto", "http://host/mi voz/año 1"),
        ("s3://AKIA:sec/reto@bucket/a", "s3://bucket/a"),
        ("abfs://container@account/a?sig=secreto", "abfs://container@account/a"),
        ("https://[::1]:80/a", "https://[::1]:80/a"),
        (r"C:\voces\a.csv", r"C:\voces\a.csv"),
    ],
)
def test_what_is_shown_of_an_address(address: str, shown: str) -> None:
    assert without_keys(f"see {address} or '{address}'") == f"see {shown} or '{shown}'"


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_altered_shard_is_one_line_on_the_command_line(
    num_workers: int, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also when a worker finds it, whose exceptions arrive with a traceback in them."""
    with serve(published, Faults(altered=700)) as address:
        arguments = [
            *quick_arguments(tmp_path, tmp_path / "run"),
            f"--data.train={address}/a/train",
            f"--data.val={address}/a/train",
            f"--data.cache_dir={tmp_path / 'cache'}",
            "--data.max_rejected_fraction=0.5",
            f"--data.num_workers={num_workers}",
        ]
        assert main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {address}/a/train/00000")
    assert "upload the folder again" in lines[0]
