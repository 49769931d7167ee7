"""The pages: links lead somewhere, the README is one page, its figures stand where it says, what commands name is there."""

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
from plain_english import MOST, sentences, too_long

ROOT = Path(__file__).resolve().parent.parent
LISTED = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True,
                        text=True, check=True).stdout.splitlines()
KEPT = {ROOT / name for name in LISTED if (ROOT / name).exists()}
"""What a clone holds: a link to anything else works here alone."""
PLACES = KEPT | {folder for path in KEPT for folder in path.parents}
PAGES = sorted(path for path in KEPT if path.suffix == ".md")
NOTEBOOKS = sorted(path for path in KEPT if path.suffix == ".ipynb")
README = ROOT / "README.md"

named = {"ids": lambda path: str(path.relative_to(ROOT))}


def markdown(path: Path) -> str:
    """A page, or what stands between a notebook's code."""
    if path.suffix == ".md":
        return path.read_text()
    cells = json.loads(path.read_text())["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def prose(path: Path) -> str:
    """Without code, blocks and spans."""
    blocks = re.sub(r"^```.*?^```$", "", markdown(path), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"^ {4}.*$|`[^`]*`", "", blocks, flags=re.MULTILINE)


# links -------------------------------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """As GitHub makes them of headings; of two that are alike the second gets a number."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", markdown(path), flags=re.DOTALL | re.MULTILINE),
                              flags=re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        found.append(slug if slug not in found else f"{slug}-{found.count(slug)}")
    return set(found)


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], **named)
def test_every_link_and_picture_is_there(page):
    for link in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target in PLACES, f"{link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{link}: there is no such heading"


def test_the_readme_leads_to_every_page_and_lesson():
    linked = {(README.parent / link.partition("#")[0]).resolve() for link in re.findall(r"\]\(([^)\s]+)\)", prose(README))}
    assert {*PAGES, *NOTEBOOKS} - {README} <= linked


# sentences ---------------------------------------------------------------------------------------------------------

COMPARISON = ROOT / "docs" / "comparison.md"
EXPECTED = re.compile(r"^Expected: \*(.*?)\*$", re.DOTALL | re.MULTILINE)
"""Written before the runs, so it stays as it is."""


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "teaching.md"], **named)
def test_a_sentence_has_at_most_25_words(page):
    assert not too_long(EXPECTED.sub("", page.read_text()))


def test_an_expectation_is_quoted_word_for_word():
    files = [path for path in KEPT if path.parent == ROOT / "data" / "experiments" and path.suffix == ".toml"]
    written = {" ".join(tomllib.loads(path.read_text())["expected"].split()) for path in files}
    quoted = [" ".join(quote.split()) for quote in EXPECTED.findall(COMPARISON.read_text())]
    assert len(quoted) > 8 and not [quote for quote in quoted if quote not in written]


@pytest.mark.parametrize(("markdown", "found"), [
    ("One. Two", ["One.", "Two"]),
    ("At 0.5, e.g. `a. B` and\nWu et al. say so [R]. *Then* [V].", ["At 0.5, e.g. Code and Wu et al. say so.", "Then."]),
    ("[A page](a.md) ends. [gates.py](b.py) begins.", ["A page ends.", "File begins."]),
    ("Said: \"It is.\" vLLM is next. p is a variable.", ["Said: \"It is.\"", "vLLM is next.", "p is a variable."]),
    ("# A heading\n\n| a | table |\n\n    code. Code\n\n```\ncode. Code\n```\n", []),
    ("Three:\n\n- one\n  and half\n- two. Three\n", ["Three:", "one and half", "two.", "Three"]),
    ("[a](a.md) · [b](b.md)", ["a ·", "b"])])
def test_a_page_is_cut_into_sentences(markdown, found):
    assert sentences(markdown) == found


def test_words_are_counted():
    assert not too_long("word " * MOST) and too_long("word " * (MOST + 1)) and not too_long(("word " * MOST + "= · ") * 2)


# the README --------------------------------------------------------------------------------------------------------


def test_the_readme_is_one_page():
    assert len(README.read_text().splitlines()) <= 120


def rows(page: Path, columns: int) -> list[list[str]]:
    """The cells of a page's tables of so many columns."""
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
             for line in page.read_text().splitlines() if line.startswith("|")]
    return [row for row in cells if len(row) == columns]


def test_a_verdicts_figures_stand_on_the_page_that_it_names():
    verdicts = [(verdict, re.findall(r"\]\(([^)#]+)", evidence)) for _, verdict, evidence, _ in rows(README, 4)]
    figures = [(figure, page) for verdict, pages in verdicts for page in pages for figure in re.findall(r"\d+\.\d+", verdict)]
    assert len(figures) > 5
    assert not [(figure, page) for figure, page in figures if figure not in (ROOT / page).read_text()]


def test_a_lessons_minutes_are_its_own():
    lessons = [(re.search(r"\]\(([^)]+)", link)[1], minutes) for link, minutes, _ in rows(README, 3) if minutes.isdigit()]
    assert len(lessons) == len(NOTEBOOKS) - 1  # the solutions take none
    assert all(re.search(rf"\*\*Takes\*\* (about )?{minutes} minutes", markdown(ROOT / name)) for name, minutes in lessons)


# commands ----------------------------------------------------------------------------------------------------------


def commands(page: Path) -> list[list[str]]:
    """Command lines in blocks and in spans, as words."""
    text = page.read_text()
    lines = re.findall(r"^ {4}(.+)$", text, flags=re.MULTILINE) + re.findall(r"`([^`\n]+)`", text)
    begun = [line.replace(".venv/bin/", "") for line in lines if re.match(r"(\.venv/bin/)?(hapo-lab|python|make) ", line)]
    return [shlex.split(line, comments=True) for line in begun]


def test_every_make_target_is_in_the_makefile():
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    asked = {words[1] for page in PAGES for words in commands(page) if words[0] == "make"}
    assert {"demo", "lab", "test"} <= asked <= targets


def test_every_script_and_notebook_that_a_command_names_is_there():
    named = {word for page in PAGES for words in commands(page) if words[0] == "python"
             for word in words[1:] if word.endswith((".py", ".ipynb")) and "NN" not in word}
    assert len(named) > 10 and not [name for name in named if ROOT / name not in KEPT]


def test_every_benchmark_has_its_line():
    scripts = {path.name for path in KEPT if path.parent == ROOT / "benchmarks" and path.suffix == ".py"} - {"common.py"}
    assert scripts == {Path(words[1]).name for words in commands(ROOT / "benchmarks" / "README.md") if words[0] == "python"}
