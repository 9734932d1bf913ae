"""Audio: every format in, every fault named; log-mel as transformers computes it."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from transformers import WhisperFeatureExtractor

from whisper_lightning.audio import AudioError, load_audio, log_mel, mask_log_mel, mel_filters


def tone(seconds: float = 1.0, rate: int = 16_000, channels: int = 1) -> np.ndarray:
    time = np.arange(int(seconds * rate)) / rate
    return np.repeat(0.3 * np.sin(2 * np.pi * 440 * time)[:, None], channels, axis=1).astype(np.float32)


def write_m4a(path: Path, samples: np.ndarray, rate: int = 44_100, options: dict[str, str] | None = None) -> Path:
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream("aac", rate=rate)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(samples.T.copy(), format="fltp", layout="mono")
        frame.sample_rate = rate
        frame.time_base = Fraction(1, rate)
        frame.pts = 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return path


@pytest.mark.parametrize(
    ("name", "subtype", "rate", "channels"),
    [
        ("a.wav", "PCM_16", 16_000, 1),
        ("a.wav", "PCM_U8", 44_100, 1),
        ("a.wav", "PCM_24", 44_100, 2),
        ("a.wav", "PCM_32", 8_000, 1),
        ("a.wav", "FLOAT", 48_000, 8),
        ("a.flac", "PCM_16", 44_100, 2),
        ("a.aiff", "PCM_16", 44_100, 1),
        ("a.ogg", "VORBIS", 22_050, 1),
        ("a.opus", "OPUS", 48_000, 1),
        ("a.mp3", "MPEG_LAYER_III", 44_100, 2),
    ],
)
def test_formats(tmp_path: Path, name: str, subtype: str, rate: int, channels: int) -> None:
    path = tmp_path / name
    container = {"opus": "OGG"}.get(name.split(".")[1])
    soundfile.write(path, tone(1.0, rate, channels), rate, subtype=subtype, format=container)
    waveform = load_audio(path)
    assert waveform.dtype == torch.float32
    assert len(waveform) == pytest.approx(16_000, abs=1200)
    spectrum = np.abs(np.fft.rfft(waveform.numpy()))
    assert np.argmax(spectrum) * 16_000 / len(waveform) == pytest.approx(440, abs=3)


def test_m4a_is_read_by_pyav(tmp_path: Path) -> None:
    waveform = load_audio(write_m4a(tmp_path / "a.m4a", tone(2.0, 44_100)))
    assert len(waveform) == pytest.approx(32_000, abs=1600)
    assert waveform.abs().max() == pytest.approx(0.3, abs=0.1)


def reason(path: Path, max_seconds: float = 30.0) -> str:
    with pytest.raises(AudioError) as caught:
        load_audio(path, max_seconds)
    return caught.value.reason


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.aiff", "a.mp3"])
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_cut_files_are_truncated(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    noise = np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32)
    soundfile.write(path, noise, 16_000)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert reason(path) == "truncated"


def test_cut_m4a(tmp_path: Path) -> None:
    path = write_m4a(tmp_path / "a.m4a", tone(4.0, 44_100), options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert reason(path) == "truncated"


def test_unusable_files(tmp_path: Path) -> None:
    silent, text, empty, long = (tmp_path / name for name in ("s.wav", "t.wav", "e.wav", "l.wav"))
    soundfile.write(silent, np.zeros(16_000), 16_000)
    text.write_text("esto no es audio, aunque se llame así " * 20, encoding="utf-8")
    empty.touch()
    soundfile.write(tmp_path / "h.wav", np.zeros(0), 16_000)
    soundfile.write(long, tone(5), 16_000)
    assert reason(silent) == "silent"
    assert reason(text) == "not audio"
    assert reason(empty) == reason(tmp_path / "h.wav") == "empty"
    assert reason(tmp_path / "absent.wav") == reason(tmp_path) == "missing"
    assert reason(long, max_seconds=4.9) == "too long"
    assert len(load_audio(long, max_seconds=5.0)) == 80_000


@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize("seconds", [0.4, 3.217, 29.99, 30.0])
def test_log_mel_equals_the_feature_extractor(bins: int, seconds: float) -> None:
    waveform = np.random.default_rng(1).normal(0, 0.1, int(seconds * 16_000)).astype(np.float32)
    expected = WhisperFeatureExtractor(feature_size=bins)(waveform, sampling_rate=16_000).input_features[0]
    num_frames = min(3000, -(-len(waveform) // 320) * 2)
    for wanted in {num_frames, min(3000, num_frames + 2), 3000}:
        ours = log_mel(torch.from_numpy(waveform)[None], mel_filters(bins), wanted)[0].numpy()
        assert np.abs(ours - expected[:, :wanted]).max() < 1e-5


def test_log_mel_of_a_batch_at_another_context() -> None:
    """Padding to the longest of a batch changes nothing in the shorter ones."""
    rng = np.random.default_rng(2)
    waveforms = [rng.normal(0, scale, n).astype(np.float32) for scale, n in ((0.3, 16_000), (0.01, 60_000))]
    extractor = WhisperFeatureExtractor(chunk_length=4)
    batch = torch.zeros(2, 60_160)
    for row, waveform in zip(batch, waveforms, strict=True):
        row[: len(waveform)] = torch.from_numpy(waveform)
    ours = log_mel(batch, mel_filters(80), 376, 400).numpy()
    expected = extractor(waveforms, sampling_rate=16_000, return_tensors="np").input_features
    assert np.abs(ours - expected[:, :, :376]).max() < 1e-5


def test_masks_are_seeded_bounded_and_at_the_floor() -> None:
    features = torch.randn(4, 80, 300)
    torch.manual_seed(0)
    masked = mask_log_mel(features)
    torch.manual_seed(0)
    assert torch.equal(masked, mask_log_mel(features))
    changed = masked != features
    assert 0 < changed.float().mean() < 0.7
    floor = features.amin(dim=(1, 2), keepdim=True).expand_as(features)
    assert torch.equal(masked[changed], floor[changed])
