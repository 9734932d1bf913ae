"""Checkpoint files survive kills at any moment, full disks and a TMPDIR elsewhere; damaged ones are never used."""

import os
import random
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import one_error
from tests.record import CONTEXT, read, run
from tests.test_resume import arguments, differences, interrupt, material, record
from whisper_lightning.cli import main
from whisper_lightning.errors import UserError
from whisper_lightning.files import find_damage, find_whole, read_checkpoint, write_checkpoint
from whisper_lightning.model.load import load

__all__ = ["material"]  # the fixture

OTHER = Path("/dev/shm")
MIB = 2**20


def save_forever(path: Path, temporary: str, number: int) -> None:
    os.environ["TMPDIR"] = temporary
    while True:
        number += 1
        write_checkpoint({"number": number, "state": [torch.full((100_000,), number) for _ in range(8)]}, path)


def modified_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # also between two renamings
        return 0


@pytest.mark.slow
@pytest.mark.skipif(not OTHER.is_dir(), reason="there is no second file system")
@pytest.mark.parametrize("place", ["TMPDIR on another file system", "checkpoints on another file system"])
@pytest.mark.parametrize("cuts", [20])
def test_a_kill_leaves_a_whole_checkpoint(place: str, cuts: int, tmp_path: Path) -> None:
    """Kills until so many fell into a save, which depends on how busy the machine is."""
    other = OTHER / f"whisper-lightning-test-{os.getpid()}"
    other.mkdir()
    folder, temporary = (tmp_path, other) if place.startswith("TMPDIR") else (other, tmp_path)
    path, draw, number, cut = folder / "last.ckpt", random.Random(place), 0, 0
    try:
        while cut < cuts:
            process = CONTEXT.Process(target=save_forever, args=(path, str(temporary), number))
            process.start()
            before = modified_ns(path)
            while modified_ns(path) in (0, before):
                assert process.is_alive()
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 0.03))
            process.kill()
            process.join()
            whole = find_whole(path)
            assert whole is not None
            checkpoint = torch.load(whole, weights_only=True)
            assert checkpoint["number"] > number
            number = checkpoint["number"]
            assert all(bool((part == number).all()) for part in checkpoint["state"])
            cut += path.with_name("last.ckpt.new").exists()
        assert list(temporary.iterdir()) == [] or folder == other
        names = {each.name for each in folder.iterdir()} - {other.name}
        assert names <= {"last.ckpt", "last.ckpt.new", "previous.ckpt"}
    finally:
        for each in other.iterdir():
            each.unlink()
        other.rmdir()


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """A checkpoint, number 2, with the one before it, number 1; the path of the first."""
    path = tmp_path / "last.ckpt"
    for number in (1, 2):
        write_checkpoint({"number": number, "state_dict": {"weight": torch.full((40, 25), number)}}, path)
    return path


def test_every_bit_counts(pair: Path) -> None:
    """Wherever a bit is flipped or the file is cut, it is noticed; nothing of it is used, the one before is."""
    content, draw = pair.read_bytes(), random.Random(0)
    places = [draw.randrange(8 * len(content)) for _ in range(200)] + [8 * k for k in range(-100, 0)]
    for place in places:
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        pair.write_bytes(damaged)
        assert find_damage(pair), f"bit {place}"
    for length in (0, 1, 72, 73, 1000, len(content) - 1):
        pair.write_bytes(content[:length])
        assert find_damage(pair), f"cut to {length} bytes"
    whole = find_whole(pair)
    assert whole == pair.with_name("previous.ckpt")
    assert read_checkpoint(whole)["number"] == 1
    with pytest.raises(UserError, match=r"last.ckpt has no checksum .* The one before it is whole: .*previous.ckpt"):
        read_checkpoint(pair)
    pair.write_bytes(content)
    assert find_whole(pair) == pair
    assert torch.load(pair, weights_only=True)["number"] == 2
    assert zipfile.ZipFile(pair).testzip() is None, "a plain archive for others"


def test_a_kill_between_the_two_renamings(pair: Path) -> None:
    pair.replace(pair.with_name("previous.ckpt"))
    assert find_whole(pair) == pair.with_name("previous.ckpt")
    pair.with_name("previous.ckpt").unlink()
    assert find_whole(pair) is None


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 2, len(content) // 2 + 50):
        content[place] ^= 255
    path.write_bytes(content)


SIX_STEPS = ["--trainer.max_steps=6", "--trainer.val_check_interval=6"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.fixture(scope="module")
def interrupted(material: Path) -> tuple[Path, Path]:
    """A run that was not interrupted, and one that was killed at its fifth batch, with checkpoints at steps 2 and 4."""
    straight, broken = material / "straight", material / "broken"
    interrupt(material, straight, SIX_STEPS, [])
    assert run([*arguments(material, broken, SIX_STEPS), *record(broken, "train", 5)]) == -9
    return straight, broken


@pytest.mark.slow
@pytest.mark.parametrize("damage", [flip, cut, empty, Path.unlink])
def test_a_damaged_checkpoint_is_not_continued_but_the_one_before_it_is(
    damage: Callable[[Path], None], material: Path, interrupted: tuple[Path, Path], tmp_path: Path
) -> None:
    """In one line; and exactly."""
    straight, broken = interrupted[0], tmp_path / "broken"
    shutil.copytree(interrupted[1], broken)
    shutil.copy(f"{interrupted[1]}.record.0", f"{broken}.record.0")
    damage(broken / "checkpoints" / "last.ckpt")
    command = [
        *arguments(material, broken, SIX_STEPS),
        *record(broken),
    ]
    assert run([*command, "--ckpt_path=last"], {"ERRORS": str(tmp_path / "errors.txt")}) == 0
    lines = (tmp_path / "errors.txt").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if "going on from" in line]
    assert "previous.ckpt, which is whole" in line
    assert "last.ckpt is" in line or "last.ckpt has no checksum" in line
    assert differences(straight, broken) == []


def test_with_no_whole_checkpoint_the_best_model_is_the_remedy(
    material: Path, interrupted: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(interrupted[1], broken)
    for name in ("last.ckpt", "previous.ckpt"):
        flip(broken / "checkpoints" / name)
    command = arguments(material, broken, SIX_STEPS)
    assert main([*command, "--ckpt_path=last"]) == 2
    error = one_error(capsys)
    assert "last.ckpt is damaged" in error
    assert "previous.ckpt is damaged" in error
    assert f"--model.checkpoint {broken / 'best'}" in error


class Evil:
    """A pickle that would run a command."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, ("touch canary",))


STRANGE = {
    "a list": [1, 2],
    "a tensor": torch.zeros(3),
    "no weights": {"epoch": 1},
    "weights that are a list": {"state_dict": [1, 2]},
    "a malicious pickle": {"state_dict": Evil()},
}


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.parametrize("option", ["--ckpt_path", "--model.initial_weights", "load"])
def test_what_is_no_checkpoint_is_one_line(
    name: str, option: str, material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even with a right checksum, which anybody can write."""
    path = tmp_path / "strange.ckpt"
    write_checkpoint(STRANGE[name], path)  # type: ignore[arg-type]
    if option == "load":
        with pytest.raises(UserError, match=r"strange.ckpt is no checkpoint"):
            load(str(path))
    else:
        assert main([*arguments(material, tmp_path / "run", []), f"{option}={path}"]) == 2
        error = one_error(capsys)
        assert "strange.ckpt is no checkpoint" in error
        assert "weights_only" not in error, "no advice to open it all the same"
    assert not Path("canary").exists()


@pytest.mark.parametrize("absent", ["optimizer_states", "loops", "callbacks", "lr_schedulers", "run"])
def test_a_checkpoint_of_weights_alone_is_not_continued(
    absent: str, material: Path, interrupted: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(interrupted[1], broken)
    path = broken / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    write_checkpoint(checkpoint | {absent: type(checkpoint[absent])()}, path)
    saved, config = path.read_bytes(), (broken / "config.yaml").read_bytes()
    command = arguments(material, broken, SIX_STEPS)
    assert main([*command, "--ckpt_path=last"]) == 2
    error = one_error(capsys)
    assert f"last.ckpt has no {absent}" in error
    assert "--model.initial_weights" in error
    assert path.read_bytes() == saved
    assert (broken / "config.yaml").read_bytes() == config


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
