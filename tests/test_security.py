"""What somebody else may write into a CSV, an index, a shard or a configuration runs nothing and leads nowhere."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.conftest import copy_corpus, one_error, quick_arguments
from tests.faulty_server import Faults, serve
from tests.test_shards import make_corpus
from whisper_lightning.cli import main
from whisper_lightning.data import transfer
from whisper_lightning.data.build import build_shards
from whisper_lightning.data.format import RECORD, RECORDS, json_offset
from whisper_lightning.data.remote import RemoteFolder
from whisper_lightning.data.shards import ShardIndex
from whisper_lightning.data.transfer import is_remote
from whisper_lightning.errors import UserError

CANARY = "pipe:touch canary"


@pytest.fixture(autouse=True)
def cage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, with what makes webdataset rewrite harmless addresses to commands."""
    monkeypatch.setenv("GOPEN_REWRITE", "https://=pipe:touch canary #;http://=pipe:touch canary #")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(transfer, "BACKOFF_SECONDS", 0.001)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def few_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_corpus(tmp_path_factory.mktemp("clips") / "corpus", 4, 2)


@pytest.mark.parametrize(
    "option",
    [
        "data.train",
        "data.val",
        "data.test",
        "data.predict",
        "data.audio_root",
        "data.cache_dir",
        "model.checkpoint",
    ],
)
def test_a_command_in_an_option_is_refused(
    option: str, few_clips: Path, cage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*quick_arguments(few_clips, cage / "run"), f"--{option}={CANARY}"]) == 2
    error = one_error(capsys)
    assert error.startswith(f"error: {option}: ")
    assert re.search("is not read|is not a local path|neither a folder nor a hub name", error)
    assert CANARY in error
    assert not list(cage.rglob("canary*"))


def test_a_command_in_a_configuration_is_refused(
    few_clips: Path, cage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cage / "theirs.yaml").write_text(f"data:\n  train: '{CANARY}'\n", encoding="utf-8")
    arguments = [a for a in quick_arguments(few_clips, cage / "run") if not a.startswith("--data.train")]
    assert main([*arguments, "--config=theirs.yaml"]) == 2
    assert one_error(capsys).startswith("error: data.train: ")
    assert main([*arguments, f"--config={CANARY}"]) == 2
    assert one_error(capsys).startswith("error: --config: ")
    assert not list(cage.rglob("canary*"))


@pytest.mark.parametrize(
    "source",
    [
        "ssh://host/shards",
        "sftp://host/shards",
        "ftp://host/shards",
        "file:///etc",
        "local:///etc",
        "memory://shards",
        "reference://x",
        "git://x:y@z",
        "github://a:b@c",
        "hdfs://host/x",
        "jupyter://host/x",
        "data:text/plain,x",
        "simplecache::https://host/x",
        "filecache::s3://bucket/x",
        "zip://x::https://host/y.zip",
        "https://host/x::pipe:touch canary",
        "PIPE:touch canary",
        "https:host/x",
        "https:///x",
        "https://host:port/x",
        "https://[host/x",
        "https://name:password@host/x",
        "https://password@host/x",
        "s3://name:password@bucket/x",
    ],
)
def test_other_addresses_are_refused(source: str) -> None:
    with pytest.raises(UserError, match=r"^data\.train: ") as caught:
        is_remote("data.train", source)
    assert "password@" not in str(caught.value)


def test_the_addresses_that_are_read() -> None:
    for source in (
        "https://host/x",
        "HTTP://127.0.0.1:80/x",
        "s3://b/x",
        "gs://b/x",
        "abfs://b@c/x",
        "hf://datasets/a/b",
    ):
        assert is_remote("data.train", source)
    for source in ("train.csv", "C:\\datos\\train.csv", "d:/datos", "mis datos/año.csv", "/srv/a:b"):
        assert not is_remote("data.train", source)


def test_commands_and_addresses_in_a_csv_are_rejected_rows(cage: Path) -> None:
    clip = make_corpus(cage / "data", 1).parent / "señal 2.wav"
    written = [CANARY, "|touch canary", "https://host/a.wav", "file:///etc/passwd", "concat:a|b", clip.name]
    with (cage / "data" / "theirs.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["audio", "sentence"], *([audio, "hola"] for audio in written)])
    index = build_shards(cage / "data" / "theirs.csv", cage / "shards", num_workers=0)
    reasons = {row.value: row.reason for row in index.rejected()}
    assert reasons == dict.fromkeys(written[:-1], "not a local file") | {"|touch canary": "missing"}
    assert not list(cage.rglob("canary*"))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sound")
    build_shards(make_corpus(root / "data", 6), root / "shards", num_workers=0, rows_per_shard=3)
    return root


@pytest.fixture
def folder(sound: Path, cage: Path) -> Path:
    """Shards that the tests below spoil; `outside.tar` beside the folder is a copy of one."""
    shutil.copytree(sound, cage, dirs_exist_ok=True)
    (cage / "outside.tar").write_bytes((cage / "shards" / "000000.tar").read_bytes())
    return cage / "shards"


def spoil_info(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "index.json"
    info = json.loads(path.read_text(encoding="utf-8"))
    change(info)
    path.write_text(json.dumps(info), encoding="utf-8")


def open_both(folder: Path, cage: Path) -> list[str]:
    """Open a folder locally and from a server; the two messages."""
    messages = []
    with serve(cage) as address:
        for source in (folder, RemoteFolder(f"{address}/shards", cage / "cache", 2**30)):
            with pytest.raises(UserError) as caught:
                ShardIndex.open(source)
            messages.append(str(caught.value))
            assert str(source) in messages[-1]
            assert "\n" not in messages[-1]
    return messages


NAMES = [
    CANARY,
    "../outside.tar",
    "..\\outside.tar",
    "/etc/passwd",
    "C:\\000000.tar",
    "sub/000000.tar",
    "https://host/000000.tar",
    "NUL.tar",
    "000000.tar\n",
    "",
    7,
    None,
]


@pytest.mark.parametrize("name", NAMES)
def test_a_shard_name_leads_nowhere(name: object, folder: Path, cage: Path) -> None:
    spoil_info(folder, lambda info: info["shards"][0].update(name=name))
    for message in open_both(folder, cage):
        assert "lists a shard that cannot be" in message
    assert not list(cage.rglob("canary*"))


@pytest.mark.parametrize(
    "change",
    [
        lambda info: info["shards"][0].update(bytes=-1),
        lambda info: info["shards"][0].update(bytes=10**400),
        lambda info: info["shards"][0].update(bytes=True),
        lambda info: info["shards"][0].update(bytes="512"),
        lambda info: info["shards"][0].update(sha256="../../outside"),
        lambda info: info["shards"][0].pop("sha256"),
        lambda info: info.update(shards={}),
        lambda info: info.update(shards=[]),
        lambda info: info.update(shards=["pipe:touch canary"]),
        lambda info: info.update(num_utterances=2**40),
        lambda info: info.update(version=99),
        lambda info: info["files"][0].update(name="../outside.npy"),
        lambda info: info["files"][0].update(sha256="0" * 64),
        lambda info: info["files"][0].update(bytes=2**52),
        lambda info: info.update(files=5),
    ],
)
def test_an_impossible_index_json(change: Callable[[dict[str, Any]], object], folder: Path, cage: Path) -> None:
    before = {path for path in cage.rglob("*") if "cache" not in path.parts}
    spoil_info(folder, change)
    for message in open_both(folder, cage):
        assert "index.json" in message or "index.npy" in message
    assert {path for path in cage.rglob("*") if "cache" not in path.parts} == before


@pytest.mark.parametrize("content", ["", "[]", "5", "[" * 100_000, '{"version": 1}', "{", "\ud800"])
def test_an_index_json_that_is_none(content: str, folder: Path, cage: Path) -> None:
    (folder / "index.json").write_text(content, encoding="utf-8", errors="surrogatepass")
    open_both(folder, cage)


def save_table(folder: Path, table: np.ndarray | bytes) -> None:
    """Put a table in place with checksums that fit, as an attacker would."""
    path = folder / "index.npy"
    if isinstance(table, bytes):
        path.write_bytes(table)
    else:
        np.save(path, table, allow_pickle=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    spoil_info(folder, lambda info: info["files"][0].update(bytes=path.stat().st_size, sha256=digest))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shard", -1),
        ("shard", 2),
        ("shard", 2**31 - 1),
        ("offset", -1),
        ("offset", 0),
        ("offset", 10**6),
        ("offset", 2**63 - 1),
        ("offset", 2**63 - 600),
        ("flac_bytes", -5),
        ("flac_bytes", 0),
        ("flac_bytes", 2**31 - 1),
        ("json_bytes", -5),
        ("json_bytes", 2**31 - 1),
        ("num_samples", 0),
        ("num_samples", -(2**31)),
        ("num_samples", 2**31 - 1),
        ("text_bytes", -1),
    ],
)
def test_an_impossible_table(field: str, value: int, folder: Path, cage: Path) -> None:
    table = np.load(folder / "index.npy")
    table[field][0] = value
    save_table(folder, table)
    for message in open_both(folder, cage):
        assert "index.npy: utterance 0 lies outside of the shards or has impossible sizes" in message


def header(shape: str) -> bytes:
    text = f"{{'descr': {RECORD.descr!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


class Bomb:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return (os.system, ("touch canary",))


@pytest.mark.parametrize(
    "table",
    [
        b"",
        b"not a table",
        header("(1000000000000,)"),
        header("(4611686018427387904, 4611686018427387904)"),
        header("(18446744073709551616,)"),
        header("(-5,)"),
        header("__import__('os').system('touch canary')"),
        np.array([Bomb()], dtype=object),
        np.zeros((3, 2), RECORD),
        np.zeros(3),
    ],
    ids=["empty", "text", "huge", "overflow", "more", "negative", "code", "pickle", "2-d", "floats"],
)
def test_a_table_that_is_none(table: np.ndarray | bytes, folder: Path, cage: Path) -> None:
    save_table(folder, table)
    for message in open_both(folder, cage):
        assert "index.npy" in message or "not a folder of shards" in message
    assert not list(cage.rglob("canary*"))


def test_an_archive_of_arrays_is_no_table(folder: Path, cage: Path) -> None:
    archive = io.BytesIO()
    np.savez(archive, table=np.load(folder / "index.npy"))
    save_table(folder, archive.getvalue())
    open_both(folder, cage)


def flac(num_samples: int) -> bytes:
    """Silence: a few bytes that decode to as many samples as one likes."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(num_samples, np.float32), 16_000, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def claiming(content: bytes, num_samples: int) -> bytes:
    """Change what a FLAC says its length is: the last 36 bits before the checksum in STREAMINFO."""
    changed = bytearray(content)
    number = (int.from_bytes(changed[21:26], "big") >> 36 << 36) | num_samples
    changed[21:26] = number.to_bytes(5, "big")
    return bytes(changed)


def hostile_shard(folder: Path, members: list[tuple[tarfile.TarInfo, bytes]], num_samples: int) -> None:
    """Write a folder of one shard with one utterance, whose members and claims are as given.

    Of version 1, which has no checksums: an attacker's would be right.
    """
    folder.mkdir()
    with tarfile.open(folder / "000000.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, data in members:
            tar.addfile(member, io.BytesIO(data))
    content = (folder / "000000.tar").read_bytes()
    sound, text = members[0][1], members[-1][1]
    offset = content.index(sound[:4])
    entry = (0, offset, len(sound), len(text), num_samples, 4, 2)
    np.save(folder / "index.npy", np.array([entry], RECORDS[1]))
    shard = {"name": "000000.tar", "bytes": len(content), "sha256": "0" * 64}
    info = {"version": 1, "fingerprint": "x", "num_utterances": 1, "num_rows": 1, "shards": [shard]}
    (folder / "index.json").write_text(json.dumps(info), encoding="utf-8")
    assert content[json_offset(offset, len(sound)) :].startswith(text)


def member(name: str, data: bytes, **changes: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in changes.items():
        setattr(info, key, value)
    return info, data


TEXT = json.dumps({"row": 2, "audio": "../x", "sentence": "hola", "extra": {}}).encode()


def test_odd_members_of_a_tar_are_neither_followed_nor_unpacked(cage: Path) -> None:
    """A tar is read by offset alone; its headers are for others."""
    before = set(cage.rglob("*"))
    hostile_shard(
        cage / "shards",
        [
            member("../../outside.flac", flac(1600), mode=0o4777, uid=0),
            member("/etc/outside.json", TEXT),
        ],
        1600,
    )
    index = ShardIndex.open(cage / "shards")
    assert index.read(0).sentence == "hola"
    assert len(index.read(0).waveform) == 1600
    names = {path.name for path in set(cage.rglob("*")) - before}
    assert names == {"shards", "000000.tar", "index.npy", "index.json"}


def test_a_link_in_a_tar_is_not_followed(cage: Path) -> None:
    (cage / "secret.flac").write_bytes(flac(1600))
    link = member("00000002.flac", b"", type=tarfile.SYMTYPE, linkname=str(cage / "secret.flac"))
    hostile_shard(cage / "shards", [member("a", b"fLaC" + bytes(500)), member("b", TEXT)], 1600)
    # The same place, now a link's header: what stands there is no sound.
    content = (cage / "shards" / "000000.tar").read_bytes()
    header_of_link = link[0].tobuf(tarfile.USTAR_FORMAT)
    (cage / "shards" / "000000.tar").write_bytes(header_of_link + content[512:])
    with pytest.raises(UserError, match=r"000000\.tar: row 2 is damaged"):
        ShardIndex.open(cage / "shards").read(0)


def test_a_size_in_a_tar_header_is_not_believed(cage: Path) -> None:
    """Gigabytes declared in the header: nothing is allocated for them."""
    hostile_shard(cage / "shards", [member("a.flac", flac(1600)), member("a.json", TEXT)], 1600)
    path = cage / "shards" / "000000.tar"
    huge = tarfile.TarInfo("a.flac")
    huge.size = 8 * 2**30 - 1
    path.write_bytes(huge.tobuf(tarfile.USTAR_FORMAT) + path.read_bytes()[512:])
    assert peak_bytes(lambda: ShardIndex.open(cage / "shards").read(0)) < 4 * 2**20


def peak_bytes(action: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("real", [1600, 30_000_000])
@pytest.mark.parametrize("promised", [1600, 480_000])
def test_a_flac_that_claims_gigabytes(real: int, promised: int, cage: Path) -> None:
    """Whether it only says so or holds as many: a second of silence is a few bytes."""
    content = flac(real) if real > 1600 else claiming(flac(real), 2**31)
    assert len(content) < 200_000
    hostile_shard(cage / "shards", [member("a.flac", content), member("a.json", TEXT)], promised)

    def read() -> None:
        with pytest.raises(UserError, match=r"000000\.tar: row 2 is damaged"):
            ShardIndex.open(cage / "shards").read(0)

    assert peak_bytes(read) < 4 * 2**20


@pytest.mark.parametrize("text", [b"[]", b"5", b'{"row": 2}', b'{"row": 3}', b"[" * 60_000, b'{"row": 2, "audio": 1}'])
def test_text_that_is_none(text: bytes, cage: Path) -> None:
    hostile_shard(cage / "shards", [member("a.flac", flac(1600)), member("a.json", text)], 1600)
    with pytest.raises(UserError, match=r"000000\.tar: row 2 is damaged"):
        ShardIndex.open(cage / "shards").read(0)


def test_a_list_of_rejected_rows_that_is_none(folder: Path) -> None:
    (folder / "rejected.csv").write_text("row,value,reason,detail\nuno,a,b,c\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"rejected\.csv: cannot be read"):
        ShardIndex.open(folder).rejected()


def test_folders_without_sums_are_read_here_and_refused_from_afar(folder: Path, cage: Path) -> None:
    """Builds before the sums were introduced."""
    spoil_info(folder, lambda info: info.pop("files"))
    assert len(ShardIndex.open(folder)) > 0
    with serve(cage, Faults()) as address, pytest.raises(UserError, match=r"index\.json: .*whisper-lightning shards"):
        ShardIndex.open(RemoteFolder(f"{address}/shards", cage / "cache", 2**30))
    with pytest.raises(UserError, match=r"delete its index\.json to have it built anew"):
        build_shards(cage / "data" / "train.csv", folder, num_workers=0, rows_per_shard=3)
    (folder / "index.json").unlink()
    index = build_shards(cage / "data" / "train.csv", folder, num_workers=0, rows_per_shard=3)
    assert [file["name"] for file in index.info["files"]] == ["index.npy", "rejected.csv"]
