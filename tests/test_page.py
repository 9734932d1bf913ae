"""The page in a real browser, from the disk: it renders, filters, sorts, plays, and runs nothing of a transcript."""

import shutil
import time
import wave
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.test_report import transcripts
from whisper_lightning.report.evaluate import evaluate
from whisper_lightning.report.page import write_page
from whisper_lightning.report.transcripts import Transcripts

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
HOSTILE = (
    "</script><script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\"> {{script}} &amp;"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        # Tests run as root in a container, where Chromium's own sandbox cannot start.
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two models on 120 utterances, in a folder with blanks and signs in its name."""
    folder = tmp_path_factory.mktemp("informe") / "año #1 100%"
    folder.mkdir()
    clip = folder / "clip ñ.wav"
    with wave.open(str(clip), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((8000 * np.sin(np.arange(16_000) / 8)).astype("<i2").tobytes())
    made = transcripts(120, 0.4, 0.1, path=clip)
    made.hypotheses[0][3] = HOSTILE
    made.hypotheses[0][5] = ""
    made.hypotheses[0][7] = "gracias por ver " * 5
    made.utterances[9] = replace(made.utterances[9], path=folder / "gone.mp3")
    made.utterances[10] = replace(made.utterances[10], columns={"accent": HOSTILE, "locale": "es"})
    odd = Transcripts(HOSTILE, made.utterances, [HOSTILE, "model 1"], made.hypotheses, [], made.decodes)
    write_page(evaluate(odd)[0], folder / "index.html")
    return folder


def open_page(browser: Any, path: Path) -> Any:
    page = browser.new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
    page.goto(path.as_uri())
    page.wait_for_selector("#list > li")
    return page


@pytest.fixture
def page(browser: Any, folder: Path) -> Iterator[Any]:
    opened = open_page(browser, folder / "index.html")
    yield opened
    opened.close()


def errors(page: Any) -> list[float]:
    """Word error rates of the utterances that are shown."""
    shown = page.locator("#list .meta b").all_inner_texts()
    return [0.0 if text == "no errors" else float(text.split()[1].replace(",", "")) for text in shown]


def test_it_draws_everything_and_complains_of_nothing(page: Any) -> None:
    assert page.locator("#headline .card").count() == 10
    assert page.locator("#scores tbody tr").count() == 2
    assert page.locator("#differences tbody tr").count() == 1
    assert page.locator("#slices .panel").count() == 2
    assert page.locator("#heat tbody tr").count() == 6
    assert page.locator("#confusions .panel").count() == 3
    assert page.locator("#list > li").count() == 50
    assert page.locator("#count").inner_text() == "1–50 of 120 utterances"
    assert page.problems == []


def test_transcripts_names_and_columns_are_text(page: Any, folder: Path) -> None:
    page.select_option("#scoring", label="Orthographic")
    page.fill("#search", "onerror")
    assert page.locator("#list > li").count() == 1
    assert "</script><script>document.title" in page.locator("#list .aligned").inner_text().replace("\n", " ")
    assert "run" not in page.title().split()
    assert page.title().startswith("Evaluation of </script>")
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2


def test_filters_search_and_pages(page: Any) -> None:
    page.select_option("#show", "empty")
    assert page.locator("#list > li").count() == 1
    assert "row 7" in page.locator("#list .meta").inner_text()
    page.select_option("#show", "loop")
    assert "row 9" in page.locator("#list .meta").inner_text()
    page.select_option("#show", "right")
    assert set(errors(page)) == {0.0}
    page.select_option("#show", "wrong")
    assert 0.0 not in errors(page)
    page.select_option("#show", "all")
    page.click("#next")
    page.click("#next")
    assert page.locator("#count").inner_text() == "101–120 of 120 utterances"
    assert page.locator("#next").is_disabled()
    page.fill("#search", "CLIPS/77.MP3")
    assert page.locator("#list > li").count() == 1
    page.fill("#search", "no such words")
    assert page.locator("#count").inner_text() == "No utterance is like this."


def test_it_sorts(page: Any) -> None:
    page.select_option("#sort", "wer")
    assert errors(page) == sorted(errors(page), reverse=True)
    page.select_option("#sort", "row")
    rows = page.locator("#list .meta span:nth-of-type(2)").all_inner_texts()
    assert rows[:3] == ["row 2", "row 3", "row 4"]


def test_a_slice_a_cell_and_a_word_choose_their_utterances(page: Any) -> None:
    for place in ("#slices .row", "#heat button:enabled", "#confusions .row"):
        button = page.locator(place).first
        button.click()
        assert page.locator("#clear").is_visible()
        number = int(page.locator("#count").inner_text().split(" of ")[1].split()[0])
        assert 0 < number < 120
        assert page.locator(place).first.get_attribute("aria-pressed") == "true"
        page.keyboard.press("Enter")  # the focus has stayed on it
        assert page.locator("#clear").is_hidden()


def test_models_and_scorings_are_switched(page: Any) -> None:
    before = page.locator("#headline .card").first.inner_text()
    assert page.locator("#scores tr.chosen th").inner_text().startswith("</script>")
    page.select_option("#model", "1")
    assert page.locator("#scores tr.chosen th").inner_text().startswith("model 1")
    assert page.locator("#scores tr.chosen th small").inner_text() == "greedy"
    assert page.locator("#headline .card").first.inner_text() != before
    assert "Case and punctuation do not count" in page.locator("#meaning").inner_text()
    page.select_option("#scoring", label="Accent insensitive")
    assert "accents do not count" in page.locator("#meaning").inner_text()
    assert page.problems == []


def test_it_plays_and_says_what_it_cannot_play(page: Any) -> None:
    page.select_option("#sort", "row")
    audio = page.locator("#list audio").first
    audio.evaluate("audio => { audio.muted = true; return audio.play(); }")
    audio.evaluate("audio => new Promise(done => audio.addEventListener('ended', done))")
    assert audio.evaluate("audio => audio.duration") == pytest.approx(1.0)
    page.fill("#search", "clips/9.mp3")
    page.locator("#list audio").evaluate("audio => audio.play().catch(() => null)")
    page.wait_for_selector("#list a.silent")
    assert "not found" in page.locator("#list a.silent").inner_text()


def test_every_control_has_a_name_and_can_be_reached(page: Any) -> None:
    nameless = page.evaluate(
        "[...document.querySelectorAll('button, select, input')].filter(e => !e.hidden && "
        "!(e.labels && e.labels.length) && !e.getAttribute('aria-label') && !e.textContent.trim()).length"
    )
    assert nameless == 0
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "model"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 380])
def test_it_fits_the_screen_and_can_be_read(browser: Any, folder: Path, scheme: str, width: int) -> None:
    """Contrast of WCAG 2.2 AA (4.5) for every text that is drawn, and nothing wider than the screen."""
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
    page.goto((folder / "index.html").as_uri())
    page.wait_for_selector("#list > li")
    assert page.evaluate(TOO_WIDE) == []
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert page.evaluate(CONTRAST) == []
    page.close()


TOO_WIDE = """() => [...document.body.querySelectorAll('*')]
  .filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.scroll, .plot, .hidden'))
  .map((e) => `${e.tagName} ${e.className || e.id} ${e.textContent.slice(0, 30)}`)"""

CONTRAST = """() => {
  const canvas = document.createElement('canvas');
  canvas.width = canvas.height = 1;
  const context = canvas.getContext('2d', { willReadFrequently: true });
  const rgb = (color) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = (color) => [0.2126, 0.7152, 0.0722].reduce((sum, w, i) => sum + w * linear(color[i] / 255), 0);
  const back = (e) => {
    for (; e; e = e.parentElement) {
      const color = rgb(getComputedStyle(e).backgroundColor);
      if (color[3] === 255) return color;
    }
    return [255, 255, 255];
  };
  const bad = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim().slice(0, 20);
    if (!text || !e.offsetParent || e.closest('script, option, :disabled')) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(back(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) bad.add(`${e.className || e.tagName} ${text} ${ratio.toFixed(2)}`);
  }
  return [...bad];
}"""


@pytest.mark.slow
def test_five_thousand_utterances_open_in_three_seconds(browser: Any, tmp_path: Path) -> None:
    write_page(evaluate(transcripts(5000, 0.4, 0.1))[0], tmp_path / "index.html")
    start = time.monotonic()
    page = open_page(browser, tmp_path / "index.html")
    seconds = time.monotonic() - start
    assert page.locator("#count").inner_text() == "1–50 of 5,000 utterances"
    assert seconds < 3
    start = time.monotonic()
    page.fill("#search", "cocina")
    page.select_option("#sort", "longest")
    assert " of " in page.locator("#count").inner_text()
    assert time.monotonic() - start < 3
    assert page.problems == []
    page.close()
