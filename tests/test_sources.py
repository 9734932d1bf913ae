"""Which utterances are trained on, which are measured, and whether one of them is both."""

import csv
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from tests.conftest import MODEL, copy_corpus, one_error, quick_arguments, read_rows
from tests.test_shards import to_version_1
from whisper_lightning.cli import main
from whisper_lightning.data.build import build_shards
from whisper_lightning.data.datamodule import SpeechDataModule
from whisper_lightning.model.module import WhisperModule

STAGES = {
    "fit": TrainerFn.FITTING,
    "validate": TrainerFn.VALIDATING,
    "test": TrainerFn.TESTING,
    "predict": TrainerFn.PREDICTING,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.csv of 20 clips, test.csv of 8, final.csv of 4 others; `shards` is a folder of those in test.csv."""
    folder = copy_corpus(tmp_path_factory.mktemp("data") / "corpus", 24, 8)
    header, *lines = (folder / "train.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "train.csv").write_text(header + "".join(lines[:20]), encoding="utf-8")
    (folder / "final.csv").write_text(header + "".join(lines[20:]), encoding="utf-8")
    build_shards(folder / "test.csv", folder / "shards", num_workers=0)
    return folder


def open_splits(folder: Path, stage: str, **sources: Any) -> dict[str, set[str]]:
    """Open what a stage needs, as Lightning does; the audio files of each split."""
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=folder / "run")
    trainer.strategy.connect(WhisperModule(str(MODEL), random_weights=True))
    module = SpeechDataModule(train=str(folder / "train.csv"), **sources)
    module.trainer = trainer
    trainer.state.fn = STAGES[stage]
    module.prepare_data()
    module.setup(stage)
    return {name: {split.index.read_text(int(i)).audio for i in split.members} for name, split in module.splits.items()}


@pytest.mark.parametrize("test", ["absent", "same", "other", "folder"])
@pytest.mark.parametrize("val", ["share", "CSV", "folder"])
def test_splits_are_what_was_named(val: str, test: str, data: Path) -> None:
    named = {name: {row["audio"] for row in read_rows(data / f"{name}.csv")} for name in ("train", "test", "final")}
    vals = {"share": 0.25, "CSV": str(data / "test.csv"), "folder": str(data / "shards")}
    same = {"share": str(data / "train.csv")}.get(val, vals[val])
    tests = {"absent": None, "same": same, "other": str(data / "final.csv"), "folder": str(data / "shards")}
    sources = {"val": vals[val], "test": tests[test]}
    fitted = open_splits(data, "fit", **sources)
    if val == "share":
        assert (len(fitted["val"]), len(fitted["train"])) == (5, 15)
        assert fitted["val"] | fitted["train"] == named["train"]
    else:
        assert (fitted["val"], fitted["train"]) == (named["test"], named["train"])
    expected = {
        "absent": fitted["val"],
        "same": named["train"] if val == "share" else named["test"],
        "other": named["final"],
        "folder": named["test"],
    }[test]
    assert fitted.get("test", fitted["val"]) == expected
    assert open_splits(data, "test", **sources) == {"test": expected}
    assert open_splits(data, "predict", **sources) == {"predict": expected}
    assert open_splits(data, "validate", **sources) == {"val": fitted["val"]}
    assert open_splits(data, "predict", **sources, predict=str(data / "train.csv")) == {"predict": named["train"]}


def test_the_reported_wer_is_of_all_of_the_test_set(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [*quick_arguments(corpus, run), "--data.val=0.25", f"--data.test={corpus / 'test.csv'}"]
    assert main([*arguments, "--trainer.max_steps=2"]) == 0
    assert len(read_rows(run / "transcripts" / "step-000002.csv")) == 6
    tested = {row["audio"] for row in read_rows(run / "transcripts" / "test.csv")}
    assert tested == {row["audio"] for row in read_rows(corpus / "test.csv")}


def write_csv(path: Path, rows: list[tuple[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("audio", "sentence"), *rows])


def test_what_is_measured_on_what_was_trained_on_is_said(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By samples, whatever the file's name and sentence; by sentence, whoever says it."""
    folder = data / "overlap"
    folder.mkdir()
    trained, final = read_rows(data / "train.csv"), read_rows(data / "final.csv")
    shutil.copytree(data / "audio", folder / "audio")
    shutil.copy(data / trained[4]["audio"], folder / "audio" / "otro nombre.wav")
    shutil.copy(data / "train.csv", folder / "train.csv")
    write_csv(
        folder / "val.csv",
        [
            (final[0]["audio"], "una frase que nadie ha dicho"),
            ("audio/otro nombre.wav", "otra frase"),
            (trained[7]["audio"], "otra más"),
            (final[1]["audio"], trained[0]["sentence"]),
        ],
    )
    write_csv(folder / "final.csv", [(final[2]["audio"], "nunca oída"), (final[3]["audio"], "jamás dicha")])
    with caplog.at_level(logging.INFO):
        open_splits(folder, "fit", val=str(folder / "val.csv"), test=str(folder / "final.csv"))
    said = [record for record in caplog.records if "is in data.train too" in record.getMessage()]
    assert [record.levelname for record in said] == ["WARNING", "INFO"]
    assert "data.val: the audio of 2 of 4 utterances is in data.train too (rows 3, 4)" in said[0].getMessage()
    assert "data.val: 1 of 4 utterances have a sentence that is in data.train too" in said[1].getMessage()


def test_older_shards_do_not_tell(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(data / "shards", tmp_path / "older")
    to_version_1(tmp_path / "older")
    with caplog.at_level(logging.INFO):
        open_splits(data, "fit", val=str(tmp_path / "older"))
    assert "data.val: shards of an older version do not tell what is in data.train too" in caplog.text


def test_a_wrong_share_is_one_line(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where a share of nothing would be validated on, or nothing be left to train on."""
    assert main([*quick_arguments(corpus, tmp_path / "run"), "--data.val=0.999"]) == 2
    assert one_error(capsys).startswith("error: data.train: ")
