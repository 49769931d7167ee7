"""Slides of the lessons: `make slides`.

A slide is what a learner looks at: a lesson's aim, a picture or an explorable under its question, a table, an exercise. The
rest of the text is the speaker's, who presses S. Each deck is made twice: as a page that needs no network and no kernel, and in
`live/` as a notebook with Jupyter's marks for slides, whose cells run.
"""

import re
import shutil
import sys
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import nbformat
import sphinx_revealjs
from latex2mathml.converter import convert
from nbconvert import SlidesExporter
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook
from players import explorable, with_players
from traitlets.config import Config

from hapo_lab.pictures.style import projector

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
REVEAL = Path(sphinx_revealjs.__file__).parent / "_static" / "revealjs"
"""This package brings a copy of reveal.js, so that no deck fetches one."""
EXERCISE = re.compile(r"^ +\.\.\.$|^exercises\.", re.MULTILINE)
NUMBERED = re.compile(r"\*\*\d+\.")
FOLD = re.compile(r"<details><summary>.*?</summary>|</details>")
"""Around an answer, which is the speaker's until the class has answered."""
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<!\w)\$(.+?)\$", re.DOTALL)


@dataclass
class Slide:
    """What is read, the cell that is shown or solved and those that run before it, and what the speaker says."""

    text: list[str]
    cells: list[NotebookNode] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def main(folder: Path) -> None:
    """A page and a notebook per lesson, and a page that leads to them."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "live").mkdir(parents=True)
    shutil.copytree(REVEAL / "plugin" / "notes", folder / "reveal" / "plugin" / "notes")
    (folder / "reveal" / "dist" / "theme").mkdir(parents=True)
    for part in ("LICENSE", "dist/reveal.js", "dist/reveal.css"):
        shutil.copy(REVEAL / part, folder / "reveal" / part)
    shutil.copy(HERE / "slides" / "slides.css", folder / "reveal" / "dist" / "theme")
    for name in ("player.js", "site.css"):
        shutil.copy(HERE / "static" / name, folder)
    projector()
    links = []
    for path in sorted((ROOT / "notebooks").glob("[01]*.ipynb")):
        slides = slides_of(nbformat.read(path, 4))
        nbformat.write(live(slides), folder / "live" / path.name)
        (folder / f"{path.stem}.html").write_text(page(path, folder))
        links.append(f'<li><a href="{path.stem}.html">{escape(slides[0].text[0][2:])}</a>, {len(slides)} slides')
    (folder / "index.html").write_text('<!doctype html><meta charset="utf-8"><title>hapo_lab, slides</title>'
                                       f'<h1>Slides</h1><ul>{"".join(links)}</ul>')
    print(f"{folder.resolve()}/index.html: open it in a browser")


# a lesson, as slides -----------------------------------------------------------------------------------------------


def slides_of(lesson: NotebookNode) -> list[Slide]:
    """All of a lesson in its order, each part on its slide; what has no slide is said after the one before."""
    first, *rest = lesson.cells
    title, aim, *said = paragraphs(first.source)
    slides, heading, question = [Slide([title, aim], notes=said)], [], []
    before = None  # what is said under a new heading or number, and before its slide
    leads: list[str] = []  # the paragraph that leads to a table or a formula

    def end() -> None:
        """A question that no picture answers stands under its section's formula or table, or alone; a title that no slide shows
        is bold in the notes."""
        if question and heading == slides[-1].text[:1] and slides[-1].text[-1].startswith(("|", "$$")):
            slides[-1].text += question
            slides[-1].notes += before or []
        elif any("?" in asked for asked in question):
            slides.append(Slide([*heading, *question], notes=before or []))
        elif before is not None:
            slides[-1].notes += [*(f"**{title[3:]}**" for title in heading), *before, *question]
    for cell in rest:
        if cell.cell_type == "markdown":
            for part, text in enumerate(FOLD.split(cell.source)):
                for paragraph in paragraphs(text):
                    said, predict, asked = paragraph.partition("**Predict")
                    if part % 2:  # folded
                        (slides[-1].notes if before is None else before).append(paragraph)
                    elif paragraph.startswith("#"):
                        end()
                        heading, question, before, leads = [f"## {paragraph.lstrip('# ')}"], [], [], []
                    elif paragraph.startswith(("|", "$$")) and not exercise_of(before or [])[1]:
                        said = [one for one in before or [] if one not in leads]
                        slides.append(Slide([*heading, *question, *leads, paragraph], notes=said))
                        before, question, leads = None, [], []
                    elif NUMBERED.match(paragraph):
                        before = [*(before or []), paragraph]
                    else:
                        if said:
                            leads = [said.strip()] if before is not None else []
                            (slides[-1].notes if before is None else before).append(said.strip())
                        if predict:
                            if question:
                                end()
                                before = None
                            question = [predict + asked]
            continue
        if EXERCISE.search(cell.source):
            said, exercise = exercise_of(before or [])
            slides.append(Slide([*heading, *exercise], [cell], [*said, *question]))
        elif shows(cell):
            slides.append(Slide([*heading, *question], [cell], before or []))
        else:
            slides[-1].cells.append(cell)
            continue
        before, question, leads = None, [], []
    end()
    return slides


def exercise_of(said: list[str]) -> tuple[list[str], list[str]]:
    """What comes before the last numbered paragraph, and it with all behind it."""
    at = max((i for i, paragraph in enumerate(said) if NUMBERED.match(paragraph)), default=len(said))
    return said[:at], said[at:]


def paragraphs(text: str) -> list[str]:
    """Its parts between empty lines."""
    return [part.strip() for part in text.split("\n\n") if part.strip()]


def shows(cell: NotebookNode) -> bool:
    """Does a code cell draw, or move?"""
    return bool(explorable(cell.source)) or any("image/png" in output.get("data", {}) for output in cell.outputs)


# as a notebook, and as a page --------------------------------------------------------------------------------------


def live(slides: list[Slide]) -> NotebookNode:
    """A deck that runs, as Jupyter marks slides."""
    cells = []
    for slide in slides:
        cells.append(new_markdown_cell("\n\n".join(slide.text), metadata=mark("slide")))
        for cell in slide.cells:
            seen, asked = shows(cell) or EXERCISE.search(cell.source), "**Predict" in slide.text[-1]
            kind = "skip" if not seen else "fragment" if asked else "-"
            cells.append(nbformat.from_dict(cell | {"metadata": mark(kind)}))
        if slide.notes:
            cells.append(new_markdown_cell("\n\n".join(slide.notes), metadata=mark("notes")))
    return new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})


def mark(kind: str) -> dict:
    """Of a cell: a slide begins, "-" goes on with it, a fragment does so at the next key, skip leaves it out, notes are the
    speaker's."""
    return {"slideshow": {"slide_type": kind}}


def page(path: Path, folder: Path) -> str:
    """A deck in HTML: explorables are sliders over frames, pictures stand without their code, exercises without an answer."""
    deck = live(slides_of(nbformat.reads(with_players(path.read_text(), path.name, folder), 4)))
    for cell in deck.cells:
        if cell.cell_type == "markdown":
            cell.source = FORMULA.sub(lambda found: convert(found[1] or found[2], display="block" if found[1] else "inline"),
                                      cell.source.replace(".ipynb)", ".html)"))
        elif EXERCISE.search(cell.source):
            cell.outputs = []
        else:
            cell.metadata["tags"] = ["picture"]
            seen = [output for output in cell.outputs if {"image/png", "text/html"} & output.get("data", {}).keys()]
            cell.outputs = seen[-1:]
    exporter = SlidesExporter(template_name="slides", extra_template_basedirs=[str(HERE)], reveal_url_prefix="reveal",
                              reveal_theme="slides", config=Config(TagRemovePreprocessor={
                                  "enabled": True, "remove_input_tags": ["picture"]}))
    return exporter.from_notebook_node(deck, {"metadata": {"name": path.stem}})[0]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
