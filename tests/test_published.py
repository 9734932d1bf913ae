"""Models as others publish them: what is there is loaded whole, what is not is said in one line."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, WhisperForConditionalGeneration

from tests.command import evaluate, export, transcribe
from tests.conftest import QUICKSTART, one_error, publish, read_rows
from tests.multilingual import write_model
from whisper_lightning.audio.read import load_audio
from whisper_lightning.errors import UserError
from whisper_lightning.model.decode import greedy_decode
from whisper_lightning.model.load import load
from whisper_lightning.model.tail import Encoded

CLIP = QUICKSTART / read_rows(QUICKSTART / "test.csv")[0]["audio"]
State = dict[str, torch.Tensor]


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """A published folder to change."""
    return Path(shutil.copytree(published, tmp_path / "model"))


def heard(model: Path) -> list[int]:
    """Return the tokens that a model hears in a clip."""
    module = load(str(model))
    with torch.no_grad():
        encoded = module.encode(load_audio(CLIP)[None])
    return greedy_decode(module.whisper, encoded, module.prompts, 20)[0]


def rewrite(folder: Path, change: Callable[[State], object]) -> None:
    """Change the weights in the file."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def rename(state: State, named: Callable[[str], str]) -> None:
    for name in list(state):
        state[named(name)] = state.pop(name)


def test_every_tool_takes_a_folder_as_published(
    published: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(corpus / "test.csv")]
    assert export([str(published), str(tmp_path / "out"), *data, "--num_clips", "2"]) == 0
    assert "2/2" in capsys.readouterr().out
    generation = GenerationConfig.from_pretrained(tmp_path / "out" / "hf")
    assert (generation.language, generation.task) == ("es", "transcribe")
    card = (tmp_path / "out" / "hf" / "README.md").read_text(encoding="utf-8")
    assert "whisper-mínimo" in card
    assert str(tmp_path.parent) not in card
    assert str(published.parent) not in card
    assert evaluate([str(published), *data, "--report", str(tmp_path / "report"), "--num_workers=0"]) == 0
    assert "whisper-mínimo: WER" in capsys.readouterr().out
    assert heard(published)


@pytest.mark.parametrize("absent", ["generation_config.json", "preprocessor_config.json", "tokenizer_config.json"])
def test_a_file_that_can_be_done_without(absent: str, folder: Path, published: Path, tmp_path: Path) -> None:
    (folder / absent).unlink()
    assert heard(folder) == heard(published)
    load(str(folder)).save_pretrained(tmp_path / "saved")
    load(str(published)).save_pretrained(tmp_path / "like")
    for name in ("generation_config.json", "preprocessor_config.json"):
        mine, like = (json.loads((tmp_path / saved / name).read_text(encoding="utf-8")) for saved in ("saved", "like"))
        assert mine == like, name


def test_the_older_tokenizer_files(folder: Path, published: Path, tmp_path: Path) -> None:
    """Folders of transformers 4 may have vocab.json and merges.txt instead of tokenizer.json."""
    assert export([str(published), str(tmp_path / "out"), "--data", str(QUICKSTART / "test.csv"), "--num_clips=1"]) == 0
    (folder / "tokenizer.json").unlink()
    for name in ("vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"):
        shutil.copy(tmp_path / "out" / "hf" / name, folder)
    assert heard(folder) == heard(published)


@pytest.mark.parametrize("bins", [80, 128])
def test_mel_bins_are_those_of_the_weights(bins: int, tmp_path: Path) -> None:
    """A preprocessor_config.json of another model (80 bins) is replaced, not obeyed."""
    model = publish(tmp_path / "model", num_mel_bins=bins)
    assert export([str(model), str(tmp_path / "out"), "--data", str(QUICKSTART / "test.csv"), "--num_clips=2"]) == 0
    saved = json.loads((tmp_path / "out" / "hf" / "preprocessor_config.json").read_text(encoding="utf-8"))
    assert saved["feature_size"] == bins


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the vocabulary of the published English ones (`.en`)."""
    return write_model(tmp_path_factory.mktemp("english") / "model", multilingual=False)


def test_an_english_model_is_prompted_without_language_and_task(
    english: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = load(str(english))
    names = opened.processor.tokenizer.convert_ids_to_tokens(opened.encoder.prompt)
    assert names == ["<|startoftranscript|>", "<|notimestamps|>"]
    like = WhisperForConditionalGeneration.from_pretrained(english)
    features = opened.log_mel(torch.zeros(1, 480_000))
    expected = like.generate(features, max_new_tokens=8, num_beams=1)[0].tolist()
    states = opened.whisper.model.encoder(features).last_hidden_state
    assert greedy_decode(opened.whisper, Encoded(states, None), opened.prompts, 8) == [expected[-8:]]
    with pytest.raises(UserError, match="English"):
        load(str(english), language="es")
    out = str(tmp_path / "out")
    assert export([str(english), out, "--data", str(QUICKSTART / "test.csv"), "--formats", "ggml"]) == 2
    assert "51864" in one_error(capsys)


@pytest.mark.slow
def test_an_english_model_through_the_tools(english: Path, tmp_path: Path) -> None:
    assert heard(english)
    data = ["--data", str(QUICKSTART / "test.csv")]
    formats = ["--formats", "hf,ct2", "--quantization", "float32", "--num_clips", "2"]
    assert export([str(english), str(tmp_path / "out"), *data, *formats]) == 0


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        (["config.json"], "tokenizer.json"),
        (["config.json", "model.safetensors", "generation_config.json"], "tokenizer.json"),
        (["config.json", "tokenizer.json", "tokenizer_config.json"], "no weights"),
        (["model.safetensors", "tokenizer.json"], "config.json"),
    ],
)
def test_files_that_are_missing_are_named(
    kept: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()
    assert transcribe([str(folder), str(CLIP), "--out", str(folder)]) == 2
    assert said in one_error(capsys)


class Payload:
    """What unpickling would run."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (str(Path.cwd() / "payload ran"),)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"model.encoder.conv1.weight": Payload()}, folder / "pytorch_model.bin")


def cut(name: str, num_bytes: int) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:num_bytes])


def written(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def index_of_other_files(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    shard = {"metadata": {}, "weight_map": {"model.encoder.conv1.weight": "absent.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(shard), encoding="utf-8")


DAMAGES: dict[str, Callable[[Path], object]] = {
    **{
        f"{name} {content!r}": written(name, content)
        for name in ("config.json", "tokenizer.json", "generation_config.json")
        for content in (b"[]", b"{", b"3", b"\xff\x00", b"")
    },
    "config.json of words": written("config.json", b'{"model_type": "whisper", "d_model": "wide"}'),
    "config.json without a width": written("config.json", b'{"model_type": "whisper", "d_model": -8}'),
    "config.json of a bert": written("config.json", b'{"model_type": "bert"}'),
    "tokenizer.json {}": written("tokenizer.json", b"{}"),
    "tokenizer.json cut": cut("tokenizer.json", 5000),
    "tokenizer_config.json []": written("tokenizer_config.json", b"[]"),
    "generation_config.json of words": written("generation_config.json", b'{"begin_suppress_tokens": "none"}'),
    "generation_config.json of another": written("generation_config.json", b'{"begin_suppress_tokens": [220, 50257]}'),
    "weights of no length": cut("model.safetensors", 0),
    "weights without a header": written("model.safetensors", b"\xff" * 64),
    "weights cut in the header": cut("model.safetensors", 600),
    "weights cut in the data": cut("model.safetensors", 100_000),
    "a pickle": pickled,
    "an index of absent files": index_of_other_files,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_folder_is_one_line(
    damage: Callable[[Path], object],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    damage(folder)
    assert transcribe([str(folder), str(CLIP), "--out", str(tmp_path / "text")]) == 2
    assert folder.name in one_error(capsys)
    assert not (tmp_path / "payload ran").exists()


def drop(name: str) -> Callable[[State], object]:
    return lambda state: state.pop(name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop("model.encoder.conv1.weight"), "model.encoder.conv1.weight is missing"),
        (drop("model.decoder.embed_tokens.weight"), "model.decoder.embed_tokens.weight is missing"),
        (
            lambda state: state.update({"model.encoder.conv1.bias": torch.zeros(3)}),
            r"conv1.bias is \[3\], not \[64\]",
        ),
        (lambda state: state.update({"model.encoder.rotary": torch.zeros(3)}), "model.encoder.rotary is unknown"),
        (lambda state: rename(state, lambda name: f"base_model.model.{name}"), "PEFT"),
        (lambda state: state.update({"model.encoder.layers.0.fc1.lora_A.weight": torch.zeros(3)}), "PEFT"),
        (
            lambda state: state.update({"proj_out.weight": state["model.decoder.embed_tokens.weight"] + 1}),
            "proj_out.weight is another than",
        ),
        (lambda state: rename(state, lambda name: f"x.{name}"), "and 127 more"),
    ],
)
def test_weights_that_do_not_match(
    change: Callable[[State], object], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(folder, change)
    assert transcribe([str(folder), str(CLIP), "--out", str(folder)]) == 2
    assert re.search(said, one_error(capsys))


def test_an_adapter_is_called_one(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Alone, as PEFT saves it, and beside a whole model, where it would be left out without a word."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for place in (adapter, folder):
        (place / "adapter_config.json").write_text('{"base_model_name_or_path": "x/y"}', encoding="utf-8")
        save_file({"base_model.model.a.lora_A.weight": torch.zeros(2)}, place / "adapter_model.safetensors")
        assert transcribe([str(place), str(CLIP), "--out", str(tmp_path)]) == 2
        error = one_error(capsys)
        assert "PEFT adapter" in error
        assert "merge_and_unload" in error


def as_bin(folder: Path, state: State) -> None:
    # With the output layer, as transformers 4 wrote it.
    torch.save(state | {"proj_out.weight": state["model.decoder.embed_tokens.weight"]}, folder / "pytorch_model.bin")


def sharded(folder: Path, state: State) -> None:
    model = WhisperForConditionalGeneration.from_pretrained(folder, state_dict=None)
    (folder / "model.safetensors").unlink(missing_ok=True)
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1


def of_the_bare_model(folder: Path, state: State) -> None:
    save_file({name.removeprefix("model."): state[name] for name in state}, folder / "model.safetensors")


def without_positions(folder: Path, state: State) -> None:
    """They are sinusoids, which need no file."""
    del state["model.encoder.embed_positions.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("write", [as_bin, sharded, of_the_bare_model, without_positions])
def test_other_ways_to_keep_the_same_weights(
    write: Callable[[Path, State], None], folder: Path, published: Path
) -> None:
    state = load_file(folder / "model.safetensors")
    if write is not sharded:
        (folder / "model.safetensors").unlink()
    write(folder, state)
    found, expected = (load(str(place)).state_dict() for place in (folder, published))
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert weight.dtype == torch.float32
        assert torch.allclose(found[name], weight, atol=1e-3), name
