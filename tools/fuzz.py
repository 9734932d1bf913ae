"""Damage tables, audio, shards, checkpoints and configurations at random: each is read right or refused, by name.

python -m tools.fuzz --seconds 600

A case is a kind and a seed: `--kind audio --seed 17 --cases 1` tries one again. What has crashed once is kept, mended,
in tests/test_fuzz.py.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import av
import numpy as np
import soundfile
import torch

from whisper_lightning.audio.constants import MAX_SECONDS, SAMPLE_RATE_HZ
from whisper_lightning.audio.decoders import AudioError
from whisper_lightning.audio.read import load_audio
from whisper_lightning.cli import main as command_line
from whisper_lightning.data.build import build_shards
from whisper_lightning.data.manifest import read_manifest
from whisper_lightning.data.shards import ShardIndex
from whisper_lightning.errors import UserError
from whisper_lightning.files import read_checkpoint, write_checkpoint
from whisper_lightning.terminal import read_command_line

ROOT = Path(__file__).parents[1]
CASES = 50
"""Cases of one process, so that a crash is near its start and memory that leaks is seen."""
CASE_SECONDS = 20
EXTREMES = (b"\0" * 4, b"\xff" * 4, b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\x01\0\0\0", b"\xff" * 8)
CHARACTERS = (
    *(b'"', b'""', b",", b";", b"\t", b"\n", b"\r", b"\r\n", b"\\", b"'", b"\0", b"\x1b[2J", b"\xff", b"\xc3", b"<"),
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"sep=;\n", b"audio", b"sentence", b"pipe:ls", b"https://a/b", b"../", b"<|0.00|>"),
    *(b"a" * 200_000, *(character.encode() for character in "\u200b\u2028\u0301\U0001f600")),
)
NOTATION = (
    *(b"{", b"}", b"[", b"]", b":", b"- ", b"&a ", b"*a", b"null", b"true", b"-1", b"1e999", b"NaN", b"~", b"0x10"),
    *(b"!!python/object:os.x {}", b"class_path: os.system", b"\n", b"  ", b"'", b'"', b"\xff", b"9" * 400),
)
FORMS = (
    *(("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "PCM_24"), ("RF64", "PCM_16"), ("W64", "PCM_16"), ("AU", "PCM_16")),
    *(("AIFF", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")),
)
CONFIGURATION = b"""
trainer:
  max_steps: 100
  precision: 32-true
model:
  learning_rate: 1e-5
  language: es
data:
  val: 0.1
"""


def mutate(content: bytes, draw: np.random.Generator, words: tuple[bytes, ...]) -> bytes:
    """Change a file in one to four places; it may come out as it was."""
    data = bytearray(content)
    for _ in range(draw.integers(1, 5)):
        at, length = int(draw.integers(0, len(data) + 1)), int(draw.geometric(0.02))
        match draw.integers(0, 7):
            case 0 if data:
                data[min(at, len(data) - 1)] ^= 1 << int(draw.integers(0, 8))
            case 1:
                data[at : at + length] = draw.bytes(length)
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[at // 2 : at // 2 + length]
            case 4:
                data[at:at] = words[draw.integers(0, len(words))]
            case 5:
                word = words[draw.integers(0, len(words))]
                data[at : at + len(word)] = word
            case 6 if draw.random() < 0.2:
                del data[at:]
    return bytes(data)


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    """Make `(N,)` of something that is not silent."""
    return (0.3 * np.random.default_rng(seed).standard_normal(int(seconds * SAMPLE_RATE_HZ))).astype(np.float32)


def _tables(folder: Path, draw: np.random.Generator) -> None:
    """Rows come in order, and a sentence that is used is one line without control characters but tabs."""
    sentences = [f'dijo: «hola, "{i}"»; ¿sí?' for i in range(12)]
    rows = [("audio", "sentence", "age"), *((f"clips/{i}.wav", sentence, "9") for i, sentence in enumerate(sentences))]
    separator = (",", ";", "\t")[draw.integers(0, 3)]
    quoted = [separator.join(f'"{field.replace(chr(34), chr(34) * 2)}"' for field in row) for row in rows]
    plain = [separator.join(field.replace(separator, " ").replace('"', "") for field in row) for row in rows]
    text = "\n".join(quoted if draw.random() < 0.5 else plain) + "\n"
    (folder / "table.csv").write_bytes(mutate(text.encode(), draw, CHARACTERS))
    number = 0
    for row in read_manifest(folder / "table.csv"):
        assert row.row > number, f"row {row.row} after {number}"
        number = row.row
        odd = [c for c in row.sentence if unicodedata.category(c) in ("Cc", "Zl", "Zp") and c != "\t"]
        assert row.reason or not odd, row


def _audio(folder: Path, draw: np.random.Generator) -> None:
    """What is accepted is a finite mono waveform of at most 30 s."""
    form = int(draw.integers(0, len(FORMS) + 1))
    buffer = io.BytesIO()
    if form < len(FORMS):
        kind, subtype = FORMS[form]
        soundfile.write(buffer, speech(0.7), SAMPLE_RATE_HZ, format=kind, subtype=subtype)
    else:
        kind = "m4a"
        with av.open(buffer, "w", format="mp4") as container:
            stream = container.add_stream("aac", rate=SAMPLE_RATE_HZ, layout="mono")
            frame = av.AudioFrame.from_ndarray(speech(0.7)[None], format="fltp", layout="mono")
            frame.rate = SAMPLE_RATE_HZ
            for packet in (*stream.encode(frame), *stream.encode(None)):
                container.mux(packet)
    path = folder / f"clip.{kind.lower()}"
    path.write_bytes(mutate(buffer.getvalue(), draw, EXTREMES))
    try:
        waveform = load_audio(path)
    except AudioError:
        return
    assert waveform.dtype == torch.float32 and waveform.ndim == 1  # noqa: PT018
    assert 0 < len(waveform) <= MAX_SECONDS * SAMPLE_RATE_HZ + 1
    assert bool(torch.isfinite(waveform).all())


def _shards(folder: Path, draw: np.random.Generator) -> None:
    """An utterance is read as it was written, or the folder is refused."""
    whole = folder.parent / "whole"
    if not (whole / "shards" / "index.json").exists():
        whole.mkdir(exist_ok=True)
        for i in range(6):
            soundfile.write(whole / f"{i}.wav", speech(0.3, i), SAMPLE_RATE_HZ)
        lines = [f"{i}.wav,frase número {i}\n" for i in range(6)] + ["absent.wav,nada\n"]
        (whole / "table.csv").write_text("audio,sentence\n" + "".join(lines), encoding="utf-8")
        build_shards(whole / "table.csv", whole / "shards", num_workers=0, rows_per_shard=4)
    shutil.copytree(whole / "shards", folder / "shards")
    paths = sorted(path for path in (folder / "shards").iterdir() if path.is_file())
    path = paths[draw.integers(0, len(paths))]
    path.write_bytes(mutate(path.read_bytes(), draw, EXTREMES + NOTATION))
    expected = ShardIndex.open(whole / "shards")
    found = ShardIndex.open(folder / "shards")
    assert found.rejected() == expected.rejected()
    for i in range(len(found)):
        ours, theirs = found.read(i), expected.read(i)
        assert ours._replace(waveform=theirs.waveform) == theirs, f"{path.name}: {ours}"
        assert torch.equal(ours.waveform, theirs.waveform), path.name


def _checkpoints(folder: Path, draw: np.random.Generator) -> None:
    """A checkpoint is what was saved, or refused."""
    state = {"state_dict": {"a": torch.arange(300.0), "b": torch.ones(2, 3)}, "global_step": 7, "names": ["ñ"] * 9}
    path = folder / "last.ckpt"
    write_checkpoint(state, path)
    path.write_bytes(mutate(path.read_bytes(), draw, EXTREMES))
    found = read_checkpoint(path)
    assert found["global_step"] == 7 and found["names"] == state["names"]  # noqa: PT018
    assert all(torch.equal(found["state_dict"][name], value) for name, value in state["state_dict"].items())  # type: ignore[attr-defined]


def _configurations(folder: Path, draw: np.random.Generator) -> None:
    """A configuration is taken, or refused in lines without a traceback."""
    path = folder / "mine.yaml"
    path.write_bytes(mutate(CONFIGURATION, draw, NOTATION))
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as error:
        try:
            code = command_line(["fit", f"--config={path}", "--print_config"])
        except SystemExit as end:
            code = int(end.code or 0)
    said = out.getvalue() + error.getvalue()
    assert code in (0, 2), f"exit {code}: {said}"
    assert "Traceback" not in said


KINDS: dict[str, Callable[[Path, np.random.Generator], None]] = {
    "tables": _tables,
    "audio": _audio,
    "shards": _shards,
    "checkpoints": _checkpoints,
    "configurations": _configurations,
}


def attempt(kind: str, seed: int, folder: Path) -> None:
    """Try one case in a folder that is new and is removed afterwards.

    Raises:
        Exception: It was neither read right nor refused by name.
    """
    case = folder / "case"
    case.mkdir()
    try:
        KINDS[kind](case, np.random.default_rng([seed, *kind.encode()]))
    except UserError as refused:
        if "\n" in str(refused):
            raise
    finally:
        shutil.rmtree(case)


def main() -> int:
    """Try cases in processes of their own until the time is over; 1 where one has failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--kind", choices=KINDS, help="one of them alone")
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--cases", type=int, help="so many in this process, instead of a time")
    options = read_command_line(parser)
    if options.cases is not None:
        with tempfile.TemporaryDirectory() as folder:
            for seed in range(options.seed, options.seed + options.cases):
                print(seed, flush=True)
                attempt(options.kind, seed, Path(folder))
        return 0
    end = time.monotonic() + options.seconds
    seeds = dict.fromkeys([options.kind] if options.kind else KINDS, options.seed)
    failed = 0
    while time.monotonic() < end:
        for kind, seed in seeds.items():
            last, error = _run(kind, seed)
            seeds[kind] = last + 1
            if error:
                failed += 1
                print(f"{kind}, seed {last}: {error}", flush=True)
    print(", ".join(f"{last - options.seed} {kind}" for kind, last in seeds.items()), f"tried, {failed} failed")
    return int(failed > 0)


def _run(kind: str, seed: int) -> tuple[int, str]:
    """Try cases until one fails; return the last seed and what was wrong with it."""
    command = [sys.executable, "-m", "tools.fuzz", "--kind", kind, "--seed", str(seed), "--cases", str(CASES)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", timeout=CASES * CASE_SECONDS, cwd=ROOT
        )
    except subprocess.TimeoutExpired as expired:
        tried = (expired.stdout or b"").decode().split()
        return int(tried[-1]) if tried else seed, "takes for ever"
    last = int(done.stdout.split()[-1])
    return last, (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1] if done.returncode else ""


if __name__ == "__main__":
    sys.exit(main())
