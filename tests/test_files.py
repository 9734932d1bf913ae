"""Checkpoint files survive kills at any moment, full disks and a TMPDIR that is elsewhere."""

import os
import random
import time
from pathlib import Path

import pytest
import torch

from tests.record import CONTEXT, read, run
from tests.test_resume import arguments, differences, interrupt, material, record
from whisper_lightning.callbacks.files import write_checkpoint

__all__ = ["material"]  # the fixture

OTHER = Path("/dev/shm")
MIB = 2**20


def save_forever(path: Path, temporary: str, number: int) -> None:
    os.environ["TMPDIR"] = temporary
    while True:
        number += 1
        write_checkpoint({"number": number, "state": [torch.full((100_000,), number) for _ in range(8)]}, path)


@pytest.mark.skipif(not OTHER.is_dir(), reason="there is no second file system")
@pytest.mark.parametrize("place", ["TMPDIR on another file system", "checkpoints on another file system"])
@pytest.mark.parametrize("kills", [5, pytest.param(45, marks=pytest.mark.slow)])
def test_a_kill_leaves_a_whole_checkpoint(place: str, kills: int, tmp_path: Path) -> None:
    other = OTHER / f"whisper-lightning-test-{os.getpid()}"
    other.mkdir()
    folder, temporary = (tmp_path, other) if place.startswith("TMPDIR") else (other, tmp_path)
    path, draw, number, cut = folder / "last.ckpt", random.Random(place), 0, 0
    try:
        for _ in range(kills):
            process = CONTEXT.Process(target=save_forever, args=(path, str(temporary), number))
            process.start()
            before = path.stat().st_mtime_ns if path.exists() else 0
            while not path.exists() or path.stat().st_mtime_ns == before:
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 0.03))
            process.kill()
            process.join()
            checkpoint = torch.load(path, weights_only=True)
            assert checkpoint["number"] > number
            number = checkpoint["number"]
            assert all(bool((part == number).all()) for part in checkpoint["state"])
            cut += path.with_name("last.ckpt.new").exists()
        assert cut, "no kill fell into a save: the test shows nothing"
        assert list(temporary.iterdir()) == [] or folder == other
        assert {each.name for each in folder.iterdir()} - {other.name} <= {"last.ckpt", "last.ckpt.new"}
    finally:
        for each in other.iterdir():
            each.unlink()
        other.rmdir()


@pytest.mark.slow
@pytest.mark.parametrize("limit_bytes", [MIB // 2, 2 * MIB])
def test_a_full_disk_is_one_line_and_loses_nothing(limit_bytes: int, material: Path, tmp_path: Path) -> None:
    """No file may grow beyond the limit: at 0.5 MiB `best/` does not fit, at 2 MiB the checkpoint does not."""
    straight, broken, errors = tmp_path / "straight", tmp_path / "broken", tmp_path / "errors.txt"
    interrupt(material, straight, [], [])
    assert run([*arguments(material, broken, []), *record(broken, "train", 4)]) == -9
    last = broken / "checkpoints" / "last.ckpt"
    saved = last.read_bytes()
    again = [*arguments(material, broken, []), *record(broken), "--ckpt_path=last"]
    assert run(again, {"LARGEST_FILE_BYTES": str(limit_bytes), "ERRORS": str(errors)}) == 2
    text = errors.read_text(encoding="utf-8")
    assert "Traceback" not in text
    assert len([line for line in text.splitlines() if line.startswith("error: the disk is full")]) == 1
    assert last.read_bytes() == saved
    assert run(again) == 0
    assert differences(straight, broken) == []
    assert len(read(tmp_path / "straight.record.0")) > 8
