"""Decoding on a trained model: transformers' `generate` and `pipeline` give the same."""

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import soundfile
import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, pipeline

from tests.conftest import QUICKSTART, read_rows
from whisper_lightning.audio.read import load_audio
from whisper_lightning.data.generations import open_folder
from whisper_lightning.model import decode
from whisper_lightning.model.module import WhisperModule
from whisper_lightning.model.tail import Encoded

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def module(quickstart_run: Path) -> WhisperModule:
    return WhisperModule(checkpoint=str(quickstart_run / "runs" / "quickstart" / "best")).eval()


@pytest.fixture(scope="module")
def features(quickstart_run: Path) -> torch.Tensor:
    extractor = WhisperFeatureExtractor.from_pretrained(quickstart_run / "runs" / "quickstart" / "best")
    clips = [soundfile.read(QUICKSTART / row["audio"])[0] for row in read_rows(QUICKSTART / "test.csv")]
    found: torch.Tensor = extractor(clips, sampling_rate=16_000, return_tensors="pt").input_features
    return found


@pytest.mark.parametrize("num_beams", [1, 2, 5])
@pytest.mark.parametrize("max_tokens", [1, 3, 50])
def test_same_tokens_as_generate(
    module: WhisperModule, quickstart_run: Path, features: torch.Tensor, max_tokens: int, num_beams: int
) -> None:
    reference = WhisperForConditionalGeneration.from_pretrained(quickstart_run / "runs" / "quickstart" / "best").eval()
    expected = reference.generate(features, max_new_tokens=max_tokens, num_beams=num_beams)
    with torch.no_grad():
        states = module.whisper.model.encoder(features).last_hidden_state
    ours = decode.decode(module.whisper, Encoded(states, None), module.prompts, max_tokens, num_beams)
    special = {*module.encoder.prompt, module.encoder.end}
    assert ours == [[token for token in row if token not in special] for row in expected.tolist()]
    assert len({tuple(row) for row in ours}) > 20 or max_tokens <= 3


@pytest.mark.parametrize("num_beams", [1, 3])
def test_rows_that_end_early_change_nothing_in_the_others(
    module: WhisperModule, monkeypatch: pytest.MonkeyPatch, num_beams: int
) -> None:
    """Noise for encoder states gives transcripts of many lengths: rows leave the batch several times."""
    config = module.whisper.config
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([3.0, 5.0]).repeat(20)[:, None, None]
    states = scale * torch.randn(40, config.max_source_positions, config.d_model, generator=generator)

    def decoded(tokens_between_checks: int) -> list[list[int]]:
        monkeypatch.setattr(decode, "TOKENS_BETWEEN_CHECKS", tokens_between_checks)
        return decode.decode(module.whisper, Encoded(states, None), module.prompts, 50, num_beams)

    together = decoded(1)
    assert len({len(row) for row in together}) >= 3
    assert together == decoded(1000), "with all rows to the end"
    alone = [
        decode.decode(module.whisper, Encoded(states[i : i + 1], None), module.prompts, 50, num_beams)[0]
        for i in range(12)
    ]
    assert together[:12] == alone


def test_pipeline_gives_our_text(quickstart_run: Path) -> None:
    """What the last line of `fit` says to type; the transcripts are those that the reported WER counts."""
    run = quickstart_run / "runs" / "quickstart"
    recognize = pipeline("automatic-speech-recognition", model=str(run / "best"))
    scored = pd.read_csv(run / "transcripts" / "test.csv", keep_default_na=False)
    shards = open_folder(QUICKSTART / "test.shards")
    waveforms = {shards.read(i).key: shards.read(i).waveform.numpy() for i in range(len(shards))}
    for _, row in scored.iterrows():
        heard = recognize({"raw": waveforms[f"{row['key']:08d}"], "sampling_rate": 16_000})
        assert heard["text"].strip() == row["hypothesis"]


@pytest.mark.parametrize("readme", ["README.md", "README.es.md"])
def test_the_readmes_python_decodes_as_we_do(
    readme: str, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a model of which the pipeline's own default, five beams, gives other texts."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / readme).read_text(encoding="utf-8"), re.DOTALL)
    module = WhisperModule(str(published), tail="exact").eval()
    module.save_pretrained(tmp_path / "runs" / "quickstart" / "best")
    clips = [load_audio(QUICKSTART / row["audio"], 4.0) for row in read_rows(QUICKSTART / "test.csv")[:4]]
    soundfile.write(tmp_path / "clip.wav", clips[0].numpy(), 16_000, subtype="FLOAT")
    monkeypatch.chdir(tmp_path)
    typed: dict[str, Any] = {}
    exec(code, typed)
    recognize = typed["recognize"]
    ours = module.transcribe(clips)
    assert capsys.readouterr().out.strip() == ours[0] != ""
    inputs = [{"raw": clip.numpy(), "sampling_rate": 16_000} for clip in clips]
    assert [recognize(dict(each))["text"] for each in inputs] == ours
    assert [recognize(dict(each), generate_kwargs={"num_beams": 5})["text"] for each in inputs] != ours
