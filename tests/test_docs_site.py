"""The site of `make docs`, from a folder in a real Chromium: nothing is fetched, search finds, sliders move."""

import os
import re
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_browser import CHROMIUM, browser  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
BUILDER = ROOT / ".venv-docs" / "bin" / "sphinx-build"
LESSON = "notebooks/03_beta_gate.html"
pytestmark = [pytest.mark.soak, pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine"),
              pytest.mark.skipif(not BUILDER.exists(), reason="`make docs` sets up what builds the site")]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Built as `make docs` does: a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [BUILDER, "-qEW", "--keep-going", "-c", "docs", "-d", folder / "read", ".", folder / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, f"sphinx-build ended with {done.returncode}:\n{done.stderr}"
    return folder / "site"


@contextmanager
def page_of(browser, folder: Path):  # noqa: F811
    """A page that may read a folder and nothing else; at the end, none has asked for more or complained."""
    asked, said = [], []
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    page.route(lambda url: not url.startswith((folder.as_uri(), "data:")), lambda route: (asked.append(route.request.url),
                                                                                         route.abort()))
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("requestfailed", lambda request: said.append(f"not there: {request.url}"))
    yield page
    page.close()
    assert not asked and not said


@pytest.fixture
def page(browser, site):  # noqa: F811
    """The site's."""
    with page_of(browser, site) as page:
        yield page


def test_the_folder_opens_on_the_readme_and_its_links_lead_on(page, site):
    page.goto((site / "index.html").as_uri())
    page.wait_for_url("**/README.html")
    assert page.locator("h1").first.inner_text().startswith("hapo_lab")
    page.locator(f"article a[href='{LESSON}']").first.click()
    page.wait_for_url(f"**/{LESSON}")


def test_a_lessons_slider_moves_by_keyboard_and_shows_another_picture(page, site):
    page.goto((site / LESSON).as_uri())
    player = page.locator(".player").first
    slider, picture = player.get_by_role("slider", name="S, right"), player.locator("img")
    assert slider.get_attribute("aria-valuetext") == player.locator("output").inner_text() == "6"
    before = picture.get_attribute("src"), picture.get_attribute("alt"), picture.screenshot()
    slider.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == player.locator("output").inner_text() == "7"
    page.wait_for_function("() => [...document.images].every(image => image.complete && image.naturalWidth)")
    after = picture.get_attribute("src"), picture.get_attribute("alt"), picture.screenshot()
    assert all(old != new for old, new in zip(before, after, strict=True))


def test_a_lesson_shows_formulas_and_without_a_script_its_first_frame(browser, site):  # noqa: F811
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto((site / LESSON).as_uri())
    assert page.locator("math mfrac").count() and page.locator(".player img").first.is_visible()
    assert not page.locator(".player input").first.is_visible()


def test_every_public_name_has_its_entry(page, site):
    page.goto((site / "docs/reference/index.html").as_uri())
    names = re.findall(r"as (\w+)$", (ROOT / "hapo_lab" / "__init__.pyi").read_text(), re.MULTILINE)
    linked = page.locator("article td a").all_inner_texts()
    assert not set(names) - set(linked)


def test_the_search_finds(page, site):
    page.goto((site / "README.html").as_uri())
    page.locator(".sidebar-search").fill("posterior")
    page.locator(".sidebar-search").press("Enter")
    page.locator("#search-results li a").first.wait_for()


def test_no_page_and_no_style_sheet_fetches_from_elsewhere(site):
    starts = r"""(?:<(?:script|img|iframe|source|link)\b[^>]*?(?:src|href)=["']?|url\(["']?|@import ["']?)"""
    fetched = re.compile(starts + r"""(?:https?:)?//[^"')>]+""")
    found = {str(path.relative_to(site)): hits for path in site.rglob("*") if path.suffix in (".html", ".css")
             and (hits := fetched.findall(path.read_text()))}
    assert not found
