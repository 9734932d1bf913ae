"""What sampling the silence behind the speech changes in a model: its next tokens, its transcripts and its gradient.

Clip by clip, which is the hardest case: in a batch the shorter clips have silence of their own. The reference computes
every position in float32. Prints a Markdown table with a row for each number of cells: positions computed behind the
speech; divergence of the next token's distribution (of the reference's transcript), mean and worst; WER, and its
difference with its interval; clips with the same transcript; cosine of the gradient, summed over the clips, and of each
encoder layer's. With --bf16 the same under bfloat16 autocast follows, every position included.

    python -m benchmarks.bench_context whisper-base speech/test.csv --cells 20 40 80
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from whisper_lightning.audio.constants import HOP_LENGTH, SAMPLES_PER_POSITION
from whisper_lightning.audio.features import log_mel
from whisper_lightning.data.format import Utterance
from whisper_lightning.data.generations import open_csv
from whisper_lightning.model.load import load
from whisper_lightning.model.module import WhisperModule
from whisper_lightning.model.tail import Encoded, Tail, encode
from whisper_lightning.model.whisper import decoder_states
from whisper_lightning.scoring.edits import EditCounts, word_edits
from whisper_lightning.scoring.intervals import estimate_rate, paired_difference
from whisper_lightning.scoring.normalize import normalize
from whisper_lightning.terminal import read_command_line

MAX_TOKENS = 100


@dataclass
class Heard:
    """What one way to compute the silence gives, clip by clip.

    Attributes:
        num_positions: Positions computed.
        texts: Transcripts.
        log_probabilities: Of the tokens that follow those of the reference's transcript, `(L, V)` each.
        gradient: Of the loss summed over the clips, by parameter.
    """

    num_positions: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    log_probabilities: list[torch.Tensor] = field(default_factory=list)
    gradient: dict[str, torch.Tensor] = field(default_factory=dict)


def listen(module: WhisperModule, tail: Tail, clips: list[Utterance], tokens: list[list[int]], name: str) -> Heard:
    """Hear every clip; `tokens` has the reference's transcripts, and gets them where it is empty."""
    heard, first = Heard(), not tokens
    module.zero_grad()
    for number, clip in enumerate(tqdm(clips, desc=name, leave=False)):
        waveform = F.pad(clip.waveform, (0, -len(clip.waveform) % SAMPLES_PER_POSITION))[None]
        encoded = _encode(module, tail, waveform)
        labels = torch.tensor([module.encoder.encode(clip.sentence)])
        logits = module.whisper.proj_out(decoder_states(module.whisper, encoded, labels[:, :-1]))
        F.cross_entropy(logits[0].float(), labels[0, 1:], reduction="sum").backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            encoded = _encode(module, tail, waveform)
            said = _decode(module, encoded)
            if first:
                tokens.append(said)
            ids = torch.tensor([[*module.encoder.prompt, *tokens[number]]])
            states = decoder_states(module.whisper, encoded, ids)[0, len(module.encoder.prompt) - 1 :]
            heard.log_probabilities.append(module.whisper.proj_out(states).float().log_softmax(dim=-1))
        heard.num_positions.append(tail.num_positions(tail.num_frames(waveform.shape[1] // HOP_LENGTH)))
        heard.texts.append(module.text(said))
    named = module.whisper.named_parameters()
    heard.gradient = {name: weight.grad.clone() for name, weight in named if weight.grad is not None}
    return heard


def _encode(module: WhisperModule, tail: Tail, waveforms: torch.Tensor) -> Encoded:
    encoder, num_frames = module.whisper.model.encoder, tail.num_frames(waveforms.shape[1] // HOP_LENGTH)
    features = log_mel(waveforms, module.get_buffer("filters"), num_frames, module.full_frames)
    return encode(encoder, features, tail.sample(encoder, num_frames))


def _decode(module: WhisperModule, encoded: Encoded) -> list[int]:
    """Return the most probable token after token of one clip."""
    config = module.whisper.generation_config
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    inputs, said = torch.tensor([list(module.encoder.prompt)]), list[int]()
    limit = min(MAX_TOKENS, module.whisper.config.max_target_positions - len(module.encoder.prompt))
    while len(said) < limit:
        logits = module.whisper.proj_out(decoder_states(module.whisper, encoded, inputs, cache)[0, -1])
        if not said and config.begin_suppress_tokens:
            logits[config.begin_suppress_tokens] = -torch.inf
        token = int(logits.argmax())
        if token == config.eos_token_id:
            break
        said.append(token)
        inputs = torch.tensor([[token]])
    return said


def row(name: str, heard: Heard, exact: Heard, clips: list[Utterance]) -> str:
    """Compare with the reference."""
    pairs = zip(exact.log_probabilities, heard.log_probabilities, strict=True)
    divergences = [float((p.exp() * (p - q)).sum(dim=-1).mean()) for p, q in pairs]
    speech = [-(-len(clip.waveform) // SAMPLES_PER_POSITION) for clip in clips]
    behind = float(np.mean(np.subtract(heard.num_positions, speech)))
    same = sum(a == b for a, b in zip(heard.texts, exact.texts, strict=True))
    edits, reference = (_edits(each, clips) for each in (heard, exact))
    errors, lengths = [each.errors for each in edits], [each.reference_length for each in edits]
    wer = estimate_rate(errors, lengths).value
    difference = paired_difference(errors, [each.errors for each in reference], lengths)
    layers = sorted({int(each.split(".")[3]) for each in exact.gradient if each.startswith("model.encoder.layers.")})
    cosines = [_cosine(heard, exact, f"model.encoder.layers.{number}.") for number in layers]
    cells = [f"{behind:.0f}", f"{np.mean(divergences):.4f}", f"{max(divergences):.4f}", f"{wer:.2f}"]
    cells += [difference.write(), f"{same}/{len(clips)}", f"{_cosine(heard, exact):.4f}"]
    return f"| {name} | {' | '.join(cells)} | {' '.join(f'{cosine:.3f}' for cosine in cosines)} |"


def _edits(heard: Heard, clips: list[Utterance]) -> list[EditCounts]:
    pairs = zip(clips, heard.texts, strict=True)
    return [word_edits(normalize(clip.sentence), normalize(text)) for clip, text in pairs]


def _cosine(heard: Heard, exact: Heard, prefix: str = "") -> float:
    names = [name for name in exact.gradient if name.startswith(prefix)]
    ours, theirs = (torch.cat([each.gradient[name].flatten() for name in names]).double() for each in (heard, exact))
    return float(F.cosine_similarity(ours, theirs, dim=0))


def main(args: list[str] | None = None) -> int:
    """Measure each number of cells and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a published Whisper, or a run")
    parser.add_argument("csv", type=Path, help="clips and their sentences")
    parser.add_argument("--cells", type=int, nargs="+", default=[20, 40, 80], help="a row each")
    parser.add_argument("--num_clips", type=int, default=63)
    parser.add_argument("--longest", type=float, default=13.0, help="leave out longer clips, in seconds")
    parser.add_argument("--bf16", action="store_true", help="all rows under bfloat16 autocast too")
    parser.add_argument("--quick", action="store_true", help="8 clips, 40 cells")
    given = read_command_line(parser, args)
    if given.quick:
        given.num_clips, given.cells = 8, [40]
    module, index = load(given.model), open_csv(given.csv)
    fitting = np.flatnonzero(index.num_samples <= given.longest * 16_000)
    chosen = fitting[:: max(1, len(fitting) // given.num_clips)][: given.num_clips]
    clips = [index.read(int(i)) for i in chosen]
    tokens: list[list[int]] = []
    exact = listen(module, Tail(module.whisper.model.encoder, None), clips, tokens, "every position")
    print("| cells | positions | KL | worst | WER, % | difference | same text | gradient | its encoder layers |")
    print("|---|---|---|---|---|---|---|---|---|")
    print(row("every position", exact, exact, clips), flush=True)
    rows = [(num_cells, False) for num_cells in given.cells]
    rows += [(num_cells, True) for num_cells in (None, *given.cells) if given.bf16]
    for num_cells, bf16 in rows:
        name = f"{num_cells or 'every position'}{', bf16' if bf16 else ''}"
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            heard = listen(module, Tail(module.whisper.model.encoder, num_cells), clips, tokens, name)
        print(row(name, heard, exact, clips), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
