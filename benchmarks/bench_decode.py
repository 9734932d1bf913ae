"""Time an evaluation: the same clips decoded by us, by transformers and by faster-whisper, greedily and with beams.

Every program gets 16 clips at a time, each followed by silence up to 30 s (ours computes few positions of it). Prints a
Markdown table: normalized WER, its paired difference from our greedy search with the 95 % interval, clips with the same
text, seconds per clip, and how many times as long that is.

    python -m benchmarks.bench_decode whisper-base speech/test.csv --num_clips 64
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from whisper_lightning.audio.constants import SAMPLE_RATE_HZ
from whisper_lightning.data.generations import open_csv
from whisper_lightning.export import ct2
from whisper_lightning.export.decoding import Decoding
from whisper_lightning.model.load import load
from whisper_lightning.model.module import WhisperModule
from whisper_lightning.scoring.edits import EditCounts, word_edits
from whisper_lightning.scoring.intervals import paired_difference
from whisper_lightning.scoring.normalize import normalize
from whisper_lightning.terminal import read_command_line

BATCH_SIZE = 16
PROGRAMS = ["ours", "transformers", "faster-whisper float32", "faster-whisper int8"]


@torch.no_grad()
def ours(module: WhisperModule, decoding: Decoding, num_beams: int, clips: list[torch.Tensor]) -> list[str]:
    """Decode as an evaluation does."""
    module.whisper.generation_config.num_beams = num_beams
    return module.transcribe(clips, batch_size=len(clips), max_new_tokens=decoding.max_tokens)


@torch.no_grad()
def with_transformers(
    module: WhisperModule, decoding: Decoding, num_beams: int, clips: list[torch.Tensor]
) -> list[str]:
    """Decode with `generate`, features included."""
    extract = module.processor.feature_extractor
    padded = [decoding.pad(clip).numpy() for clip in clips]
    features = extract(padded, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt").input_features
    rows = module.whisper.generate(features, num_beams=num_beams, max_new_tokens=decoding.max_tokens)
    return [module.text(row) for row in rows.tolist()]


def with_faster_whisper(model: Any, decoding: Decoding, num_beams: int, clips: list[torch.Tensor]) -> list[str]:
    """Decode with the batched pipeline, a clip in each of its windows."""
    from faster_whisper import BatchedInferencePipeline

    waveform = torch.cat([decoding.pad(clip) for clip in clips]).numpy()
    seconds = decoding.num_samples / SAMPLE_RATE_HZ
    segments, _ = BatchedInferencePipeline(model).transcribe(
        waveform,
        language=decoding.language,
        task=decoding.task,
        beam_size=num_beams,
        suppress_tokens=list(decoding.suppress_tokens),
        batch_size=len(clips),
        clip_timestamps=[{"start": i * seconds, "end": (i + 1) * seconds} for i in range(len(clips))],
    )
    texts = [""] * len(clips)
    for segment in segments:
        texts[round(segment.seek / 100 / seconds)] += segment.text
    return [text.strip() for text in texts]


def main(args: list[str] | None = None) -> int:
    """Decode in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a published Whisper, or a run")
    parser.add_argument("csv", type=Path, help="clips and their sentences")
    parser.add_argument("--num_clips", type=int, default=64)
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--programs", nargs="+", default=PROGRAMS, choices=PROGRAMS, help="the first is compared with")
    given = read_command_line(parser, args)
    from faster_whisper import WhisperModel

    module, index = load(given.model), open_csv(given.csv)
    decoding = Decoding.of(module)
    clips = [index.read(int(i)) for i in np.arange(len(index))[:: max(1, len(index) // given.num_clips)]]
    clips = clips[: given.num_clips]
    with TemporaryDirectory() as scratch:
        ct2.write(module, Path(scratch) / "ct2", "float32")
        models = {kind: WhisperModel(f"{scratch}/ct2", device="cpu", compute_type=kind) for kind in ("float32", "int8")}
    decoders: dict[str, Callable[..., list[str]]] = {
        "ours": partial(ours, module, decoding),
        "transformers": partial(with_transformers, module, decoding),
        **{f"faster-whisper {kind}": partial(with_faster_whisper, model, decoding) for kind, model in models.items()},
    }
    texts: dict[str, list[str]] = {}
    seconds: dict[str, float] = {}
    names = {
        f"{name}, {f'{beams} beams' if beams > 1 else 'greedy'}": (name, beams)
        for beams in given.beams
        for name in given.programs
    }
    for name, (decoder, beams) in names.items():  # a batch of each first, which reads what is loaded late
        decoders[decoder](beams, [clip.waveform for clip in clips[:2]])
        texts[name], seconds[name] = [], 0.0
    for start in tqdm(range(0, len(clips), BATCH_SIZE), desc="batches"):
        batch = [clip.waveform for clip in clips[start : start + BATCH_SIZE]]
        for name, (decoder, beams) in names.items():
            began = time.perf_counter()
            texts[name] += decoders[decoder](beams, batch)
            seconds[name] += time.perf_counter() - began
    first = next(iter(names))
    print("| | WER, % | difference | same text | s per clip | |")
    print("|---|---|---|---|---|---|")
    edits = {name: _edits([clip.sentence for clip in clips], heard) for name, heard in texts.items()}
    lengths = [each.reference_length for each in edits[first]]
    for name in names:
        heard, reference = ([each.errors for each in edits[each_name]] for each_name in (name, first))
        difference = paired_difference(heard, reference, lengths)
        same = sum(a == b for a, b in zip(texts[name], texts[first], strict=True))
        wer = 100 * sum(each.errors for each in edits[name]) / sum(lengths)
        figures = f"{wer:.2f} | {difference.write()} | {same}/{len(clips)} | {seconds[name] / len(clips):.3f}"
        print(f"| {name} | {figures} | {seconds[name] / seconds[first]:.1f}× |")
    return 0


def _edits(sentences: list[str], texts: list[str]) -> list[EditCounts]:
    return [word_edits(normalize(a), normalize(b)) for a, b in zip(sentences, texts, strict=True)]


if __name__ == "__main__":
    sys.exit(main())
