"""What a model may write: the published list, without the marks that its training sentences have."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from tests.conftest import MODEL, publish, quick_arguments, read_rows
from whisper_lightning.cli import main
from whisper_lightning.export.decoding import Decoding, _pattern
from whisper_lightning.model.load import load
from whisper_lightning.model.module import WhisperModule
from whisper_lightning.text import marks

TOKENS = {text: AutoTokenizer.from_pretrained(MODEL).get_vocab()[text] for text in '"['}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A model that never writes quotes or brackets."""
    folder = publish(tmp_path / "model")
    path = folder / "generation_config.json"
    generation = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(generation | {"suppress_tokens": [*TOKENS.values()]}), encoding="utf-8")
    return folder


def test_marks_of_a_text() -> None:
    assert marks("la luz 2") == set()
    assert marks('¿«Ya»? - "no"') == set('¿«»?-"') | {"¿«", "«Y", "a»", "»?", "? ", " -", "- ", ' "', '"n', 'o"'}


def test_fit_lets_it_write_what_its_sentences_have(checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    path = corpus / "train.csv"
    rows = read_rows(path)
    lines = [f'{row["audio"]},"dijo ""{row["sentence"]}"""\n' for row in rows]
    path.write_text("audio,sentence\n" + "".join(lines), encoding="utf-8")
    run = tmp_path / "run"
    arguments = [*quick_arguments(corpus, run), f"--model.checkpoint={checkpoint}", "--trainer.max_steps=2"]
    assert main(arguments) == 0
    saved = json.loads((run / "best" / "generation_config.json").read_text(encoding="utf-8"))
    assert saved["suppress_tokens"] == [TOKENS["["]]
    assert saved["tells_times"] is False
    last = run / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["suppress_tokens"] == [TOKENS["["]]
    for source in (run, last):
        assert load(str(source)).whisper.generation_config.suppress_tokens == [TOKENS["["]]
    # The training data are not opened for it: the checkpoint says it.
    (corpus / "train.csv").unlink()
    config = [
        "validate",
        f"--config={run / 'config.yaml'}",
        f"--ckpt_path={last}",
        "--trainer.enable_progress_bar=false",
    ]
    assert main(config) == 0


def test_the_other_choices(checkpoint: Path) -> None:
    for choice, expected in (("none", []), ("published", [*TOKENS.values()]), ("auto", [*TOKENS.values()])):
        module = WhisperModule(checkpoint=str(checkpoint), suppress_tokens=choice)  # type: ignore[arg-type]
        assert module.whisper.generation_config.suppress_tokens == expected
    decoding = Decoding.of(module)
    assert decoding.suppress_tokens == (*TOKENS.values(),)
    assert decoding.suppress_regex == r'["\[]'
    module.let_write(None)  # shards that do not say
    assert module.whisper.generation_config.suppress_tokens == []
    assert Decoding.of(module).suppress_regex == ""


def test_the_pattern_of_whisper_cpp_matches_the_tokens_and_no_others() -> None:
    tokens = {'"', ' "', "[", " -", "(", " (", ">>", " >>", "「", "]", "^", " ^", "\\", "\ufffd"}
    pattern = _pattern(tokens)
    assert {token for token in tokens if not re.fullmatch(pattern, token)} == {"\ufffd"}, "no text is a part of a mark"
    assert not any(re.fullmatch(pattern, token) for token in ("-", " [", " ]", "> >", " ", "", "a", "á"))
    assert pattern.startswith(' ?["'), "classes are fast"


def test_a_mark_counts_where_the_token_has_it(checkpoint: Path) -> None:
    module = WhisperModule(checkpoint=str(checkpoint))
    module.let_write(marks("sí - [no"))
    assert module.whisper.generation_config.suppress_tokens == [TOKENS['"']]
