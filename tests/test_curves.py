"""The section "Training" of a run's page in a real browser: curves, guards, interpolation, settings."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from tests import test_page
from tests.test_page import CONTRAST, HOSTILE, TOO_WIDE, open_page
from tests.test_report import transcripts
from whisper_lightning.report.folder import write_report
from whisper_lightning.report.history import StepDifference, read_training

pytestmark = test_page.pytestmark
browser = test_page.browser
NAMES = ("fleurs-es", HOSTILE.replace("/", "|"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder as two guards and an interpolation leave it."""
    run = tmp_path_factory.mktemp("carreras") / "voces & <b>"
    (run / "report").mkdir(parents=True)
    rows: list[dict[str, float]] = []
    for step in range(5, 401, 5):
        rows.append({"step": step, "train/loss": 2 / (1 + step / 50)})
    for step in range(0, 401, 100):
        row = {"step": step, "val/loss": 1.0, "val/wer": 40 - step / 20, "val/wer_normalized": 30 - step / 20}
        for sign, name in zip((1, -1), NAMES, strict=True):
            ends = (-0.5, 0.5) if step != 100 else (np.nan, np.nan)
            row |= {f"guard/{name}/wer_normalized": 12.0, f"guard/{name}/difference": sign * step / 100}
            for end, apart in zip(("low", "high"), ends, strict=True):
                row[f"guard/{name}/difference_{end}"] = sign * step / 100 + apart
        rows.append(row)
    # A row of another step's metrics, and one that was interrupted and came again.
    rows += [{"step": 300, "best/step": 300}, {"step": 400, "val/wer": 21.0}, {"step": 400, "val/wer": np.inf}]
    pd.DataFrame(rows).to_csv(run / "metrics.csv", index=False, encoding="utf-8")
    blends = []
    for alpha in (1.0, 0.0, 0.25, 0.5, 0.75):
        wer = 40 - 20 * alpha
        blend = {"alpha": alpha, "wer": wer, "wer_low": wer - 2, "wer_high": wer + 2}
        blend |= {"chosen": int(alpha == 0.5), "admitted": int(alpha <= 0.5)}
        for name in NAMES:
            blend |= {f"{name}.difference": alpha, f"{name}.low": alpha - 0.3, f"{name}.high": alpha + 0.3}
        blends.append(blend)
    pd.DataFrame(blends).to_csv(run / "alphas.csv", index=False, encoding="utf-8")
    options = {"trainer": {"num_sanity_val_steps": -1, "max_steps": 400}, "data": {"train": HOSTILE, "columns": None}}
    (run / "config.yaml").write_text(yaml.safe_dump(options, allow_unicode=True), encoding="utf-8")
    made = replace(transcripts(60, 0.1, 0.4), models=["after (best: step 300)", "before"])
    defaults = {"trainer": {"num_sanity_val_steps": -1, "max_steps": 100}, "data": {"columns": None}}
    training = read_training(run, best_step=300, remarks=["Beware"], defaults=defaults)
    write_report(made, run / "report", training=training, progress=False)
    return run


@pytest.fixture
def page(browser: Any, run: Path) -> Iterator[Any]:
    opened = open_page(browser, run / "report" / "index.html")
    opened.wait_for_selector("#training svg.picture")
    yield opened
    assert opened.problems == []
    opened.close()


def test_the_history_is_that_of_the_tables(run: Path) -> None:
    training = json.loads((run / "report" / "results.json").read_text(encoding="utf-8"))["training"]
    assert [step for step, _ in training["curves"]["train/loss"]] == list(range(5, 401, 5))
    assert training["curves"]["val/wer"] == [[0, 40], [100, 35], [200, 30], [300, 25], [400, 21]]
    read = read_training(run, best_step=300)
    assert [guard.name for guard in read.guards] == list(NAMES)
    assert read.guards[0].differences[1] == StepDifference(100, 1.0, None, None)
    assert read.guards[1].differences[2] == StepDifference(200, -2.0, -2.5, -1.5)
    assert [blend.alpha for blend in read.blends] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert [(each["name"], each["value"], each["default"]) for each in training["changed"]] == [
        ("data.train", HOSTILE, "null"),
        ("trainer.max_steps", "400", "100"),
    ]


def test_a_run_without_curves_has_its_settings(run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    training = read_training(tmp_path, best_step=4)
    assert (training.curves, training.guards, training.blends) == ({}, [], [])


def test_every_chart_is_drawn_and_told(page: Any) -> None:
    titles = page.locator("#training figcaption").all_inner_texts()
    guards = [f"Guard: {name}" for name in NAMES]
    shown = ["Loss", "Word error rate of the validation", *guards, "Between the starting and the tuned model", *guards]
    assert [" ".join(title.split()) for title in titles] == [" ".join(title.split()) for title in shown]
    pictures = page.locator("#training svg.picture")
    assert pictures.count() == 7
    for picture in pictures.all():
        assert picture.get_attribute("role") == "img"
        assert picture.locator("text.tick").count() >= 6  # ticks of both axes, their unit and name
        assert picture.locator("path.mark").count() == 1
    loss, wer = pictures.nth(0), pictures.nth(1)
    assert loss.locator("path.curve").count() == 3  # noisy, its mean, and the validation's
    told = wer.get_attribute("aria-label")
    assert "val/wer: 40.0 % at step 0, 21.0 % at step 400, lowest 21.0 % at step 400" in told
    assert wer.locator("circle.best").count() == 2
    assert wer.locator("circle title").nth(3).text_content().startswith("step 300: val/wer 25.0 %")
    for i in (2, 3):
        assert pictures.nth(i).locator("path.band").count() == 1
        assert pictures.nth(i).locator("path.zero").count() == 1
    blends = pictures.nth(4)
    assert blends.locator("path.whisker").count() == 5
    assert blends.locator("circle.hollow").count() == 2
    assert blends.locator("circle.best title").text_content() == "alpha 0.5: val/wer 30.0 % (28.0 to 32.0)"
    assert page.locator("h1").inner_text() == "voces & <b>"
    assert page.title() == "Run voces & <b>"
    assert page.locator(".remark").inner_text() == "Beware."
    assert page.locator("img").count() == 0


def test_values_are_read_by_mouse_and_keyboard(page: Any) -> None:
    figure = page.locator("#training figure").nth(1)
    readout = figure.locator(".readout")
    assert readout.inner_text() == "step 300: val/wer 25.0 % · val/wer_normalized 15.0 %"
    picture = figure.locator("svg.picture")
    box = picture.bounding_box()
    picture.hover(position={"x": box["width"] - 14, "y": box["height"] / 2})
    assert readout.inner_text().startswith("step 400: val/wer 21.0 %")
    page.mouse.move(0, 0)
    picture.focus()
    for key, step in (("Home", 0), ("ArrowRight", 100), ("End", 400), ("ArrowRight", 400), ("ArrowLeft", 300)):
        page.keyboard.press(key)
        assert readout.inner_text().startswith(f"step {step}:")
    guard = page.locator("#training figure").nth(2).locator(".readout")
    assert guard.inner_text() == "step 300: difference +3.00 points (+2.50 to +3.50) · WER 12.0 %"


def test_settings_are_text(page: Any) -> None:
    rows = page.locator("#training .settings tbody tr")
    assert rows.count() == 2
    assert "onerror" in rows.first.inner_text()
    assert not page.locator("#training pre").is_visible()
    page.click("#training summary")
    assert "num_sanity_val_steps: -1" in page.locator("#training pre").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_the_screen_and_can_be_read(browser: Any, run: Path, scheme: str, width: int) -> None:
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
    page.goto((run / "report" / "index.html").as_uri())
    page.wait_for_selector("#training svg.picture")
    page.click("#training summary")
    assert page.evaluate(TOO_WIDE) == []
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert page.evaluate(CONTRAST) == []
    assert page.evaluate(OUTSIDE) == []
    # Turned to the other side, it is drawn anew.
    page.set_viewport_size({"width": 390 + 1280 - width, "height": 800})
    page.wait_for_function(
        "() => [...document.querySelectorAll('svg.picture')].every((e) => e.getAttribute('width') == "
        "e.parentElement.clientWidth)"
    )
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    page.close()


OUTSIDE = """() => [...document.querySelectorAll('svg.picture text')].filter((e) => {
  const inner = e.getBoundingClientRect(), outer = e.closest('.panel').getBoundingClientRect();
  return inner.left < outer.left || inner.right > outer.right;
}).map((e) => e.textContent)"""
"""Texts of a chart that stick out of it."""


def test_the_page_of_evaluate_has_no_training(browser: Any, tmp_path: Path) -> None:
    write_report(transcripts(20, 0.1), tmp_path, progress=False)
    assert "curve" not in (tmp_path / "index.html").read_text(encoding="utf-8")
    page = open_page(browser, tmp_path / "index.html")
    assert page.locator("#training").count() == 0
    assert page.title() == "Evaluation of test.csv"
    assert page.problems == []
    page.close()
