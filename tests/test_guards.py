"""Guards: measured before, while and after training, and the model that a run ends with hears none of them worse."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import copy_corpus, one_error, publish, quick_arguments, read_rows
from tests.timed import write_timed_model
from whisper_lightning.batch import Batch
from whisper_lightning.callbacks.heard import timestamps_right
from whisper_lightning.callbacks.interpolate import Candidate, choose
from whisper_lightning.callbacks.silence import wordless
from whisper_lightning.cli import main
from whisper_lightning.commands.summary import say_of_silence
from whisper_lightning.data.generations import open_csv
from whisper_lightning.data.loader import BatchDataset
from whisper_lightning.data.long import long_windows
from whisper_lightning.data.plan import PlannedBatch, PlanOptions
from whisper_lightning.data.splits import Split
from whisper_lightning.export.card import model_card, read_run
from whisper_lightning.model.load import load
from whisper_lightning.model.module import WhisperModule
from whisper_lightning.scoring.intervals import Difference, Estimate
from whisper_lightning.scoring.utterance import measure, measure_difference, read_transcripts


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips, a published model, and a guard in two languages."""
    folder = tmp_path_factory.mktemp("guards")
    corpus = copy_corpus(folder / "corpus", 8, 8)
    publish(folder / "model")
    rows = read_rows(corpus / "train.csv")
    with (corpus / "guard.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["audio", "sentence", "language"])
        languages = ["gl", "es", "GL ", "", "gl", "es", "xx"]
        writer.writerows([row["audio"], row["sentence"], code] for row, code in zip(rows, languages, strict=False))
    return folder


def arguments(material: Path, run: Path, *options: str) -> list[str]:
    return [
        *quick_arguments(material / "corpus", run),
        f"--model.checkpoint={material / 'model'}",
        "--model.random_weights=false",
        f"--data.guard.both={material / 'corpus' / 'guard.csv'}",
        f"--data.guard.some={material / 'corpus' / 'test.csv'}",
        "--data.guard_languages.some=gl",
        "--data.guard_utterances=5",
        "--data.max_rejected_fraction=0.2",
        "--trainer.logger=true",
        "--trainer.max_steps=20",
        "--trainer.val_check_interval=10",
        *options,
    ]


@pytest.fixture(scope="module")
def run(material: Path) -> Path:
    """A run that makes both guards worse, and may not."""
    folder = material / "run"
    assert main(arguments(material, folder, "--best.guard_margin=1000")) == 0
    return folder


def test_guards_are_measured_before_while_and_after_training(run: Path) -> None:
    metrics = pd.read_csv(run / "metrics.csv")
    for guard, rows in (("both", 5), ("some", 5)):
        steps = metrics.dropna(subset=[f"guard/{guard}/wer_normalized"])
        assert list(steps["step"]) == [0, 10, 20]
        assert steps[f"guard/{guard}/difference"].isna().tolist() == [True, False, False]
        folder = run / "transcripts" / "guard" / guard
        first, last = (read_transcripts(folder / f"step-{step:06d}.csv") for step in (0, 20))
        assert len(first) == len(last) == rows
        expected = measure_difference(last, first, "wer_normalized")
        assert expected is not None
        assert list(steps[f"guard/{guard}/difference"])[-1] == pytest.approx(expected.value)
        assert list(steps[f"guard/{guard}/difference_low"])[-1] == pytest.approx(expected.low)
    for guard, rows in (("both", 6), ("some", 8)):  # a row in a language that the model does not have is left out
        folder = run / "transcripts" / "guard" / guard
        assert len(read_transcripts(folder / "before.csv")) == len(read_transcripts(folder / "test.csv")) == rows
        assert (
            metrics[f"before/guard/{guard}/wer"].notna().sum() == metrics[f"test/guard/{guard}/wer"].notna().sum() == 1
        )
    rejected = read_rows(run / "rejected.csv")
    assert [(row["split"], row["reason"]) for row in rejected] == [("guard/both", "unknown language")]


def test_the_card_says_what_became_of_other_speech(run: Path) -> None:
    told = read_run(str(run))
    assert told is not None
    assert [(guard.name, guard.num_utterances) for guard in told.guards] == [("both", 6), ("some", 8)]
    metrics = pd.read_csv(run / "metrics.csv")
    card = model_card("mío", load(str(run)), None, told, None, None, None)
    for guard in told.guards:
        for rate, stage in ((guard.before, "before"), (guard.after, "test")):
            (measured,) = metrics[f"{stage}/guard/{guard.name}/wer_normalized"].dropna()
            assert rate.value == pytest.approx(measured)
        cells = f"| {guard.name} ({guard.num_utterances}) | {guard.before.write(' %')} | {guard.after.write(' %')} | "
        for unit in (" points", " puntos"):
            assert cells + guard.difference.write(unit) in card


def test_a_guard_is_decoded_in_its_rows_languages(material: Path, run: Path) -> None:
    """As a model of that language decodes them, and with the labels of that language."""
    table = read_transcripts(run / "transcripts" / "guard" / "both" / "before.csv")
    clips = [material / "corpus" / audio for audio in table["audio"]]
    for language, rows in (("gl", [0, 2, 4]), ("es", [1, 3, 5])):
        module = load(str(material / "model"), language=language)
        module.let_write(None)
        expected = module.transcribe([clips[row] for row in rows], max_new_tokens=10)
        assert [table["hypothesis"][row] for row in rows] == expected
    module = load(str(material / "model"))
    dataset = BatchDataset(open_csv(material / "corpus" / "guard.csv"), module.encoder, language="es")
    batch = dataset[PlannedBatch((0, 1, 2), 16000 * 4), 0]
    assert not isinstance(batch, Exception)
    prompts = [module.processor.tokenizer.convert_ids_to_tokens(ids) for ids in batch.decoder_input_ids[:, :4].tolist()]
    assert [prompt[1] for prompt in prompts] == ["<|gl|>", "<|es|>", "<|gl|>"]
    assert batch.languages == ["gl", "es", "gl"]


def test_the_language_is_detected_as_transformers_does(material: Path, run: Path) -> None:
    module = load(str(material / "model"), exact=True)
    dataset = BatchDataset(open_csv(material / "corpus" / "guard.csv"), module.encoder, language="es")
    batch = dataset[PlannedBatch((0, 1, 2, 3), 16000 * 4), 0]
    assert not isinstance(batch, Exception)
    heard = module.validation_step(batch, 0).languages
    features = module.log_mel(batch.waveforms)
    ids = module.whisper.detect_language(input_features=features, generation_config=module.whisper.generation_config)
    assert heard == [module.processor.tokenizer.convert_ids_to_tokens(each).strip("<|>") for each in ids.tolist()]


def test_the_run_ends_with_the_best_of_the_way_that_its_guards_admit(material: Path, run: Path) -> None:
    table = pd.read_csv(run / "alphas.csv")
    assert list(table["alpha"]) == [0, 0.25, 0.5, 0.75, 1]
    assert table["admitted"].all()
    (chosen,) = table[table["chosen"] == 1]["alpha"]
    assert chosen == table.sort_values(["wer", "alpha"])["alpha"].iloc[0]
    start = load_file(material / "model" / "model.safetensors")
    best, tuned = (load_file(run / name / "model.safetensors") for name in ("best", "tuned" if chosen < 1 else "best"))
    for name, weight in best.items():
        expected = torch.lerp(start[name].float(), tuned[name].float(), float(chosen))
        assert torch.allclose(weight.float(), expected, atol=1e-3, rtol=2e-3), name
    assert not list((run / "checkpoints").glob("alpha-*"))


def test_a_run_whose_guards_all_become_worse_ends_where_it_began(
    material: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = material / "strict"
    caplog.set_level("INFO")
    assert main(arguments(material, run, "--best.guard_margin=-1000")) == 0
    table = pd.read_csv(run / "alphas.csv")
    assert list(table["admitted"]) == [1, 0, 0, 0, 0]
    start = load_file(material / "model" / "model.safetensors")
    best, tuned = (load_file(run / name / "model.safetensors") for name in ("best", "tuned"))
    assert all(torch.equal(start[name].float(), weight.float()) for name, weight in best.items())
    assert any(not torch.equal(start[name].float(), weight.float()) for name, weight in tuned.items())
    assert "Every model between the start and the best step hears a guard worse" in caplog.text
    assert "Guard both (6 utterances, normalized; before " in caplog.text
    # Continued, it decides anew, from the tuned model.
    again = arguments(material, run, "--best.guard_margin=1000", "--best.alphas=[0.5]", "--ckpt_path=last")
    assert main(again) == 0
    assert list(pd.read_csv(run / "alphas.csv")["alpha"]) == [0, 0.5, 1]
    (chosen,) = pd.read_csv(run / "alphas.csv").query("chosen == 1")["alpha"]
    now = load_file(run / "best" / "model.safetensors")
    for name, weight in now.items():
        expected = torch.lerp(start[name].float(), tuned[name].float(), float(chosen))
        assert torch.allclose(weight.float(), expected, atol=1e-3, rtol=2e-3), name
    # A margin within the interval: what the guards cannot show is taken on average, and said.
    assert "with so few utterances" not in caplog.text
    (tuned_row,) = pd.read_csv(run / "alphas.csv").query("alpha == 1").to_dict("records")
    mean, high = (max(tuned_row[f"{guard}.{end}"] for guard in ("both", "some")) for end in ("difference", "high"))
    assert main([*again, f"--best.guard_margin={(mean + high) / 2}"]) == 0
    (last,) = pd.read_csv(run / "alphas.csv").query("chosen == 1").to_dict("records")
    assert (last["alpha"], last["admitted"], last["shown"]) == (1, 1, 0)
    assert "with so few utterances" in caplog.text


def candidate(alpha: float, wer: float, shown: bool = True, likely: bool = True) -> Candidate:
    return Candidate(alpha, Estimate(wer, None, None), {"guard/x": Difference(0.0, None, None, None)}, shown, likely)


def test_of_equal_candidates_the_one_nearer_to_the_start_is_taken() -> None:
    tried = [candidate(0, 20), candidate(0.25, 15), candidate(0.5, 14), candidate(0.75, 14), candidate(1, 13, False)]
    chosen, admitted = choose(tried)
    assert chosen.alpha == 0.5
    assert admitted == tried[:-1]
    tried = [candidate(0, 20), candidate(0.5, 10, False, False)]
    assert choose(tried) == (tried[0], tried[:1])


def test_guards_too_small_to_show_anything_are_judged_by_their_mean() -> None:
    tried = [candidate(0, 20), candidate(0.5, 15, False), candidate(1, 10, False, False)]
    assert choose(tried) == (tried[1], tried[:2])
    better_is_shown = [*tried, candidate(0.25, 19)]
    assert choose(better_is_shown)[0].alpha == 0.25
    worse_is_shown = [*tried, candidate(0.25, 21)]
    assert choose(worse_is_shown)[0].alpha == 0.5


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--data.guard.a/b=x.csv", "no name for a guard"),
        ("--data.guard.there=nowhere.csv", "data.guard/there: there is nothing at"),
        ("--data.guard_languages.other=gl", "there is no guard other"),
        ("--data.guard_languages.both=xx", "no language 'xx'"),
        ("--data.guard_utterances=0", "data.guard_utterances: 0"),
        ("--best.alphas=[0.5, 1.0]", "best.alphas: 1.0"),
    ],
)
def test_mistakes_about_guards_are_one_line(
    option: str, message: str, material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(material, tmp_path / "run", option)) == 2
    assert message in one_error(capsys)


def test_the_mean_of_the_best_steps_takes_part(
    material: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run = tmp_path / "run"
    options = ["--best.average=2", "--best.alphas=[]", "--trainer.val_check_interval=5", "--trainer.max_steps=15"]
    assert main(arguments(material, run, *options)) == 0
    wers = pd.read_csv(run / "metrics.csv").dropna(subset=["val/wer"]).query("step > 0")
    ranked = sorted(zip(wers["val/wer"], wers["step"], strict=True))[:2]
    files = sorted((run / "checkpoints").glob("step-*.safetensors"))
    assert [path.name for path in files] == sorted(f"step-{step:06d}.safetensors" for _, step in ranked)
    parts = [load_file(path) for path in files]
    table = read_transcripts(run / "transcripts" / "average.csv")
    assert len(table) == 8
    mean = measure(table, "wer").value
    best = load_file(run / "best" / "model.safetensors")
    for name, weight in best.items():
        expected = (parts[0][f"whisper.{name}"].float() + parts[1][f"whisper.{name}"].float()) / 2
        assert torch.allclose(weight.float(), expected, atol=1e-3, rtol=2e-3) == (mean < ranked[0][0]), name
        break
    assert f"WER {mean:.2f} %" in caplog.text
    assert (run / "tuned").is_dir() == (mean < ranked[0][0])


def test_a_validation_by_itself_leaves_what_the_run_has_heard(material: Path, run: Path) -> None:
    """Guards are compared with the tables of the start, which no other model may take the place of."""
    names = ["step-000000.csv", "guard/both/step-000000.csv"]
    before = [(run / "transcripts" / name).read_bytes() for name in names]
    assert main(["validate", f"--config={run / 'config.yaml'}", f"--model.checkpoint={run / 'best'}"]) == 0
    assert [(run / "transcripts" / name).read_bytes() for name in names] == before
    assert (run / "transcripts" / "guard" / "both" / "validate.csv").is_file()


def test_a_run_that_is_continued_without_a_choice_ends_with_its_best_step(material: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(arguments(material, run, "--best.guard_margin=-1000", "--best.alphas=[0.5]")) == 0
    tuned = load_file(run / "tuned" / "model.safetensors")
    assert main(arguments(material, run, "--best.alphas=[]", "--ckpt_path=last")) == 0
    best = load_file(run / "best" / "model.safetensors")
    assert not (run / "tuned").exists()
    assert all(torch.equal(weight, tuned[name]) for name, weight in best.items())


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with time stamps that says something."""
    folder = tmp_path_factory.mktemp("timed")
    torch.manual_seed(5)
    WhisperModule(str(write_timed_model(folder / "shape")), random_weights=True).save_pretrained(folder / "model")
    return folder / "model"


def test_clips_of_the_validation_are_a_guard_in_long_windows(timed: Path, tmp_path: Path) -> None:
    corpus = copy_corpus(tmp_path / "corpus", 8, 8)
    run = tmp_path / "run"
    options = [f"--model.checkpoint={timed}", "--model.random_weights=false", "--trainer.logger=true"]
    assert main([*quick_arguments(corpus, run), *options, "--data.guard_windows=2"]) == 0
    metrics = pd.read_csv(run / "metrics.csv").dropna(subset=["guard/long/wer_normalized"])
    assert list(metrics["step"]) == [0, 2, 4]
    assert metrics["guard/long/timestamps"].notna().all()
    table = read_transcripts(run / "transcripts" / "guard" / "long" / "step-000000.csv")
    spoken = {row["sentence"]: f"{i + 2:08d}" for i, row in enumerate(read_rows(corpus / "test.csv"))}
    assert len(table) == 2
    for key, reference in zip(table["key"], table["reference"], strict=True):
        assert len(key.split("+")) > 1
        assert sorted(key.split("+")) == sorted(k for sentence, k in spoken.items() if sentence in reference)
    assert not (run / "alphas.csv").exists(), "it is watched, and has no say in what the run ends with"
    assert main([*quick_arguments(corpus, tmp_path / "none"), *options, "--data.guard_windows=0"]) == 0
    columns = pd.read_csv(tmp_path / "none" / "metrics.csv").columns
    assert not {"guard/long/wer_normalized", "silence/words"} & {*columns}
    # Silence: what is invented there is what the model writes of these sounds by itself.
    for name, model in (("step-000000", timed), ("test", run / "best")):
        invented = read_transcripts(run / "transcripts" / "silence" / f"{name}.csv")
        module = load(str(model))
        module.let_write(None)
        sounds = wordless()
        assert list(invented["audio"]) == list(sounds)
        assert list(invented["hypothesis"]) == module.transcribe(list(sounds.values()), max_new_tokens=10)
    counted = metrics["silence/words"].tolist()
    for step, words in zip((0, 2, 4), counted, strict=True):
        invented = read_transcripts(run / "transcripts" / "silence" / f"step-{step:06d}.csv")
        assert words == sum(len(text.split()) for text in invented["hypothesis"])
    assert counted[0] == 0 < counted[1]
    assert pd.read_csv(run / "metrics.csv")["test/silence/words"].dropna().tolist() == [0]
    assert say_of_silence(run) == []
    (run / "transcripts" / "silence" / "step-000002.csv").replace(run / "transcripts" / "silence" / "test.csv")
    assert say_of_silence(run)[0].startswith(f"In silence and noise it writes {counted[1]:.0f} words (before: 0;")


def windows(module: WhisperModule, table: Path, count: int) -> Batch:
    """Read the windows of a guard `long`, made of the clips of a CSV."""
    index = open_csv(table)
    val = Split(index, np.arange(len(index), dtype=np.int32), [])
    split = long_windows(val, count, module.encoder, module.full_samples, module.max_label_tokens, seed=1)
    assert split is not None
    plan = split.plan(PlanOptions(count), seed=1, epoch=0, shuffle=False)
    batch = BatchDataset(index, module.encoder, rows=split.rows, timed=True)[plan[0], 0]
    assert isinstance(batch, Batch)
    return batch


def generated(module: WhisperModule, batch: Batch, max_new_tokens: int) -> list[list[int]]:
    """Decode with time stamps as transformers does."""
    ids = module.whisper.generate(
        module.log_mel(batch.waveforms),
        return_timestamps=True,
        language="es",
        task="transcribe",
        num_beams=1,
        max_new_tokens=max_new_tokens,
    )
    return [list(map(int, row)) for row in ids]


def test_windows_are_decoded_as_transformers_does_with_time_stamps(timed: Path, tmp_path: Path) -> None:
    """A random model does not end by itself, so it is the beginning that is compared; `real` compares the whole."""
    corpus = copy_corpus(tmp_path / "corpus", 2, 8)
    module = load(str(timed), exact=True)
    batch = windows(module, corpus / "test.csv", 3)
    decoded = module.validation_step(batch, 0)
    assert decoded.times is not None
    rows = generated(module, batch, 40)
    for row, text, (borders, written) in zip(rows, decoded.hypotheses, decoded.times, strict=True):
        assert module.text(row).startswith(text)
        assert written
        assert written == module.encoder.times(row)[: len(written)]
        assert borders == sorted(borders)
        assert len(borders) % 2 == 0


@pytest.mark.real
def test_whisper_base_writes_windows_as_transformers_does(real_model: Path, real_speech: Path, tmp_path: Path) -> None:
    """What of it has ended; transformers goes on in a recording behind its last time stamp."""
    rows = read_rows(real_speech / "val.csv")[:20]
    with (tmp_path / "val.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["audio", "sentence", "speaker"])
        writer.writerows([real_speech / row["audio"], row["sentence"], row["speaker"]] for row in rows)
    module = load(str(real_model), language="es", exact=True)
    module.max_tokens = 60
    batch = windows(module, tmp_path / "val.csv", 2)
    decoded = module.validation_step(batch, 0)
    assert decoded.times is not None
    for row, text, (_, written) in zip(generated(module, batch, 60), decoded.hypotheses, decoded.times, strict=True):
        assert text
        assert module.text(row).startswith(text)
        assert module.encoder.times(row)[: len(written)] == written


def test_time_stamps_are_right_near_borders() -> None:
    assert timestamps_right([([0.0, 2.0], [0.0, 2.1])]) == 100
    assert timestamps_right([([0.0, 2.0], [0.0])]) == 50
    assert timestamps_right([([0.0, 2.0], [0.1, 1.0, 2.2])]) == pytest.approx(200 / 3)
    assert timestamps_right([([0.0, 2.0], [])]) == 0
