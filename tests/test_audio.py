"""Audio: every format in, every fault named; log-mel as transformers computes it."""

import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from transformers import WhisperFeatureExtractor

from whisper_lightning.audio.augment import mask_log_mel
from whisper_lightning.audio.decoders import SOUNDFILE_FORMATS, AudioError
from whisper_lightning.audio.features import log_mel, mel_filters
from whisper_lightning.audio.read import load_audio, stream_audio


def tone(seconds: float = 1.0, rate: int = 16_000, channels: int = 1) -> np.ndarray:
    time = np.arange(int(seconds * rate)) / rate
    return np.repeat(0.3 * np.sin(2 * np.pi * 440 * time)[:, None], channels, axis=1).astype(np.float32)


def write_m4a(
    path: Path, samples: np.ndarray, rate: int = 44_100, options: dict[str, str] | None = None, layout: str = "mono"
) -> Path:
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream("aac", rate=rate)
        stream.layout = layout
        # Packed, then split by FFmpeg: PyAV 18 writes and reads past the planes of a frame with eight channels.
        frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="flt", layout=layout)
        frame.sample_rate = rate
        frame.time_base = Fraction(1, rate)
        frame.pts = 0
        splitter = av.AudioResampler(format="fltp", layout=layout, rate=rate)
        for planar in [*splitter.resample(frame), *splitter.resample(None)]:
            container.mux(stream.encode(planar))
        container.mux(stream.encode(None))
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


@pytest.mark.parametrize(("layout", "channels"), [("mono", 1), ("stereo", 2), ("7.1", 8)])
def test_m4a_is_read_by_pyav(tmp_path: Path, layout: str, channels: int) -> None:
    waveform = load_audio(write_m4a(tmp_path / "a.m4a", tone(2.0, 44_100, channels), layout=layout))
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


@pytest.mark.parametrize("format_name", sorted(soundfile.available_formats()))
def test_no_format_is_read_short(tmp_path: Path, format_name: str) -> None:
    """Whatever libsndfile writes: a file is heard whole, or rejected; also cut, with all its codecs."""
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    path = tmp_path / f"a.{format_name.lower()}"
    for subtype in soundfile.available_subtypes(format_name):
        try:
            soundfile.write(path, noise, 16_000, format=format_name, subtype=subtype)
        except (soundfile.LibsndfileError, ValueError):
            continue  # not at this rate, or not by this version
        content = path.read_bytes()
        for share in (1.0, 0.9, 0.5, 0.02):
            path.write_bytes(content[: int(share * len(content))])
            try:
                length = len(load_audio(path))
            except AudioError:
                assert share < 1 or format_name not in SOUNDFILE_FORMATS or subtype.startswith("DWVW")
            else:
                assert share == 1
                assert length == pytest.approx(16_000, abs=1000)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0])
def test_au_written_to_a_pipe(tmp_path: Path, size: int) -> None:
    soundfile.write(tmp_path / "a.au", tone(1.0), 16_000)
    content = bytearray((tmp_path / "a.au").read_bytes())
    content[8:12] = size.to_bytes(4, "big")
    (tmp_path / "a.au").write_bytes(content)
    if size:
        assert len(load_audio(tmp_path / "a.au")) == 16_000
    else:
        assert reason(tmp_path / "a.au") == "empty"


@pytest.mark.parametrize("name", ["a.ogg", "a.opus", "a.mp3", "a.flac", "a.wav", "a.m4a"])
@pytest.mark.parametrize("rate", [48_000, 24_000])
def test_joined_files_are_not_read_in_part(tmp_path: Path, name: str, rate: int) -> None:
    """`cat a.mp3 b.mp3 > c.mp3`: decoders give the first alone."""
    path = tmp_path / name
    container = {"opus": "OGG"}.get(name.split(".")[1])
    content = b""
    for seconds, each in ((1.0, 48_000), (2.0, rate)):
        if name == "a.m4a":
            write_m4a(path, tone(seconds, each), each)
        else:
            soundfile.write(path, tone(seconds, each), each, format=container, subtype="OPUS" if container else None)
        content += path.read_bytes()
    # Tags at the end are no second recording.
    if name == "a.mp3":
        path.write_bytes(path.read_bytes() + b"APETAGEX" + bytes(5000) + b"TAG" + bytes(125))
    assert len(load_audio(path)) == pytest.approx(32_000, abs=2000)
    path.write_bytes(content)
    assert reason(path) in ("unreadable", "not audio")


@pytest.mark.parametrize(
    ("rate", "channels", "outcome"),
    [
        (2**31 - 1, 1, "unreadable"),
        (10**9, 1, "unreadable"),
        (1, 1, "unreadable"),
        (0, 1, "not audio"),
        (16_000, 500, "unreadable"),
        (16_000, 0, "not audio"),
    ],
)
def test_what_a_wav_header_claims_takes_no_memory(tmp_path: Path, rate: int, channels: int, outcome: str) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(2.0), 16_000)
    content = bytearray(path.read_bytes())
    content[22:24] = channels.to_bytes(2, "little")
    content[24:28] = rate.to_bytes(4, "little")
    content[28:32] = min(rate * max(channels, 1) * 2, 2**32 - 1).to_bytes(4, "little")
    content[32:34] = (2 * channels).to_bytes(2, "little")
    path.write_bytes(content)
    assert reason(path) == outcome
    with pytest.raises(AudioError):
        list(stream_audio(path))


def test_a_flac_of_years(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(2.0), 16_000)
    content = bytearray(path.read_bytes())
    content[21] |= 0x0F
    content[22:26] = b"\xff\xff\xff\xf0"
    path.write_bytes(content)
    assert reason(path) == "too long"
    with pytest.raises(AudioError):
        list(stream_audio(path))


@pytest.mark.skipif(sys.platform == "win32", reason="no limit to set")
def test_a_decoder_without_memory_rejects_its_file(tmp_path: Path) -> None:
    """Half a minute at 384 kHz, and less address space than it takes; the next file is read."""
    import resource

    soundfile.write(tmp_path / "long.wav", tone(30.0, 384_000, 2), 384_000)
    soundfile.write(tmp_path / "short.wav", tone(1.0), 16_000)
    load_audio(tmp_path / "short.wav")
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**26, before[1]))
    try:
        with pytest.raises(AudioError) as caught:
            list(stream_audio(tmp_path / "long.wav"))
        assert len(load_audio(tmp_path / "short.wav")) == 16_000
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert caught.value.reason == "unreadable"
    assert "emory" in str(caught.value) or "allocate" in str(caught.value)


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_nothing_is_cut_from_an_m4a(tmp_path: Path, rate: int) -> None:
    """AAC fills up its last frame, so a clip decodes to more than it is; the container knows."""
    assert len(load_audio(write_m4a(tmp_path / "a.m4a", tone(30.0, rate), rate))) == 480_000
    assert len(load_audio(write_m4a(tmp_path / "a.m4a", tone(2.345, rate), rate))) == pytest.approx(37_520, abs=1)
    with pytest.raises(AudioError, match=r"30\.001 s; at most 30 s") as caught:
        load_audio(write_m4a(tmp_path / "a.m4a", tone(30.001, rate), rate))
    assert caught.value.reason == "too long"


@pytest.mark.parametrize("rate", [16_000, 44_100, 8_000])
@pytest.mark.parametrize("kind", ["constant", "constants", "one sample", "spike", "nothing"])
def test_what_is_not_a_sound_is_silent(tmp_path: Path, rate: int, kind: str) -> None:
    samples = np.zeros(2 * rate)
    if kind == "constant":
        samples += 0.7
    elif kind == "constants":
        samples[:rate], samples[rate:] = 0.3, -0.4
    elif kind == "one sample":
        samples = np.full(1, 0.5)
    elif kind == "spike":
        samples[rate] = 1.0
    soundfile.write(tmp_path / "a.wav", samples, rate)
    assert reason(tmp_path / "a.wav") == "silent"


@pytest.mark.parametrize("seconds", [0.06, 1.0])
def test_a_short_or_quiet_sound_is_one(tmp_path: Path, seconds: float) -> None:
    soundfile.write(tmp_path / "a.wav", 0.001 * tone(seconds) + 0.01, 16_000, subtype="FLOAT")
    assert len(load_audio(tmp_path / "a.wav")) == seconds * 16_000


@pytest.mark.parametrize("gain", [-1.0, -0.96, -0.7])
@pytest.mark.parametrize("name", ["a.wav", "a.m4a"])
def test_channels_that_cancel_are_not_mixed(tmp_path: Path, gain: float, name: str) -> None:
    """A microphone wired the wrong way round: the mix is silence, or noise alone."""
    noise = np.random.default_rng(0).normal(0, 0.01, (32_000, 2)).astype(np.float32)
    one = tone(2.0)
    stereo = np.concatenate([gain * one, one], axis=1) + noise
    path = tmp_path / name
    if name == "a.m4a":
        write_m4a(path, stereo, 16_000, layout="stereo")
    else:
        soundfile.write(path, stereo, 16_000, subtype="FLOAT")
    errors = (load_audio(path).numpy()[:, None] - stereo)[800:-800]
    # The louder one; where both are as loud, either.
    error = np.sqrt(np.mean(errors**2, axis=0))[slice(None) if gain == -1 else slice(1, None)].min()
    assert error < (0.02 if name == "a.m4a" else 1e-6)


@pytest.mark.parametrize("channels", [2, 8])
def test_channels_that_do_not_cancel_are_mixed(tmp_path: Path, channels: int) -> None:
    """The same in all, one speaker in each, or a sound in one alone."""
    generator = np.random.default_rng(0)
    same = np.repeat(generator.normal(0, 0.1, (32_000, 1)), channels, axis=1)
    different = generator.normal(0, 0.1, (32_000, channels))
    alone = different * (np.arange(channels) == 1)
    for samples in (same, different, alone, same + 0.5 * different):
        soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
        assert np.abs(load_audio(tmp_path / "a.wav").numpy() - samples.mean(axis=1)).max() < 1e-6


def test_cancelling_is_judged_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A jingle in stereo before a voice out of phase; memory stays that of a block."""
    generator = np.random.default_rng(0)
    jingle, voice = generator.normal(0, 0.1, (16_000, 2)), generator.normal(0, 0.1, (48_000, 1))
    soundfile.write(tmp_path / "a.wav", np.concatenate([jingle, voice * [1.0, -1.0]]), 16_000, subtype="FLOAT")
    for module in ("decoders", "read"):
        monkeypatch.setattr(f"whisper_lightning.audio.{module}.BLOCK_SECONDS", 1)
    joined = torch.cat(list(stream_audio(tmp_path / "a.wav"))).numpy()
    assert len(joined) == 64_000
    assert np.abs(joined[17_000:] - voice[1_000:, 0]).max() < 1e-6


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


@pytest.mark.parametrize(("claimed", "outcome"), [(0xFFFFFFFF, 2.0), (0x7FFFF000, 2.0), (115_200_000, None)])
def test_lengths_that_a_wav_claims(tmp_path: Path, claimed: int, outcome: float | None) -> None:
    """What programs leave that write to a pipe is no claim; an hour that is not there is not believed."""
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(2.0), 16_000)
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = claimed.to_bytes(4, "little")
    path.write_bytes(content)
    if outcome is None:
        assert reason(path) == "truncated"
    else:
        assert len(load_audio(path)) == outcome * 16_000


def test_flac_written_to_a_pipe(tmp_path: Path) -> None:
    """Its header has no length, and libsndfile gives up; FFmpeg does not."""
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(2.0), 16_000)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert len(load_audio(path)) == 32_000
    assert reason(path, max_seconds=1.0) == "too long"


def test_mp3_without_a_count_of_frames(tmp_path: Path) -> None:
    """libsndfile guesses the length from the bit rate of the first frame; the guess is not a promise."""
    path = tmp_path / "a.mp3"
    noise = np.random.default_rng(0).normal(0, 0.1, 48_000).astype(np.float32)
    quiet = np.zeros(48_000, np.float32)
    soundfile.write(path, np.concatenate([quiet, noise, quiet]), 16_000, bitrate_mode="VARIABLE")
    content = path.read_bytes()
    second_frame = content.index(content[:2], 2)
    path.write_bytes(content[second_frame:])
    assert len(load_audio(path)) == pytest.approx(144_000, abs=4000)


def test_garbage_after_a_wav_header_is_not_audio(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF....WAVEgarbage")
    assert reason(tmp_path / "a.wav") == "not audio"


@pytest.mark.parametrize("share", [0.03, 0.5, 0.99])
def test_cut_m4a_with_its_index_at_the_end(tmp_path: Path, share: float) -> None:
    path = write_m4a(tmp_path / "a.m4a", tone(4.0, 44_100))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert reason(path) == "truncated"


@pytest.mark.parametrize(
    "content", ["ffconcat version 1.0\nfile b.m4a\n", "#EXTM3U\n#EXTINF:2,\nhttp://127.0.0.1:9/b.m4a\n#EXT-X-ENDLIST\n"]
)
def test_playlists_open_no_other_files(tmp_path: Path, content: str) -> None:
    write_m4a(tmp_path / "b.m4a", tone(1.0, 44_100))
    (tmp_path / "a.m4a").write_text(content, encoding="utf-8")
    assert reason(tmp_path / "a.m4a") == "not audio"


@pytest.mark.parametrize("path", ["pipe:touch canary", "https://example.org/a.wav", "concat:a.wav"])
def test_commands_and_addresses_are_not_files(path: str) -> None:
    assert reason(Path(path)) == "not a local file"


@pytest.mark.parametrize("rate", [11_127, 44_099])
def test_rates_without_a_common_divisor(tmp_path: Path, rate: int) -> None:
    """torchaudio's kernel for 44,099 Hz would take 2.8 GB."""
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(1.0, rate), rate, subtype="FLOAT")
    expected = tone(1.0)[:, 0]
    assert np.abs(load_audio(path).numpy() - expected)[800:-800].max() < 1e-3


@pytest.mark.parametrize("sample", [np.nan, np.inf, 32_767.0])
def test_samples_in_no_known_unit(tmp_path: Path, sample: float) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(1600, sample), 16_000, subtype="FLOAT")
    assert reason(tmp_path / "a.wav") == "unreadable"


def test_log_mel_of_a_click_at_the_very_end() -> None:
    """The frame after the last one that is wanted is the loudest, and sets the floor of all."""
    waveform = np.random.default_rng(3).normal(0, 1e-3, 16_000).astype(np.float32)
    waveform[-1] = 1.0
    expected = WhisperFeatureExtractor()(waveform, sampling_rate=16_000).input_features[0]
    ours = log_mel(torch.from_numpy(waveform)[None], mel_filters(80), 100)[0].numpy()
    assert np.abs(ours - expected[:, :100]).max() < 1e-5


def test_log_mel_stays_in_float32_under_autocast() -> None:
    waveform = torch.randn(1, 16_000) * 0.1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = log_mel(waveform, mel_filters(80), 100)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, log_mel(waveform, mel_filters(80), 100))


def test_opus_that_libsndfile_calls_malformed() -> None:
    """A clip of a second, as libopus writes it (made by tools/synthesize_corpus.py); FFmpeg reads it."""
    path = Path(__file__).parent / "data" / "short.opus"
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.info(path)
    assert len(load_audio(path)) == pytest.approx(16_000, abs=400)


@pytest.mark.parametrize(
    ("name", "rate"), [("a.wav", 16_000), ("a.flac", 44_100), ("a.mp3", 24_000), ("a.m4a", 44_100), ("a.wav", 44_099)]
)
def test_blocks_are_the_whole_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, rate: int) -> None:
    """Of a second or more each: no seam is heard, whatever the decoder and the resampler."""
    path = tmp_path / name
    samples = np.random.default_rng(0).normal(0, 0.1, (10 * rate, 2)).astype(np.float32)
    if name == "a.m4a":
        write_m4a(path, samples, rate, layout="stereo")
    else:
        soundfile.write(path, samples, rate)
    whole = load_audio(path)
    for module in ("decoders", "read"):
        monkeypatch.setattr(f"whisper_lightning.audio.{module}.BLOCK_SECONDS", 1)
    blocks = list(stream_audio(path))
    assert len(blocks) >= 3
    assert all(len(block) % 16_000 == 0 for block in blocks[:-1])
    joined = torch.cat(blocks)
    assert joined.shape == whole.shape
    difference = (joined - whole).abs()
    if rate == 44_099:  # resampled by FFT, where a recording's end runs into its beginning
        difference = difference[8_000:-8_000]
    assert difference.max() < (1e-3 if rate == 44_099 else 1e-6)


def test_a_flaw_after_the_first_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 10 * 16_000), 16_000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 9 // 10])
    for module in ("decoders", "read"):
        monkeypatch.setattr(f"whisper_lightning.audio.{module}.BLOCK_SECONDS", 1)
    blocks = stream_audio(path)
    assert len(next(blocks)) >= 16_000
    with pytest.raises(AudioError) as caught:
        list(blocks)
    assert caught.value.reason == "truncated"
