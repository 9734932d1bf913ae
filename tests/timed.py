"""A small Whisper with time stamps, and clips of which it is said who speaks."""

import csv
import json
import shutil
from pathlib import Path

from tests.conftest import MODEL, copy_corpus, read_rows

SECONDS = 10


def write_timed_model(folder: Path, **changes: object) -> Path:
    """Copy the quickstart's model, with time stamps in its tokenizer, 10 s of context and 160 label tokens.

    Args:
        folder: Where.
        changes: Other values in its config.json.
    """
    shutil.copytree(MODEL, folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = [f"<|{0.02 * position:.2f}|>" for position in range(50 * SECONDS + 1)]
    first = config["vocab_size"]
    tokenizer["added_tokens"] += [{"id": first + i, "content": name} | plain for i, name in enumerate(names)]
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    config |= {"vocab_size": first + len(names), "max_source_positions": 50 * SECONDS, "max_target_positions": 160}
    (folder / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    return folder


def name_speakers(path: Path, num_speakers: int = 2) -> None:
    """Give a CSV a column `speaker`: they take turns."""
    rows = read_rows(path)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "speaker"])
        writer.writeheader()
        writer.writerows(row | {"speaker": f"voz {i % num_speakers}"} for i, row in enumerate(rows))


def speaking_corpus(folder: Path, num_train: int = 24, num_test: int = 8) -> Path:
    """Copy some clips of the quickstart, with a column `speaker` in train.csv."""
    corpus = copy_corpus(folder, num_train, num_test)
    name_speakers(corpus / "train.csv")
    return corpus
