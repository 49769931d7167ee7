"""The slides of `make slides`: no cell and no word of a lesson is lost, and every slide fits a projector without a network."""

import json
import os
import re
import subprocess
from pathlib import Path

import nbformat
import pytest
from test_browser import CHROMIUM, browser  # noqa: F401
from test_docs_site import page_of

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / ".venv-docs" / "bin" / "python"
LESSONS = sorted((ROOT / "notebooks").glob("[01]*.ipynb"))
pytestmark = [pytest.mark.soak, pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine"),
              pytest.mark.skipif(not PYTHON.exists(), reason="`make docs` sets up what makes the slides")]


@pytest.fixture(scope="module")
def slides(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("slides") / "slides"
    done = subprocess.run([PYTHON, "docs/slides.py", folder], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return folder


def test_a_live_deck_runs_what_its_lesson_runs(slides):
    kinds = set()
    for path in LESSONS:
        lesson, deck = nbformat.read(path, 4), nbformat.read(slides / "live" / path.name, 4)
        code = [[cell.source for cell in notebook.cells if cell.cell_type == "code"] for notebook in (lesson, deck)]
        assert code[0] == code[1]
        kinds |= {cell.metadata.slideshow.slide_type for cell in deck.cells}
    assert kinds == {"slide", "-", "fragment", "skip", "notes"}


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_no_word_of_a_lesson_is_lost(slides, path):
    lesson, deck = ("\n\n".join(cell.source for cell in nbformat.read(source, 4).cells if cell.cell_type == "markdown")
                    for source in (path, slides / "live" / path.name))
    parts = re.split(r"<details><summary>.*?</summary>|</details>|^#+ |(?=\*\*Predict)|\n\n", lesson, flags=re.MULTILINE)
    assert not [part for part in parts if part.strip() not in deck]


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_slide_asks_what_its_heading_asks_shows_formulas_and_tells_no_folded_answer(slides, path):
    text, deck = ("\n\n".join(cell.source for cell in nbformat.read(source, 4).cells if cell.cell_type == "markdown"
                              and cell.metadata.get("slideshow", {}).get("slide_type") != "notes")
                  for source in (path, slides / "live" / path.name))
    _, *sections = re.split(r"^#+ (.*)$", text, flags=re.MULTILINE)
    _, *shown = re.split(r"^#+ (.*)$", deck, flags=re.MULTILINE)
    said = list(zip(sections[::2], sections[1::2], strict=True))
    for heading, below in zip(shown[::2], shown[1::2], strict=True):
        assert all(any(part in text for where, text in said if where == heading) for part in below.strip().split("\n\n"))
    answers = re.findall(r"</summary>(.*?)</details>", text, re.DOTALL)
    assert not [part for answer in answers for part in answer.strip().split("\n\n") if part in deck]
    assert all(formula in deck for formula in re.findall(r"^\$\$.*?\$\$", text, re.DOTALL | re.MULTILINE))


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_every_slide_fits_and_has_its_title_and_at_most_one_picture(browser, slides, path):  # noqa: F811
    with page_of(browser, slides) as page:
        page.goto((slides / f"{path.stem}.html").as_uri())
        page.wait_for_function("window.Reveal && Reveal.isReady()")
        for number in range(total := page.evaluate("Reveal.getTotalSlides()")):
            here = page.evaluate_handle("Reveal.getCurrentSlide()").as_element()
            page.wait_for_function("slide => [...slide.querySelectorAll('img')].every(image => image.naturalWidth)", arg=here)
            high, wide = here.evaluate("slide => [slide.scrollHeight, slide.scrollWidth]")
            assert high <= 720 and wide <= 1280, f"slide {number + 1} takes {wide} x {high}"
            ends = here.evaluate("""slide => [...slide.querySelectorAll('math')].map(
                math => slide.getBoundingClientRect().right - math.firstElementChild.getBoundingClientRect().right)""")
            assert all(room >= 0 for room in ends), "a formula is cut"
            assert len(here.query_selector_all("h1, h2")) == 1 and len(here.query_selector_all("img")) <= 1
            for _ in range(1 + len(here.query_selector_all(".fragment"))):
                page.keyboard.press("ArrowRight")
        assert total >= 2 and page.evaluate("Reveal.isLastSlide()")


def test_a_slider_moves_on_its_slide(browser, slides):  # noqa: F811
    with page_of(browser, slides) as page:
        page.goto((slides / "03_beta_gate.html").as_uri())
        page.wait_for_function("window.Reveal && Reveal.isReady()")
        player = page.locator("section.present .player")
        while not player.count():
            page.keyboard.press("ArrowRight")
        assert not player.is_visible()
        page.keyboard.press("ArrowRight")  # after its question
        player.wait_for()
        before = player.locator("img").get_attribute("src")
        player.get_by_role("slider").press("ArrowRight")
        assert player.locator("img").get_attribute("src") != before
        assert page.locator("section.present h2").inner_text().startswith("Nine lamps")


def test_the_slider_of_group_sizes_stops_where_the_sawtooth_jumps(browser, slides):  # noqa: F811
    with page_of(browser, slides) as page:
        page.goto((slides / "07_asymptotic_purity.html").as_uri())
        frames = json.loads(page.locator(".player").first.get_attribute("data-frames"))
    assert {"7", "8", "12", "13", "16", "128"} <= {frame["value"] for frame in frames}
