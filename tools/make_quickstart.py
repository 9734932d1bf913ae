"""Make ``configs/quickstart``: 350 spoken commands and a tiny Whisper without weights, which learns them in a minute.

Commands "verb object place". Training hears no command of the test, but every word; part of the test is spoken by
voices that training does not hear either (column ``voice``). The tokenizer has a token for each word, with and without
a space before it.

    python -m tools.make_quickstart
"""

import argparse
import json
import random
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor, WhisperTokenizer
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from tools.synthesize_corpus import Variation, synthesize_corpus
from whisper_lightning.terminal import read_command_line

VERBS = ("enciende", "apaga", "sube", "baja")
OBJECTS = ("la luz", "la música", "la radio", "la televisión", "la calefacción", "el ventilador")
PLACES = ("de la cocina", "de la habitación", "del baño", "del salón", "del sótano", "del comedor")
SENTENCES = tuple(" ".join(words) for words in product(VERBS, OBJECTS, PLACES))
NUM_TEST_SENTENCES = 40

TRAIN_VOICES = (
    "es+m1",
    "es+m3",
    "es+m7",
    "es+f2",
    "es+f4",
    "es-419+m2",
    "es-419+m4",
    "es-419+f1",
    "es-419+f3",
    "es-419+f5",
)
UNSEEN_VOICES = ("es+linda", "es+m5", "es-419+m6", "es-419+steph")
VARIATION = Variation(
    speed_words_per_minute=(145, 185),
    pitch=(40, 60),
    pitch_range=(40, 60),
    peak_dbfs=(-10.0, -1.0),
    snr_db=(20.0, 35.0),
    silence_seconds=(0.05, 0.2),
)

SHAPE = {  # 0.24 million parameters; 4 s of context
    "num_mel_bins": 80,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 256,
    "decoder_ffn_dim": 256,
    "max_source_positions": 200,
    "max_target_positions": 64,
}
TASKS = ("translate", "transcribe")
END = "<|endoftext|>"
SPECIAL_TOKENS = tuple(  # Whisper's own, in Whisper's order: transformers computes the language's id from it
    f"<|{name}|>"
    for name in (
        *("endoftext", "startoftranscript", *LANGUAGES, *TASKS),
        *("startoflm", "startofprev", "nospeech", "notimestamps"),
    )
)


def split_sentences(seed: int) -> tuple[list[str], list[str]]:
    """Split the 144 commands into those of training and those of the test."""
    shuffled = random.Random(seed).sample(SENTENCES, len(SENTENCES))
    return shuffled[NUM_TEST_SENTENCES:], shuffled[:NUM_TEST_SENTENCES]


def make_clips(out: Path, seed: int, num_workers: int) -> None:
    """Speak 250 commands for training and 100 for the test; the test has voices more."""
    train, test = split_sentences(seed)
    for name, sentences, voices, first_index, num_utterances in (
        ("train", train, TRAIN_VOICES, 0, 250),
        ("test", test, TRAIN_VOICES + UNSEEN_VOICES, 250, 100),
    ):
        synthesize_corpus(
            sentences,
            out,
            name=name,
            num_utterances=num_utterances,
            seed=seed,
            num_workers=num_workers,
            audio_format="opus",
            voices=voices,
            variation=VARIATION,
            first_index=first_index,
        )


def make_tokenizer(words: Sequence[str], max_tokens: int, vocab_size: int = 10_000) -> WhisperTokenizer:
    """Train a byte-level BPE, by default until each word is one token, and put Whisper's special tokens behind it."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=1, initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator([form for word in words for form in (word, f" {word}")], trainer)
    bpe = json.loads(trained.to_str())["model"]
    vocabulary = {**bpe["vocab"], END: len(bpe["vocab"])}
    merges = [tuple(merge) for merge in bpe["merges"]]
    tokenizer = WhisperTokenizer(vocab=vocabulary, merges=merges, pad_token=END, model_max_length=max_tokens)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS[1:])})
    return tokenizer


def make_configs(tokenizer: WhisperTokenizer, **shape: int) -> tuple[WhisperConfig, GenerationConfig]:
    """Make a model's configuration from its shape, and how it decodes: Spanish, without timestamps."""
    end, start = tokenizer.convert_tokens_to_ids([END, "<|startoftranscript|>"])
    ids = {
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": start,
        "begin_suppress_tokens": [tokenizer.convert_tokens_to_ids("Ġ"), end],
        "suppress_tokens": [],
    }
    config = WhisperConfig(**{**shape, **ids}, architectures=["WhisperForConditionalGeneration"])
    generation_config = GenerationConfig(
        is_multilingual=True,
        language="<|es|>",
        task="transcribe",
        lang_to_id={token: tokenizer.convert_tokens_to_ids(token) for token in (f"<|{code}|>" for code in LANGUAGES)},
        task_to_id={task: tokenizer.convert_tokens_to_ids(f"<|{task}|>") for task in TASKS},
        no_timestamps_token_id=tokenizer.convert_tokens_to_ids("<|notimestamps|>"),
        return_timestamps=False,
        max_length=config.max_target_positions,
        **ids,
    )
    return config, generation_config


def make_model(folder: Path, tokenizer: WhisperTokenizer, **shape: int) -> None:
    """Write a model's folder as Hugging Face lays it out, but for the weights."""
    context_seconds = shape["max_source_positions"] // 50
    for part in (tokenizer, *make_configs(tokenizer, **shape), WhisperFeatureExtractor(chunk_length=context_seconds)):
        part.save_pretrained(folder)


def main(args: list[str] | None = None) -> None:
    """Make the clips and the model."""
    parser = argparse.ArgumentParser(description="Make the quickstart's clips and its tiny model without weights.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "configs" / "quickstart")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other clips and another split")
    parser.add_argument("--num_workers", type=int, default=1, help="processes; the result does not depend on it")
    given = read_command_line(parser, args)
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    tokenizer = make_tokenizer(words, SHAPE["max_target_positions"])
    make_model(given.out / "model", tokenizer, **SHAPE, vocab_size=len(tokenizer))
    make_clips(given.out, given.seed, given.num_workers)
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
