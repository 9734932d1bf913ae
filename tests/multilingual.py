"""Whisper's real vocabularies, out of the openai-whisper package, and small models that use them."""

import json
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)
from whisper.tokenizer import get_tokenizer

from tests.conftest import QUICKSTART, read_rows


def merges_of(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merge that makes each token: the two parts that the merges before it leave of its bytes."""
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            pairs = [ranks.get(a + b, rank) for a, b in pairwise(parts)]
            best = min(range(len(pairs)), key=pairs.__getitem__)
            assert pairs[best] < rank
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges


def byte_letters() -> dict[int, str]:
    """The letter that byte-level BPE writes for each byte, as in GPT-2."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {byte: chr(byte) for byte in plain}
    others = [byte for byte in range(256) if byte not in letters]
    letters |= {byte: chr(256 + i) for i, byte in enumerate(others)}
    assert set(letters.values()) == set(ByteLevel.alphabet())
    return letters


def multilingual_tokenizer(num_languages: int = 99, *, multilingual: bool = True) -> WhisperTokenizer:
    """Whisper's tokenizer, or that of the English models, as Hugging Face has it."""
    encoding = get_tokenizer(multilingual, num_languages=num_languages).encoding
    ranks: dict[bytes, int] = encoding._mergeable_ranks
    letters = byte_letters()

    def written(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    vocab = {written(token): rank for token, rank in ranks.items()} | {"<|endoftext|>": encoding.eot_token}
    tokenizer = WhisperTokenizer(vocab=vocab, merges=[(written(a), written(b)) for a, b in merges_of(ranks)])
    specials = sorted(encoding._special_tokens.items(), key=lambda item: item[1])
    names = [name for name, i in specials if i > encoding.eot_token and not name.startswith("<|0") and "." not in name]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    tokenizer.add_tokens([name for name, i in specials if "." in name])
    assert tokenizer.get_vocab() == vocab | dict(specials)
    return tokenizer


def write_model(
    folder: Path, *, num_mel_bins: int = 80, num_languages: int = 99, width: int = 64, multilingual: bool = True
) -> Path:
    """Write a small Whisper with random weights, real vocabulary and 30 s of context, in the files of the published."""
    tokenizer = multilingual_tokenizer(num_languages, multilingual=multilingual)
    ids = tokenizer.get_vocab()
    end = ids["<|endoftext|>"]
    special = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": end + 1}
    config = WhisperConfig(
        vocab_size=len(ids),
        num_mel_bins=num_mel_bins,
        suppress_tokens=[],
        begin_suppress_tokens=[220, end],
        d_model=width,
        encoder_layers=2,
        decoder_layers=1,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        **special,
    )
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config)
    languages = {
        "lang_to_id": {name: i for name, i in ids.items() if end + 1 < i < ids["<|translate|>"]},
        "task_to_id": {"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
    }
    model.generation_config = GenerationConfig(
        begin_suppress_tokens=[220, end],
        suppress_tokens=[],
        is_multilingual=multilingual,
        no_timestamps_token_id=ids["<|notimestamps|>"],
        return_timestamps=False,
        max_length=448,
        **(languages if multilingual else {}),
        **special,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=num_mel_bins).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"] == len(ids)
    return folder


def take_over(learned: Path, folder: Path) -> None:
    """Start a model of `write_model` from what the quickstart's has learned, which saves most of the training.

    The first token of each word gets what was learned for the word; positions are taken as far as they go.
    """
    old = {name: tensor.float() for name, tensor in load_file(learned / "model.safetensors").items()}
    new = load_file(folder / "model.safetensors")
    new |= {name: tensor for name, tensor in old.items() if name in new and tensor.shape == new[name].shape}
    positions, tokens = "model.decoder.embed_positions.weight", "model.decoder.embed_tokens.weight"
    new[positions][: len(old[positions])] = old[positions]
    from_ids, to_ids = WhisperTokenizer.from_pretrained(learned), WhisperTokenizer.from_pretrained(folder)
    sentences = [row["sentence"] for row in read_rows(QUICKSTART / "train.csv")]
    words = {word for sentence in sentences for word in [sentence.split()[0], *map(" {}".format, sentence.split()[1:])]}
    special = {name for name in from_ids.get_vocab() if name.startswith("<|")}
    for text in words | special:
        to_id, from_id = (tokens_of(text, add_special_tokens=False).input_ids[0] for tokens_of in (to_ids, from_ids))
        new[tokens][to_id] = old[tokens][from_id]
    save_file(new, folder / "model.safetensors", metadata={"format": "pt"})
