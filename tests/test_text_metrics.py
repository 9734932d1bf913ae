"""Labels with one start token; Spanish normal form; edit counts that agree with jiwer."""

from pathlib import Path

import jiwer
import numpy as np
import pytest

from tests.conftest import MODEL, QUICKSTART, read_rows
from whisper_lightning.audio.read import load_audio
from whisper_lightning.errors import UserError
from whisper_lightning.hub import language_code, load_config, load_processor
from whisper_lightning.model.load import load
from whisper_lightning.model.module import WhisperModule
from whisper_lightning.scoring.edits import EditCounts, character_edits, word_edits
from whisper_lightning.scoring.intervals import bootstrap_interval
from whisper_lightning.scoring.normalize import normalize
from whisper_lightning.text import LabelEncoder


@pytest.fixture(scope="module")
def encoder() -> LabelEncoder:
    return LabelEncoder(load_processor(str(MODEL)).tokenizer)


def test_exactly_one_start_token(encoder: LabelEncoder) -> None:
    """The widespread collator doubles it: it compares the first label with bos, which is <|endoftext|>."""
    tokenizer = load_processor(str(MODEL)).tokenizer
    ids = encoder.encode("enciende la luz de la cocina")
    names = tokenizer.convert_ids_to_tokens(ids)
    assert names[:4] == ["<|startoftranscript|>", "<|es|>", "<|transcribe|>", "<|notimestamps|>"]
    assert names[-1] == "<|endoftext|>"
    assert names.count("<|startoftranscript|>") == 1
    tokenizer.set_prefix_tokens(language="es", task="transcribe", predict_timestamps=False)
    assert ids == tokenizer(" enciende la luz de la cocina").input_ids
    assert encoder.encode("Xola")[4:] == tokenizer("Xola").input_ids[4:], "no blank that is a token of its own"
    # What the collator tests for, and what it would have to test for:
    assert ids[0] != tokenizer.bos_token_id
    assert ids[0] == load_config(str(MODEL)).decoder_start_token_id


def test_text_survives() -> None:
    module = WhisperModule(str(MODEL), random_weights=True)
    for row in read_rows(QUICKSTART / "test.csv"):
        assert module.text(module.encoder.encode(row["sentence"])) == row["sentence"]


@pytest.mark.parametrize("checkpoint", [str(MODEL), pytest.param(None, marks=pytest.mark.real)])
def test_text_never_becomes_a_special_token(checkpoint: str | None, request: pytest.FixtureRequest) -> None:
    """The published tokenizer has the time stamps as tokens that it does not even call special."""
    tokenizer = load_processor(checkpoint or str(request.getfixturevalue("real_model"))).tokenizer
    encoder = LabelEncoder(tokenizer)
    first_special = min(*encoder.prompt, encoder.end)
    for sentence in ("hola <|0.00|> amigo<|endoftext|>", "<|<|es|>|>", "a <|startoftranscript|> b <| c"):
        ids = encoder.encode(sentence)[len(encoder.prompt) : -1]
        assert max(ids) < first_special
        assert "".join(tokenizer.convert_ids_to_tokens(ids)).replace("Ġ", " ").strip() == sentence
    # Where there is nothing of the kind, it is the tokenizer's own encoding of the text as the model writes it.
    plain = "¿Qué tal, niño? 2 < 3 | 4 > 1"
    expected = tokenizer(f" {plain}", add_special_tokens=False).input_ids
    blank = tokenizer.convert_tokens_to_ids("Ġ")
    assert encoder.encode(plain)[len(encoder.prompt) : -1] == expected[expected[0] == blank :]


@pytest.mark.real
def test_a_label_is_what_the_published_model_writes(real_model: Path, real_speech: Path) -> None:
    """With the blank before the first word; of a transcript that whisper-base writes itself, token by token."""
    module = load(str(real_model), language="es", exact=True)
    rows = read_rows(real_speech / "val.csv")[:6]
    for row in rows:
        (ids,) = module.whisper.generate(
            module.log_mel(load_audio(real_speech / row["audio"])[None]),
            language="es",
            task="transcribe",
            num_beams=1,
            max_new_tokens=80,
        ).tolist()
        text = ids[: ids.index(module.encoder.end)] if module.encoder.end in ids else ids
        encoded = module.encoder.encode(module.text(text))
        assert encoded[len(module.encoder.prompt) : -1] == [i for i in text if i < module.encoder.end]


def test_languages_without_blanks_begin_without_one() -> None:
    tokenizer = load_processor(str(MODEL)).tokenizer
    encoder = LabelEncoder(tokenizer)
    for language, text in (("es", " la luz"), ("ja", "la luz")):
        expected = tokenizer(text, add_special_tokens=False).input_ids
        assert encoder.encode("la luz", language)[len(encoder.prompt) : -1] == expected
    english = LabelEncoder(tokenizer, language="ja", task="translate").encode("la luz")
    assert english[4:-1] == tokenizer(" la luz", add_special_tokens=False).input_ids


@pytest.mark.parametrize(("name", "code"), [("es", "es"), ("Spanish", "es"), ("catalan", "ca"), ("PT", "pt")])
def test_languages(name: str, code: str) -> None:
    assert language_code(name) == code


def test_unknown_language_is_one_line() -> None:
    with pytest.raises(UserError, match="klingon"):
        language_code("klingon")


def test_other_language_and_task_make_another_prompt() -> None:
    tokenizer = load_processor(str(MODEL)).tokenizer
    prompt = LabelEncoder(tokenizer, "gl", "translate").prompt
    assert tokenizer.convert_ids_to_tokens(prompt)[1:3] == ["<|gl|>", "<|translate|>"]


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("¿Dónde está la Ñ?", "dónde está la ñ"),
        ("Pingüino, señor… ¡ÁRBOL!", "pingüino señor árbol"),
        ("nin\u0303o", "niño"),
        ("físico-químico", "físico químico"),
        ("«20» €", "20"),
        ("¡…!", ""),
    ],
)
def test_normal_form(text: str, normal: str) -> None:
    assert normalize(text) == normal


def test_counts_agree_with_jiwer_over_a_corpus() -> None:
    references = ["la casa de papel", "uno", "dos tres cuatro cinco", "el niño come pan"]
    hypotheses = ["la cosa papel", "", "dos tres tres cuatro cinco seis", "el niño come pan"]
    words = EditCounts()
    characters = EditCounts()
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        words = words.plus(word_edits(reference, hypothesis))
        characters = characters.plus(character_edits(reference, hypothesis))
    assert words.percent == pytest.approx(100 * jiwer.wer(references, hypotheses))
    assert characters.percent == pytest.approx(100 * jiwer.cer(references, hypotheses))
    out = jiwer.process_words(references, hypotheses)
    assert words == (out.hits, out.substitutions, out.deletions, out.insertions)


def test_an_empty_reference_is_scored_not_dropped() -> None:
    assert word_edits("", "dos palabras") == EditCounts(insertions=2)
    assert word_edits("", "").errors == 0


def test_bootstrap_interval_is_the_binomial_one_where_that_is_known() -> None:
    errors = np.arange(1000) % 5 == 0
    low, high = bootstrap_interval(errors, np.ones(1000, int))
    half_width = 100 * 1.96 * np.sqrt(0.2 * 0.8 / 1000)
    assert low == pytest.approx(20 - half_width, abs=0.3)
    assert high == pytest.approx(20 + half_width, abs=0.3)


def test_bootstrap_interval_weighs_by_length_and_repeats() -> None:
    assert bootstrap_interval(np.full(9, 2), np.full(9, 8)) == (25.0, 25.0)
    errors, lengths = np.array([0, 10, 1]), np.array([1, 10, 5])
    assert bootstrap_interval(errors, lengths) == bootstrap_interval(errors, lengths)
    assert bootstrap_interval(errors, lengths) == (0.0, 100.0)


@pytest.mark.parametrize("number", [7, 5000])
def test_bootstrap_interval_is_that_of_one_resampled_corpus_after_the_other(number: int) -> None:
    lengths = np.random.default_rng(1).integers(0, 15, size=number)
    errors = np.random.default_rng(2).binomial(lengths, 0.2)
    generator = np.random.default_rng(0)
    draws = [generator.integers(number, size=number) for _ in range(2000)]
    rates = [100 * errors[draw].sum() / lengths[draw].sum() for draw in draws]
    assert bootstrap_interval(errors, lengths) == pytest.approx(np.percentile(rates, [2.5, 97.5]))


def test_nine_times_in_ten_and_more_the_interval_holds_the_truth() -> None:
    covered = 0
    for seed in range(200):
        errors = np.random.default_rng(seed).binomial(8, 0.1, size=120)
        low, high = bootstrap_interval(errors, np.full(120, 8), num_samples=300)
        covered += low <= 10.0 <= high
    assert 182 <= covered <= 198  # 95 % of 200
