"""The animation, the cheat sheet and the glossary: their bounds, and that what is shipped is what the commands make."""

import re
import zlib
from io import BytesIO
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from test_figures import a_log

from hapo_lab.commands.cli import main
from hapo_lab.gate import BetaGate
from hapo_lab.loss import group_advantages, ratio
from hapo_lab.methods import GRPO, HAPO
from hapo_lab.pictures.animation import MOST, animation, step_figure
from hapo_lab.pictures.cheat_sheet import cheat_sheet
from hapo_lab.pictures.glossary import DEFAULTS, LESSONS_WORDS, MARKS, TERMS
from hapo_lab.pictures.style import to_png
from hapo_lab.runs.log import shipped_run
from hapo_lab.theory.injection import injection_probability

DOCS = Path(__file__).resolve().parent.parent / "docs"


def seconds(picture: Image.Image) -> list[float]:
    found = []
    for i in range(picture.n_frames):
        picture.seek(i)
        found.append(picture.info["duration"] / 1000)
    return found


@pytest.mark.parametrize("steps, frames", [(3, 3), (5, 5)])
def test_an_animation_takes_ten_seconds_whatever_the_run(steps, frames):
    gif = animation(a_log(steps=steps, planned=steps))
    picture = Image.open(BytesIO(gif))
    times = seconds(picture)
    assert picture.n_frames == frames and picture.size[0] == 800 and sum(times) == pytest.approx(10)
    assert times[0] >= 1 and times[-1] >= 2 and picture.info["loop"] == 0 and len(gif) < 1e6


def test_the_shipped_animation_is_small_and_shows_the_run_as_it_is():
    path, log = DOCS / "pictures" / "hapo.gif", shipped_run("hapo-0")
    picture = Image.open(path)
    assert path.stat().st_size < 1e6 and picture.n_frames == len(log.steps) <= MOST
    assert sum(seconds(picture)) == pytest.approx(10)
    for step in (1, len(log.steps)):
        picture.seek(step - 1)
        drawn = Image.open(BytesIO(to_png(step_figure(log, step)))).convert("RGB")
        off = np.abs(np.asarray(picture.convert("RGB"), int) - np.asarray(drawn, int)).max(2)
        assert (off > 64).mean() < 0.005  # but for the file's few colours


@pytest.mark.parametrize("log, sentence", [(a_log(steps=2), "at least 3 steps; this one has 2"),
                                           (a_log(GRPO, steps=3), "shows a Beta gate")])
def test_what_can_t_be_animated_is_one_sentence(log, sentence):
    with pytest.raises(ValueError, match=sentence):
        animation(log)


def test_the_command_writes_one_file_or_says_why_not(tmp_path, capsys):
    main(["picture", "glossary", str(tmp_path / "terms.md")])
    assert capsys.readouterr().out == f"{tmp_path / 'terms.md'}\n" and [p.name for p in tmp_path.iterdir()] == ["terms.md"]
    for argv, sentence in ((["animation", "x.gif", "--run", "no-such-run"], "holds no run"),
                           (["glossary", str(tmp_path / "terms.md" / "no.md")], "can't be written")):
        with pytest.raises(SystemExit, match=sentence):
            main(["picture", *argv])
    assert not Path("x.gif").exists()


def streams(pdf: bytes) -> str:
    """What the pages of a PDF draw."""
    found = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL)
    texts = []
    for stream in found:
        try:
            texts.append(zlib.decompress(stream))
        except zlib.error:
            continue
    return b"\n".join(texts).replace(b"\0", b"").decode("latin-1")  # a letter of a TrueType font takes two bytes


def test_the_shipped_cheat_sheet_is_one_page_of_a4_with_text_as_text():
    pdf = (DOCS / "cheat-sheet.pdf").read_bytes()
    assert len(re.findall(rb"/Type /Page\b", pdf)) == 1 and len(pdf) < 150_000
    width, height = map(float, re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", pdf).groups())
    assert (width, height) == pytest.approx((595.3, 841.9), abs=0.5) and b"/FontFile2" in pdf and b"/ToUnicode" in pdf
    drawn = re.sub(r"\)\s-?[\d.]+\s\(", "", streams(pdf))  # without kerning
    assert all(f"({words}" in drawn for words in ("HAPO on one page", "Glossary", "dead group", "Where to read on"))


def test_the_shipped_cheat_sheet_and_glossary_are_what_the_commands_make(tmp_path):
    for name, shipped in (("cheat-sheet", "cheat-sheet.pdf"), ("glossary", "glossary.md")):
        main(["picture", name, str(tmp_path / shipped)])
        assert (tmp_path / shipped).read_bytes() == (DOCS / shipped).read_bytes(), f"hapo-lab picture {name} docs/{shipped}"


def test_the_sheet_has_every_term_and_number_of_the_page():
    page, sheet = (DOCS / "glossary.md").read_text(), {text.get_text() for text in cheat_sheet().texts}
    rows = dict(re.findall(r"^\| ([^|]+) \| (.+?) \|$", page.partition("## Numbers")[0], re.MULTILINE))
    assert {term: rows.get(term) for term in TERMS} == TERMS and set(TERMS) <= sheet
    for what, value, mark in DEFAULTS:
        assert f"| {what} | {value} | {mark} |" in page and {what, value, mark} <= sheet
    assert {mark for _, _, mark in DEFAULTS} <= set(re.findall(r"\[\w+\]", MARKS))


def test_nothing_on_the_sheet_meets_another_text_or_leaves_the_page():
    sheet = cheat_sheet()
    renderer = FigureCanvasAgg(sheet).get_renderer()
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in sheet.texts if text.get_text().strip()]
    assert len(boxes) > 100
    assert not [said for said, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > sheet.bbox.x1 or box.y1 > sheet.bbox.y1]
    assert not [(one, other) for i, (one, a) in enumerate(boxes) for other, b in boxes[i + 1:]
                if a.x0 < b.x1 and b.x0 < a.x1 and a.y0 + 1 < b.y1 and b.y0 + 1 < a.y1]


def test_every_lesson_s_word_is_on_the_page_and_in_a_lesson():
    page = (DOCS / "glossary.md").read_text()
    lessons = " ".join(cell.source for path in (DOCS.parent / "notebooks").glob("[01]*.ipynb")
                       for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown").lower()
    lessons = re.sub(r"[*\s]+", " ", lessons)
    for word, meaning in LESSONS_WORDS.items():
        assert f"| {word} | {meaning} |" in page and re.search(rf"\b{re.escape(word.lower())}", lessons), word
        assert word not in TERMS


def test_the_sheet_s_figures_are_the_code_s():
    values = {what: value for what, value, _ in DEFAULTS}
    assert values["rollouts per group, N"] == "8" and values["prior"] == "Beta(1, 1)" and values["threshold γ"] == "0.8, strict"
    assert HAPO.shaping == ratio(0.1) and "p / (p + 0.1)" in values["shaping F"] and HAPO.scale == "std"
    assert HAPO.gate == BetaGate() and HAPO.gate.injects(torch.tensor([6, 7]), 8).tolist() == [True, False]
    assert values["injects at N = 8"] == "up to S = 6"
    dead_group = group_advantages(torch.tensor([1.0] + [0.0] * 7))
    said = " ".join(text.get_text() for text in cheat_sheet().texts)
    assert f"with {dead_group[0]:.2f}," in said and f"with {-dead_group[1]:.2f}." in said
    assert injection_probability(0.9, 8, BetaGate()) == pytest.approx(0.187, abs=5e-4) and "0.187" in said
